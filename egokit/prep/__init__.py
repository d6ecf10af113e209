"""Data preparation: resize and cut Ego4D, Charades-Ego metadata, EK-100 relevancy.

Each output is verified and listed. An interrupted preparation continues where it stopped, because a file appears whole
or not at all.

    video.py    one Ego4D video: resized, cut into pieces, verified
    measure.py  facts of a video file, and the verification of outputs
    source.py   all videos of a folder, in shards and in parallel; the manifest
    array.py    the same as an array of jobs
    doctor.py   what a site has and lacks;  overview.py  where one stands: `egokit` without arguments
    narrations.py  EgoClip's narrations as questions, to pre-train EgoNLQ's head on
    command.py  `egokit prep`

The tables are read in data/annotation_tables.py, and relevancy is defined in data/relevancy.py.
"""
import functools
import json
from collections.abc import Callable, Collection
from pathlib import Path

from egokit.config.access import exists, is_there
from egokit.config.schema import Config
from egokit.data import relevancy as relevancy_files
from egokit.data.annotation_tables import (
    EK100_ANNOTATIONS,
    charades_classes,
    charades_metadata,
    ek100_annotations,
    write_metadata,
)
from egokit.data.relevancy import load_relevancy, relevancy  # public here: what users prepare, they also load
from egokit.prep.array import submit_array
from egokit.prep.measure import PrepError
from egokit.prep.source import ego4d, site_options

PARTS = {"ego4d": Path("Ego4D"), "charades": Path("CharadesEgo/CharadesEgo"),
         "ek100": EK100_ANNOTATIONS.parent}  # what is prepared, and the folder that says whether it is there
SHOWN = 20  # failures that an error lists
LISTED = {"train": "train", "val": "test", "test": "test"}  # Charades-Ego's split: the list it is made from

__all__ = ["PARTS", "PrepError", "charades", "ego4d", "ek100", "load_relevancy", "prepare", "relevancy", "submit_array"]


def charades(root: Path) -> dict[str, int]:
    """Write Charades-Ego's metadata_{train,val,test}.csv, with one row per action.

    val and test are both made from the test list, because there is no other.

    Returns:
        The number of rows of each split.

    Raises:
        FileNotFoundError, ValueError: a list is missing or damaged; the splits that do not need it are made.
        PrepError: several are.
    """
    return _all_or_error({split: functools.partial(_charades_split, root, split) for split in LISTED})


def _charades_split(root: Path, split: str) -> int:
    """Write the metadata of one split, and return its number of rows."""
    folder = Path(root) / PARTS["charades"]
    classes = charades_classes(folder / "Charades_v1_classes.txt")
    rows = charades_metadata(folder / f"CharadesEgo_v1_{LISTED[split]}_only1st.csv", classes)
    write_metadata(folder / f"metadata_{split}.csv", rows)
    return len(rows)


def ek100(root: Path) -> dict[str, tuple[int, int]]:
    """Write EK-100's relevancy files where there are none; existing ones are kept and checked.

    Returns:
        (clips, sentences) of each split.

    Raises:
        FileNotFoundError, ValueError: a table is missing or damaged, or an existing file does not have the size of the
            tables; the other split is made.
        PrepError: both splits failed.
    """
    return _all_or_error({split: functools.partial(_ek100_split, root, split) for split in ("train", "test")})


def _ek100_split(root: Path, split: str) -> tuple[int, int]:
    """Write the relevancy of one split if there is none, check it, and return its (clips, sentences)."""
    folder = Path(root) / EK100_ANNOTATIONS
    clips, sentences = ek100_annotations(Path(root), split)
    target, shape = relevancy_files.relevancy_path(folder / "relevancy", split), (len(clips), len(sentences))
    if not exists(target):
        tables = (folder / f"EPIC_100_retrieval_{split}{kind}.csv" for kind in ("", "_sentence"))
        relevancy_files.write(target, *tables)
    relevancy_files.check(target, shape)
    return shape


