"""`egokit search`: update the index of a folder, answer one query, print the hits."""
import hashlib
import os
import re
from pathlib import Path

from egokit.config.build import ConfigError, merge
from egokit.config.resolve import outputs_folder, parse_overrides, resolve
from egokit.runs.run_folder import Run
from egokit.search.clip_files import export, write_csv
from egokit.search.index_task import Search
from egokit.search.searcher import Hit, open_index, submit


def run_name(folder: Path) -> str:
    """Return the run name of a folder's index; a hash of the path keeps equal names apart."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name).strip("-.") or "videos"
    return f"{name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:6]}"


def format_hits(hits: list[Hit]) -> str:
    """Return the hits as a table of text."""
    width = max((len(hit.video) for hit in hits), default=5)
    header = f"{'rank':>4}  {'video':{width}}  {'time':17}{'cosine':>8}{'match':>8}"
    return "\n".join([header, *(
        f"{rank:4}  {hit.video:{width}}  {hit.time:17}{hit.cosine:8.3f}"
        f"{'–' if hit.match is None else f'{hit.match:.3f}':>8}" for rank, hit in enumerate(hits, 1))])


def check_target(option: str, target: str, folder: bool) -> None:
    """Raise ConfigError if a file or folder cannot be written; checked before hours of work."""
    path = Path(target).absolute()
    if path.exists() and path.is_dir() != folder:
        raise ConfigError(f"{option} {target} is a {'file: name a folder' if folder else 'folder: name a file in it'}")
    above = next(parent for parent in (path, *path.parents) if parent.exists())
    if not os.access(above, os.W_OK) or not (above == path or above.is_dir()):
        raise ConfigError(f"{option} {target}: nothing can be written in {above}; name another place")


def answer(arguments) -> None:
    """Answer one query and print the hits; `arguments` are those of the command line."""
    for option, target, is_folder in (("--csv", arguments.csv, False), ("--clips", arguments.clips, True)):
        if target:
            check_target(option, target, is_folder)
    videos = Path(arguments.folder).expanduser().resolve()
    given = {"task.videos": str(videos)}
    if arguments.checkpoint:  # a path relative to the working folder; else run:… or a name in site.weights
        is_path = Path(arguments.checkpoint).exists()
        given["init"] = str(Path(arguments.checkpoint).resolve()) if is_path else arguments.checkpoint
    overrides = merge(parse_overrides(arguments.overrides), parse_overrides(given))
    config = resolve(arguments.params, arguments.site, overrides, arguments.run or "demo")
    run = Run(outputs_folder() / Search.notebook / (arguments.run or run_name(videos)))
    submit(config, run).wait()
    searcher = open_index(config, run)
    print(searcher)
    for line in searcher.manifest["unreadable"]:
        print(f"can't be read: {line['reason']}")
    hits = searcher(arguments.query, arguments.top, arguments.rerank)
    print(f"\n{format_hits(hits)}")
    if arguments.csv:
        print(f"\n{write_csv(hits, arguments.csv)}: {len(hits)} hits")
    if arguments.clips:
        print(f"\n{len(export(hits, arguments.clips))} clips in {arguments.clips}")
