"""`egokit search`: update the index of a folder, answer one query or example, print the hits."""
import functools
import hashlib
import os
import re
import sys
from pathlib import Path

from egokit.config.build import ConfigError, merge
from egokit.config.resolve import outputs_folder, parse_overrides, resolve
from egokit.jobs.preflight import expect_fusion
from egokit.runs.run_folder import Run
from egokit.search.clip_files import export, write_csv
from egokit.search.examples import check_example
from egokit.search.hits import Hit
from egokit.search.index_task import Search, is_up_to_date
from egokit.search.manifest import read_manifest
from egokit.search.page import write_page
from egokit.search.searcher import model_notes, open_index, submit

LONGEST = 248  # characters of a folder's name in its run's, which with a hash is at most the 255 of a file system


def run_name(folder: Path) -> str:
    """Return the run name of a folder's index; a hash of the path keeps equal names apart."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name).strip("-.")[:LONGEST] or "videos"
    return f"{name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:6]}"


def format_hits(hits: list[Hit]) -> str:
    """Return the hits as a table of text."""
    width = max((len(hit.video) for hit in hits), default=5)
    header = f"{'rank':>4}  {'video':{width}}  {'time':17}{'cosine':>8}{'match':>8}"
    lines = (f"{rank:4}  {hit.video:{width}}  {hit.time:17}{hit.cosine:8.3f}"
             f"{'–' if hit.match is None else f'{hit.match:.3f}':>8}  {hit.note}" for rank, hit in enumerate(hits, 1))
    return "\n".join([header, *(line.rstrip() for line in lines)])


def check_target(option: str, target: str, folder: bool) -> None:
    """Raise ConfigError if a file or folder cannot be written; checked before hours of work."""
    path = Path(target).absolute()
    if path.exists() and path.is_dir() != folder:
        raise ConfigError(f"{option} {target} is a {'file: name a folder' if folder else 'folder: name a file in it'}")
    above = next(parent for parent in (path, *path.parents) if parent.exists())
    if not os.access(above, os.W_OK) or not (above == path or above.is_dir()):
        raise ConfigError(f"{option} {target}: nothing can be written in {above}; name another place")


def answer(arguments) -> None:
    """Answer one query and print the hits; `arguments` are those of the command line.

    The exit code is 1 if the table or a clip could not be written.
    """
    if not arguments.query.strip() and not arguments.like:
        raise ConfigError("nothing to search for: write a query, such as '#C C opens the box', or give an example, "
                          "such as --like VIDEO@1:23")
    if arguments.rerank and not arguments.query.strip():
        raise ConfigError("--rerank reads the clips again with a text: write a query beside --like, or leave it out")
    for option, target, is_folder in (("--csv", arguments.csv, False), ("--clips", arguments.clips, True),
                                      ("--page", arguments.page, False)):
        if target:
            check_target(option, target, is_folder)
    videos = Path(arguments.folder).expanduser().resolve()
    given = {"task.videos": str(videos)}
    if arguments.checkpoint:  # a path relative to the working folder; else run:… or a name in site.weights
        is_path = Path(arguments.checkpoint).exists()
        given["init"] = str(Path(arguments.checkpoint).resolve()) if is_path else arguments.checkpoint
    overrides = merge(parse_overrides(arguments.overrides), parse_overrides(given))
    config = resolve(arguments.params, arguments.site, overrides, arguments.run or "demo")
    if arguments.rerank:
        expect_fusion(config.init, "re-ranking (--rerank)")
    if arguments.like:
        check_example(config, arguments.like)  # before hours of work
    run = Run(outputs_folder() / Search.notebook / (arguments.run or run_name(videos)))
    before, warning = read_manifest(run.path / "features"), model_notes(config)[1]
    if warning and not is_up_to_date(config, run.path / "features"):
        print(warning, flush=True)  # before hours of work
    submit(config, run).wait()
    searcher = open_index(config, run)
    for line in searcher.problems() if searcher.manifest != before else ():  # else they have been listed
        print(line)
    hits, failed = searcher(arguments.query, arguments.top, arguments.rerank, arguments.like, arguments.weight,
                            not arguments.single), []
    asked = [arguments.query, arguments.like and f"like {arguments.like}"]
    title = f"{videos.name}: {' · '.join(filter(None, asked))}"
    print("", format_hits(hits), "", *hits.notes, sep="\n")
    for target, write in ((arguments.csv, write_csv), (arguments.page, functools.partial(write_page, title=title))):
        try:
            if target:
                print(f"\n{write(hits, target)}: {len(hits)} hits")
        except OSError as error:
            failed.append(f"not written: {target}: {error}")
    if arguments.clips:
        print(f"\n{len(export(hits, arguments.clips, failed.append))} clips in {arguments.clips}")
    if failed:
        print("", *failed, sep="\n")
        sys.exit(1)
