"""`egokit search`: bring the index of a folder up to date, ask, print."""
from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from egokit.config.build import ConfigError, merge
from egokit.config.resolve import outputs_folder, parse_overrides, resolve
from egokit.runs.run_folder import Run
from egokit.search.cut import export, write_csv
from egokit.search.searcher import Hit, open_index, submit

NOTEBOOK = "07_search_your_videos"


def run_name(folder: Path) -> str:
    """Of the index of a folder: two folders of one name have two."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', folder.name).strip('-.') or 'videos'}-{hashlib.sha256(str(folder).encode()).hexdigest()[:6]}"


def lines(hits: list[Hit]) -> str:
    """The hits as a table of text."""
    wide = max((len(hit.video) for hit in hits), default=5)
    return "\n".join([f"{'rank':>4}  {'video':{wide}}  {'time':17}{'cosine':>8}{'match':>8}", *(
        f"{rank:4}  {hit.video:{wide}}  {hit.time:17}{hit.cosine:8.3f}{'–' if hit.match is None else f'{hit.match:.3f}':>8}"
        for rank, hit in enumerate(hits, 1))])


def check_target(option: str, target: str, folder: bool) -> None:
    """Before the work: whether what is asked for can be written where it is to go."""
    path = Path(target).absolute()
    if path.exists() and path.is_dir() != folder:
        raise ConfigError(f"{option} {target} is a {'file: name a folder' if folder else 'folder: name a file in it'}")
    above = next(one for one in (path, *path.parents) if one.exists())
    if not os.access(above, os.W_OK) or not (above == path or above.is_dir()):
        raise ConfigError(f"{option} {target}: nothing can be written in {above}; name another place")


def answer(arguments) -> None:
    """One query: arguments as the command line has them."""
    for option, target, is_folder in (("--csv", arguments.csv, False), ("--clips", arguments.clips, True)):
        if target:
            check_target(option, target, is_folder)
    videos = Path(arguments.folder).expanduser().resolve()
    given = {"search.videos": str(videos)}
    if arguments.checkpoint:  # a path from here; or run:… or a name in site.weights
        given["init"] = str(Path(arguments.checkpoint).resolve()) if Path(arguments.checkpoint).exists() else arguments.checkpoint
    config = resolve(arguments.params, arguments.site, merge(parse_overrides(arguments.overrides), parse_overrides(given)),
                     arguments.run or "demo")
    run = Run(outputs_folder() / NOTEBOOK / (arguments.run or run_name(videos)))
    submit(config, run).wait()
    searcher = open_index(config, run)
    print(searcher)
    for line in searcher.manifest["unreadable"]:
        print(f"can't be read: {line['reason']}")
    hits = searcher(arguments.query, arguments.top, arguments.rerank)
    print(f"\n{lines(hits)}")
    if arguments.csv:
        print(f"\n{write_csv(hits, arguments.csv)}: {len(hits)} hits")
    if arguments.clips:
        print(f"\n{len(export(hits, arguments.clips))} clips in {arguments.clips}")
