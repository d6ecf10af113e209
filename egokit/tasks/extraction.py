"""Extraction: what the encoders make of each clip, written once, so that heads are trained and scored without them.

A run's folder of files is complete when it has a manifest.json. A clip is a dict with a "clip_uid" that names its file.
"""
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from egokit.config.build import ConfigError
from egokit.config.json_file import LARGEST_LIST, read_json
from egokit.config.schema import Config
from egokit.data.video.timeline import VideoError
from egokit.model import checkpoints
from egokit.runs.files import atomic_path, remove_abandoned, write_text
from egokit.runs.run_folder import Run
from egokit.tasks.base import Task
from egokit.tasks.windows import write_each
from egokit.train import distributed


class Extraction(Task):
    """Writes a file for each clip: shared out over ranks, resumed after a kill, with a manifest at the end.

    Subclasses give `sources`, `clips`, `identity`, `suffix`, `bytes_of`, `write` and `manifest`.

    Attributes:
        stored: what is extracted, and the folder of its files in the run.
        saving: what makes the files smaller, for the message that there is no room for them.
        clips_may_fail: whether a share of the clips, data.max_bad_fraction, may be without files.
    """
    stored = "features"
    saving = "or set data.limit"
    clips_may_fail = False

    @classmethod
    def outdated(cls, config: Config, run: Run) -> bool:
        """Return whether a finished extraction lacks files, or its annotations have changed since.

        It is as it was if its folder or the annotations are not here.
        """
        folder = run.path / cls.stored
        if not folder.is_dir():
            return False
        try:
            manifest = read_json(folder / "manifest.json", {"clips": [{"clip_uid": str}]}, "", LARGEST_LIST)
        except ValueError:
            manifest = None
        made = {file.stem for file in folder.iterdir() if file.suffix in (".npy", ".pt")}
        if manifest is None or not made.issuperset(clip["clip_uid"] for clip in manifest["clips"]):
            return True
        try:
            present = cls(config).fingerprints()
        except (OSError, ValueError):
            return False
        return present != run.metrics()[cls.actions()["extract"]].get("data", present)

    def fingerprints(self) -> dict[str, str]:
        """Return the hashes of the annotation files."""
        return {name: checkpoints.fingerprint(path) for name, path in self.sources().items()}

    def sources(self) -> dict[str, Path]:
        """Return the annotation files that say what is extracted, by the names that metrics.json has for them."""
        raise NotImplementedError

    def clips(self) -> list[dict]:
        """Return the clips, each once, in a fixed order."""
        raise NotImplementedError

    def identity(self, clip: dict) -> list:
        """Return what a clip's file is of, besides the model: another list makes it anew. Plain JSON."""
        raise NotImplementedError

    @property
    def suffix(self) -> str:
        """The files' suffix: "npy" or "pt"."""
        raise NotImplementedError

    def bytes_of(self, model, clip: dict) -> int:
        """Return how many bytes `write` is expected to write for a clip."""
        raise NotImplementedError

    def write(self, model, run: Run, clip: dict) -> None:
        """Write a clip's file.

        Raises:
            VideoError, FileNotFoundError: the clip can't be read; the others are written all the same.
        """
        raise NotImplementedError

    def read_ahead(self, clips: list[dict]) -> None:
        """Begin to read the clips that `write` will be called with, in this order."""

    def manifest(self, run: Run, clips: list[dict]) -> tuple[dict, dict]:
        """Return what the manifest says beside "init", and the counts for metrics.json.

        Args:
            clips: those that have files.
        """
        raise NotImplementedError

    def file(self, run: Run, clip: dict) -> Path:
        """Return the path of a clip's file."""
        return run.path / self.stored / f"{clip['clip_uid']}.{self.suffix}"

    def is_made(self, run: Run, clip: dict) -> bool:
        """Return whether all that `write` writes for a clip is there."""
        return self.file(run, clip).exists()

    def check_room(self, model, run: Run, clips: list[dict]) -> None:
        """Print how many bytes are still to be written, and how many are free.

        Raises:
            ConfigError: they do not fit.
        """
        needed = sum(self.bytes_of(model, clip) for clip in clips if not self.is_made(run, clip))
        free, asked = shutil.disk_usage(run.path).free, sum(len(clip.get("questions", ())) for clip in clips)
        numbers = f"{len(clips):,} clips" + (f", {asked:,} questions" if asked else "")
        print(f"{numbers}: {needed / 1e9:,.3f} GB of {self.stored} to write, {free / 1e9:,.3f} GB are free", flush=True)
        if needed > free:
            raise ConfigError(f"{run.path / self.stored}: the {self.stored} of {numbers} need {needed / 1e9:,.3f} GB "
                              f"more, but {free / 1e9:,.3f} GB are free: make room, {self.saving}")

    def extract(self, model, run: Run) -> dict[str, float]:
        """Write the file of every clip that has none yet, and a manifest.

        Each rank writes its share of the clips; rank 0 writes the manifest.

        Returns:
            On rank 0, the counts and hashes for metrics.json; {} on other ranks.

        Raises:
            ConfigError: the files do not fit on the disk; nothing is written.
            VideoError: clips cannot be read, more than may fail; the files of all others are written first.
        """
        self.expect_fusion(model, "extract")
        began, data = time.perf_counter(), self.fingerprints()
        rank, folder, init = distributed.rank(), run.path / self.stored, self.config.init
        clips = distributed.gather_objects(self.clips())[0]  # rank 0's, because the list may be edited meanwhile
        identities = {clip["clip_uid"]: self.identity(clip) for clip in clips}
        unlisted = delete_outdated(run, folder, identities, self.suffix) if rank == 0 else []
        if rank == 0:
            self.check_room(model, run, clips)
        distributed.barrier()
        digest = self.init_sha256() if rank == 0 else ""

        self.read_ahead([clip for clip in clips[rank::distributed.world_size()] if not self.is_made(run, clip)])

        def write(clip: dict) -> None:
            if not self.is_made(run, clip):
                self.write(model, run, clip)
        lost = {clip["clip_uid"]: reason for clip, reason in write_each(run, clips, write)}
        if rank == 0:
            for message in lost.values():
                run.log({"kind": "bad", "said": message})
        allowed = self.config.data.max_bad_fraction * len(clips) if self.clips_may_fail else 0
        if len(lost) > min(allowed, len(clips) - 1):
            may_fail = "; data.max_bad_fraction allows a share of them" if self.clips_may_fail else ""
            raise VideoError("\n".join([
                *[*lost.values()][:10], f"{len(lost)} of {len(clips)} clips have no {self.stored}, such as these, of "
                "which the run's log.jsonl has all; the others are written and will not be made again" + may_fail]))
        if rank != 0:
            return {}
        remove_abandoned(folder)
        made = [clip for clip in clips if clip["clip_uid"] not in lost]
        if lost:
            print(f"{len(lost)} of {len(clips)} clips have no {self.stored}, as data.max_bad_fraction allows: "
                  f"{', '.join([*lost][:10])}; the manifest has all, and the reasons", flush=True)
        manifest, counts = self.manifest(run, made)
        manifest = {"init": init, "init_sha256": digest} | manifest | {"unlisted": unlisted} | (
            {"unreadable": lost} if lost else {})
        write_text(folder / "manifest.json", json.dumps(manifest, indent=1))
        return counts | {"unlisted": len(unlisted), "samples": len(clips), "expected": len(clips), "failed": len(lost),
                         "toy": self.config.site.toy, "data": data, "seconds": time.perf_counter() - began}


