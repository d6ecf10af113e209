"""EgoMQ: dense video features of the clips of moments_*.json, for moment-query localisers."""
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from egokit.data import annotation_json
from egokit.data.annotation_json import SPLITS
from egokit.data.site_checks import EGO4D, Checks, Finding
from egokit.runs.ledger import Result
from egokit.tasks.clip_features import ClipFeatures


class EgoMQ(ClipFeatures):
    """Extracts features; it is neither trained nor scored."""
    notebook = "06_egomq_features"
    sections: ClassVar = {"extract": "features"}
    published: ClassVar = [Result("EgoMQ clips with features", "features", "clips", key="clips", in_ledger=False)]
    figures = ("features.png",)

    @classmethod
    def check_site(cls, checks: Checks) -> Iterator[Finding]:
        """Check the moments_*.json, and their clips against the resized Ego4D videos."""
        part, clips = "EgoMQ", []

        def read(path: Path) -> Iterator[Finding]:
            clips.extend(annotation_json.read_moments(path))
            yield from ()
        for split in SPLITS:
            path = checks.root / f"moments_{split}.json"
            table = checks.check_file(part, path, EGO4D.format("annotations"))
            yield table
            if table.state == "ok":
                yield from checks.each(part, path.name, read(path))
        if clips:
            names = [f"{clip['video_uid']}.mp4" for clip in clips]
            yield Finding(part, "clips", "ok", f"{len(names):,} of {len(set(names)):,} videos")
            yield from checks.check_rows(part, "clips", names, checks.root / "Ego4D_256", checks.prep_ego4d,
                                         [clip["stop"] for clip in clips])
