"""Data preparation: resize and cut Ego4D, Charades-Ego metadata, EK-100 relevancy; each output verified and listed.

Interrupted at any point it goes on where it stopped: a file appears whole or not at all. What a table holds and how
relevancy is defined is tables.py's.
"""
from __future__ import annotations

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
    """metadata_{train,val,test}.csv: one row for every action. val and test are both of the test list, as there is no other."""
    folder = Path(root) / "CharadesEgo" / "CharadesEgo"
    classes = charades_classes(folder / "Charades_v1_classes.txt")
    counts = {}
    for split, listed in (("train", "train"), ("val", "test"), ("test", "test")):
        rows = charades_metadata(folder / f"CharadesEgo_v1_{listed}_only1st.csv", classes)
        write_metadata(folder / f"metadata_{split}.csv", rows)
        counts[split] = len(rows)
    return counts


def ek100(root: Path) -> dict[str, tuple[int, int]]:
    """The relevancy files, where there is none; those already there stay, and must be of the tables' size."""
    folder = Path(root) / EK100_ANNOTATIONS
    shapes = {}
    for split in ("train", "test"):
        clips, sentences = ek100_annotations(Path(root), split)
        target, shape = relevancy_files.file(folder / "relevancy", split), (len(clips), len(sentences))
        if not target.is_file():
            relevancy_files.write(target, folder / f"EPIC_100_retrieval_{split}.csv", folder / f"EPIC_100_retrieval_{split}_sentence.csv")
        relevancy_files.check(target, shape)
        shapes[split] = shape
    return shapes


def prepare(config: Config, progress: bool = True) -> dict:
    """Everything a site needs before training; makes the embedded data set first where the site is the toy.

    A data set whose folder is absent is left out, and said. Returns flat counts. Raises if a video failed, naming it: a
    hole in the data is never filled in silence.
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
        raise FileNotFoundError(f"nothing to prepare under {root}: expected one of {', '.join(map(str, parts.values()))}")
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
