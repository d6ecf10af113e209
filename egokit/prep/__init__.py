"""Data preparation: resize and cut Ego4D, Charades-Ego metadata, EK-100 relevancy.

Each output is verified and listed. An interrupted preparation continues where it stopped, because a file appears whole
or not at all.

    video.py    one Ego4D video: resized, cut into pieces, verified
    measure.py  facts of a video file, and the verification of outputs
    source.py   all videos of a folder, in shards and in parallel; the manifest
    array.py    the same as an array of jobs
    doctor.py   what a site has and lacks

The tables are read in data/annotation_tables.py, and relevancy is defined in data/relevancy.py.
"""
from pathlib import Path

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

__all__ = ["PrepError", "charades", "ego4d", "ek100", "load_relevancy", "prepare", "relevancy", "submit_array"]


def charades(root: Path) -> dict[str, int]:
    """Write Charades-Ego's metadata_{train,val,test}.csv, with one row per action.

    val and test are both made from the test list, because there is no other.

    Returns:
        The number of rows of each split.
    """
    folder = Path(root) / "CharadesEgo" / "CharadesEgo"
    classes = charades_classes(folder / "Charades_v1_classes.txt")
    counts = {}
    for split, listed in (("train", "train"), ("val", "test"), ("test", "test")):
        rows = charades_metadata(folder / f"CharadesEgo_v1_{listed}_only1st.csv", classes)
        write_metadata(folder / f"metadata_{split}.csv", rows)
        counts[split] = len(rows)
    return counts


def ek100(root: Path) -> dict[str, tuple[int, int]]:
    """Write EK-100's relevancy files where there are none; existing ones are kept and checked.

    Returns:
        (clips, sentences) of each split.

    Raises:
        ValueError: an existing file does not have the size of the tables.
    """
    folder = Path(root) / EK100_ANNOTATIONS
    shapes = {}
    for split in ("train", "test"):
        clips, sentences = ek100_annotations(Path(root), split)
        target, shape = relevancy_files.relevancy_path(folder / "relevancy", split), (len(clips), len(sentences))
        if not target.is_file():
            tables = (folder / f"EPIC_100_retrieval_{split}{kind}.csv" for kind in ("", "_sentence"))
            relevancy_files.write(target, *tables)
        relevancy_files.check(target, shape)
        shapes[split] = shape
    return shapes


def prepare(config: Config, progress: bool = True) -> dict:
    """Prepare everything that a site needs before training.

    For the toy site the embedded data set is made first. A data set without a folder is left out, which is printed.

    Returns:
        Flat counts, such as "ego4d_videos" and "charades_train_actions".

    Raises:
        FileNotFoundError: there is no data root, or nothing to prepare under it.
        PrepError: a video failed. It is named, and a hole in the data is never filled silently.
    """
    site = config.site
    root = site_options(site)["root"]
    if site.toy:
        from egokit import toy
        toy.make(root)
    elif not root.is_dir():
        raise FileNotFoundError(f"the data root {root} of site {site.name!r} does not exist: correct site.root in "
                                f"params/sites/{site.name}.yaml")
    parts = {"Ego4D": root / "Ego4D", "CharadesEgo": root / "CharadesEgo" / "CharadesEgo",
             "EK100": root / "EK100" / "epic-kitchens-100-annotations"}
    absent = [name for name, folder in parts.items() if not folder.is_dir()]
    if len(absent) == len(parts):
        raise FileNotFoundError(f"nothing to prepare under {root}: "
                                f"expected one of {', '.join(map(str, parts.values()))}")
    for name in absent:
        print(f"{name}: not under {root}, left out")
    counts: dict = {}
    if "Ego4D" not in absent:
        manifest = ego4d(**site_options(site), progress=progress)
        if manifest["failed"]:
            raise PrepError(f"{len(manifest['failed'])} videos failed (the others are done; run again to retry): "
                            + "; ".join(manifest["failed"][:5]))
        counts |= {f"ego4d_{key}": manifest[key] for key in ("videos", "frames", "bytes")}
    if "CharadesEgo" not in absent:
        counts |= {f"charades_{split}_actions": count for split, count in charades(root).items()}
    if "EK100" not in absent:
        for split, (clips, sentences) in ek100(root).items():
            counts |= {f"ek100_{split}_clips": clips, f"ek100_{split}_sentences": sentences}
    return counts
