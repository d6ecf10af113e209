"""`egokit score`: the numbers of anybody's file of results, against a benchmark's annotations.

What the command line needs to parse it is light; the rest is imported when it runs. No part of it imports torch. A
benchmark is a module with `score(arguments)`, which returns the numbers and the function that makes a table of them.
"""
import argparse
import importlib
import json
from pathlib import Path

BENCHMARKS = {"mq": "egokit.tasks.moments.score", "nlq": "egokit.tasks.moments.score",
              "qfvs": "egokit.tasks.qfvs.score"}


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add the arguments of `egokit score`."""
    sub.add_argument("task", choices=tuple(BENCHMARKS))
    sub.add_argument("predictions", metavar="PREDICTIONS",
                     help="mq: a submission, a detection file or a retrieval file (named …retr…); nlq: a submission; "
                          "qfvs: a JSON of scores or chosen shots (docs/qfvs.md)")
    sub.add_argument("--site", default="toy", help="a name under params/sites/ or a YAML file (default: toy)")
    sub.add_argument("--root", help="folder of the annotations (default: the site's root; qfvs: its folder QFVS)")
    sub.add_argument("--split", default="val",
                     help="mq, nlq: ROOT/moments_SPLIT.json or ROOT/nlq_SPLIT.json (default: val)")
    sub.add_argument("--share", type=_share, default=0.02,
                     help="qfvs: share of the shots that a summary has (default: 0.02)")
    sub.add_argument("--json", action="store_true", help="print all numbers as JSON, in %%")


def _share(text: str) -> float:
    """Parse a share above 0, and at most 1."""
    try:
        if 0 < (value := float(text)) <= 1:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r}: expected a share above 0, at most 1")


def run(arguments: argparse.Namespace) -> None:
    """Score a file and print the numbers."""
    scored, as_text = importlib.import_module(BENCHMARKS[arguments.task]).score(arguments)
    print(json.dumps(scored, indent=1) if arguments.json else as_text(scored))


def data_root(site: str, root: str | None = None) -> Path:
    """Return the root of a site's data, without the recipe that a config needs.

    Args:
        site: a name under params/sites/, or a YAML file.
        root: another root in its place.

    Raises:
        ConfigError: there is no such site, or it names no root.
    """
    from egokit.config.build import ConfigError, flatten
    from egokit.config.resolve import absolute, project_root, read_yaml
    if root:
        return Path(root).expanduser()
    project = project_root()
    value = flatten(read_yaml(site, project / "params" / "sites", "site"), f" (in site {site})").get("site.root")
    if not value or not isinstance(value, str):
        raise ConfigError(f"site {site}: site.root is {value!r}; set it to the folder of the data, or give --root")
    return Path(absolute(value, project))


def percent(shares):
    """Return a share, or an array of them, in %: a float, or nested lists of floats."""
    import numpy as np
    return (100 * np.asarray(shares, dtype=np.float64)).tolist()


def row(name: str, values: list, width: int = 20, column: int = 8) -> str:
    """Return a line of a table: a name, and numbers in % or headings."""
    return f"{name:{width}}" + "".join(f" {value:>{column - 1}}" if isinstance(value, str) else f"{value:{column}.2f}"
                                       for value in values)


def note(count: int, text: str) -> str:
    """Return a note about a number of things, or "" if there are none."""
    return f"{count:,} {text}" if count else ""


def notes(texts: list[str]) -> list[str]:
    """Return the notes that say something, after an empty line."""
    texts = [text for text in texts if text]
    return ["", *texts] if texts else []