def delete_outdated(run: Run, folder: Path, current: Mapping[str, list], suffix: str) -> list[str]:
    """Delete the files of clips that are of something else since: another video, other times or questions.

    The run's clips.json remembers what each clip's file is of.

    Args:
        current: clip_uid -> what its file has to be of.

    Returns:
        The clips that have files but are not listed any more; their files stay.
    """
    path = run.path / "clips.json"
    recorded = read_json(path, {...: list}, "delete it: all files beside it are made again", LARGEST_LIST) or {}
    made = sorted(file.stem for file in folder.glob(f"[!.]*.{suffix}"))
    changed = [uid for uid in made if uid in current and recorded.get(uid) != current[uid]]
    unlisted = [uid for uid in made if uid not in current]
    if changed or unlisted:
        run.log({"kind": "clips", "changed": changed, "unlisted": unlisted})
        print(f"the list of clips has changed: {len(changed)} are made again; "
              f"{len(unlisted)} are listed no more, and stay", flush=True)
    for uid in changed:
        (folder / f"{uid}.json").unlink(missing_ok=True)  # its damage
        (folder / f"{uid}.{suffix}").unlink()
    listed = {**current} | {uid: recorded[uid] for uid in unlisted if uid in recorded}
    if listed != recorded:
        (folder / "manifest.json").unlink(missing_ok=True)  # it describes another list
        write_text(path, json.dumps(listed))  # last: a kill before it leaves nothing wrong
    return unlisted


def save(path: Path, feature: torch.Tensor) -> None:
    """Write one clip's tensor as .npy or .pt, whole or not at all."""
    with atomic_path(path) as temporary:
        if path.suffix == ".npy":
            np.save(temporary, feature.numpy())
        else:
            with open(temporary, "wb") as file:  # a path's name would stand in the file
                torch.save(feature, file)