def prepare(config: Config, progress: bool = True, parts: Collection[str] = ()) -> dict:
    """Prepare everything that a site needs before training.

    For the toy site the embedded data set is made first. A data set without a folder is left out, which is printed.
    Whatever fails, everything that does not depend on it is made.

    Args:
        progress: show a progress bar.
        parts: names of PARTS; by default all.

    Returns:
        Flat counts, such as "ego4d_videos" and "charades_train_actions".

    Raises:
        FileNotFoundError: there is no data root, or nothing to prepare under it.
        PrepError: something failed. It is named, and a hole in the data is never filled silently. What was made is
            printed.
    """
    site, parts = config.site, parts or list(PARTS)
    if unknown := [name for name in parts if name not in PARTS]:
        raise ValueError(f"part {unknown[0]!r}: expected one of {', '.join(PARTS)}")
    root = site_options(site)["root"]
    if site.toy:
        from egokit import toy
        toy.make(root)
    elif not exists(root):
        raise FileNotFoundError(f"the data root {root} of site {site.name!r} does not exist: correct site.root in "
                                f"params/sites/{site.name}.yaml")
    present = [name for name in parts if is_there(root / PARTS[name])]
    if not present:
        raise FileNotFoundError(f"nothing to prepare under {root}: "
                                f"expected one of {', '.join(str(root / PARTS[name]) for name in parts)}")
    for name in parts:
        if name not in present:
            print(f"{PARTS[name].parts[0]}: not under {root}, left out")
    steps: dict[str, Callable] = {}
    if "charades" in present:  # the long work, Ego4D's, comes last
        steps |= {f"charades {split}": functools.partial(_charades_split, root, split) for split in LISTED}
    if "ek100" in present:
        steps |= {f"ek100 {split}": functools.partial(_ek100_split, root, split) for split in ("train", "test")}
    if "ego4d" in present:
        steps["ego4d"] = functools.partial(ego4d, **site_options(site), progress=progress)
    results, errors = _attempt(steps)
    counts, failures = {}, _lines(errors)
    for name, result in results.items():
        if name == "ego4d":
            counts |= {f"ego4d_{key}": result[key] for key in ("videos", "frames", "bytes")}
            failures += [f"ego4d: {reason}" for reason in result["failed"]]
        elif name.startswith("charades"):
            counts[f"{name.replace(' ', '_')}_actions"] = result
        else:
            counts |= dict(zip((f"{name.replace(' ', '_')}_{kind}" for kind in ("clips", "sentences")), result,
                               strict=True))
    if failures:
        print("made: " + json.dumps(counts, indent=1), flush=True)
        raise _error(failures)
    return counts


def _attempt(steps: dict[str, Callable]) -> tuple[dict, dict[str, Exception]]:
    """Take all steps, whichever fail; return the results of those that did not, and the errors of the others."""
    results, errors = {}, {}
    for name, step in steps.items():
        try:
            results[name] = step()
        except Exception as error:  # whatever it is, the other steps do not depend on it
            errors[name] = error
    return results, errors


def _all_or_error(steps: dict[str, Callable]) -> dict:
    """Take all steps and return their results; else raise the error that there is, or a PrepError of several."""
    results, errors = _attempt(steps)
    if len(set(map(str, errors.values()))) == 1:
        raise next(iter(errors.values()))
    if errors:
        raise _error(_lines(errors))
    return results


def _lines(errors: dict[str, Exception]) -> list[str]:
    return [f"{name}: {str(error) or repr(error)}" for name, error in errors.items()]


def _error(failures: list[str]) -> PrepError:
    """Return the error that lists what failed."""
    more = [f"and {len(failures) - SHOWN} more, in prepared.json"] if len(failures) > SHOWN else []
    return PrepError("\n  ".join([f"{len(failures)} failed (everything else is done; run again to retry):",
                                  *failures[:SHOWN], *more]))
