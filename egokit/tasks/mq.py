"""EgoMQ (moment queries): features of the clips of moments_*.json, and a head that detects activities in them.

Source: Ego4D's moment queries; the head is ActionFormer's kind (model/moment_head.py).
"""
import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import nn

from egokit.config.schema import Config, Scored
from egokit.data import annotation_json
from egokit.data.site_checks import Checks, Finding
from egokit.model.feature_model import FeatureModel
from egokit.runs.files import write_text
from egokit.runs.ledger import Result
from egokit.runs.run_folder import Run
from egokit.tasks.clip_features import ClipFeatures
from egokit.tasks.feature_files import Clip
from egokit.tasks.moment_task import Entry, HeadParams, MomentTask
from egokit.tasks.moments import mq_annotations, mq_metrics, mq_results, segments
from egokit.tasks.moments.mq_results import Rows
from egokit.train import distributed

KEPT = mq_results.KEPT
PUBLISHED = {  # mean mAP on val by features and head: EgoVLPv2's and EgoVLP's READMEs, actionformer_release, OpenTAD
    "EgoVLPv2, VSGN": 12.23, "EgoVLP, VSGN": 11.39, "EgoVLP, ActionFormer": 20.60, "EgoVLP, OpenTAD": 22.13,
    "InternVideo, OpenTAD": 27.52}
AT = {0.1: 17.58, 0.3: 11.92, 0.5: 6.90}  # EgoVLPv2 with VSGN, at a tIoU


class EgoMQ(MomentTask, ClipFeatures):
    """Extracts features, and trains and scores a head that detects activities; 110 classes on the real data."""
    notebook = "06_egomq_features"
    sections: ClassVar = {"extract": "features", "train": "detection", "evaluate": "detection_scored"}
    title = "EgoMQ"
    recipe, recipe_sha256 = "egomq", "f1d8f7129efa"
    unit = "clips"
    best = "mAP"
    published: ClassVar = [
        Result("EgoMQ clips with features", "features", "clips", key="clips", in_ledger=False),
        *(Result(f"EgoMQ mean mAP ({whose})", section, "mAP", number, "EgoVLPv2.pth" if "v2" in whose else "", "mAP",
                 "" if section == "detection" else f"{section}.mAP")
          for section in ("detection", "detection_scored") for whose, number in PUBLISHED.items()),
        *(Result(f"EgoMQ mAP at tIoU {tiou} (EgoVLPv2, VSGN)", "detection", f"mAP_{tiou}", number, "EgoVLPv2.pth")
          for tiou, number in AT.items()),
        Result("EgoMQ recall at 1x, tIoU 0.5", "detection", "recall_1x_0.5", None, chance="recall_1x_0.5",
               in_ledger=False)]
    figures = ("detections.png", "detections-per-class.png")

    class Params(HeadParams, ClipFeatures.Params):
        postprocess: Scored[Literal["soft_nms", "original"]] = "soft_nms"  # soft-NMS within each class, or EgoVLPv2's:
                                                # NMS within each class, then soft-NMS over all of them

    def __init__(self, config: Config):
        super().__init__(config)
        self._clips: dict[str, dict] = {}

    def annotated(self, split: str) -> dict[str, mq_annotations.MQClip]:
        """Return the clips of "train", "val" or "test_unannotated" with their moments."""
        if split not in self._clips:
            path = self.require_file(annotation_json.list_of(split, self.config.task.feature_clips))
            self._clips[split] = mq_annotations.read_clips(path)
        return self._clips[split]

    @functools.cached_property
    def names(self) -> list[str]:
        """The names of the classes, in the order of the head's outputs."""
        return mq_annotations.class_names(self.annotated("train"), self.annotated("val"))

    @property
    def num_classes(self) -> int:
        return len(self.names)

    def modules(self, model) -> dict[str, nn.Module]:
        return {"classes": ClassNames(self.names)} if isinstance(model, FeatureModel) else {}

    def entries(self, split: str) -> list[Entry]:
        number = {name: place for place, name in enumerate(self.names)}
        splits = ["train"] if split == "train" else ["val", *(["test_unannotated"] * self.config.task.predict_test)]
        clips = [clip for each in splits for clip in self.annotated(each).values()
                 if clip.moments or each == "test_unannotated"]
        if split == "train" and distributed.rank() == 0 and (empty := mq_annotations.count_empty(clips)):
            print(f"train: {empty} moments have length 0: they claim no point, so nothing is learnt of them",
                  flush=True)
        return [Entry(Clip(clip.clip_uid, clip.video_uid, clip.start, clip.stop),
                      np.array([moment[:2] for moment in clip.moments]).reshape(-1, 2),
                      np.array([number[moment.label] for moment in clip.moments], np.int64)) for clip in clips]

    def found(self, entry: Entry, segments_N2, scores_N, classes_N) -> dict[str, np.ndarray]:
        """Return "detected" and "retrieved", (200, 4): start, stop, score and class; NaN after the last one."""
        wanted = np.isin(classes_N, entry.classes_M) if len(entry.classes_M) else np.ones(len(classes_N), bool)
        if self.config.task.postprocess == "original":
            rows = mq_results.suppress(Rows.of(segments_N2, scores_N, classes_N))
            order, lowered = segments.soft_nms_all(rows.segments, rows.scores, KEPT)
            detected = rows.segments[order], lowered, rows.labels[order]
            kept = np.argsort(-rows.scores, kind="stable")
            kept = kept[np.isin(rows.labels[kept].astype(int), classes_N[wanted])][:KEPT]
            retrieved = rows.segments[kept], rows.scores[kept], rows.labels[kept]
        else:
            own = self.config.task
            detected, retrieved = (
                segments.soft_nms(segments_N2[rows], scores_N[rows], own.sigma, own.least_score, KEPT, classes_N[rows])
                for rows in (slice(None), wanted))
        return {"detected": table(*detected), "retrieved": table(*retrieved)}

    def documents(self, rows: dict[str, np.ndarray], split: str) -> tuple[dict, dict, dict]:
        """Return the detection file, the retrieval file, and the clips of a split."""
        clips, names = self.annotated(split), np.array(self.names, object)
        files = []
        for key, write in (("detected", mq_results.detections), ("retrieved", mq_results.retrievals)):
            found = {}
            for index, part in zip(rows["index"], rows[key], strict=True):
                uid, part = self.dataset("test").entries[index].clip.uid, part[~np.isnan(part[:, 0])]
                if uid in clips:
                    found[uid] = Rows.of(part[:, :2], part[:, 2], names[part[:, 3].astype(int)])
            files.append(write(found, clips, None) if key == "detected" else write(found, clips))
        scored = {self.dataset("test").entries[index].clip.uid for index in rows["index"]}
        return *files, {uid: clip for uid, clip in clips.items() if uid in scored}

    def metrics(self, rows: dict[str, np.ndarray], prompts_KE) -> dict[str, float]:
        """Return mAP in % (the mean over tIoU, and at each), recall at k x in %, and counts."""
        detect, retrieve, clips = self.documents(rows, "val")
        return score(rows_of(detect), rows_of(retrieve), clips) | {
            "clips": len(clips), "moments": sum(len(clip.moments) for clip in clips.values()),
            "classes": len(self.names), "zero_length_moments": mq_annotations.count_empty(clips.values()),
            "untrained_classes": len(self.names) - len(mq_annotations.class_names(self.annotated("train")))} \
            | self.counts(rows, {*clips})

    def chance(self) -> dict[str, float]:
        """Return the metrics of 200 random moments a clip, with the training moments' lengths and classes."""
        clips = {uid: clip for uid, clip in self.annotated("val").items() if clip.moments}
        random = np.random.default_rng(0)
        seen = [moment for clip in self.annotated("train").values() for moment in clip.moments]
        found = {}
        for uid, clip in clips.items():
            drawn = [seen[number] for number in random.integers(len(seen), size=KEPT)]
            length = np.array([min(moment.stop - moment.start, clip.seconds) for moment in drawn])
            start = random.uniform(0, 1, KEPT) * (clip.seconds - length)
            found[uid] = Rows.of(np.stack([start, start + length], 1), random.permutation(KEPT) / KEPT,
                                 [moment.label for moment in drawn])
        return score(found, found, clips)

    def save_outputs(self, run: Run, section: str, rows: dict[str, np.ndarray], prompts_KE) -> None:
        """Write the validation split's result files and truth, and the test split's submission."""
        super().save_outputs(run, section, rows, prompts_KE)
        detect, retrieve, clips = self.documents(rows, "val")
        truth = {uid: {"video_uid": clip.video_uid, "start": clip.start, "stop": clip.stop,
                       "moments": [[*moment] for moment in clip.moments]} for uid, clip in clips.items()}
        for name, document in ((mq_results.DETECTION_FILE, detect), (mq_results.RETRIEVAL_FILE, retrieve),
                               (self.truth_name, {"task": "mq", "clips": truth}),
                               ("submission_val.json", mq_results.submission(detect, retrieve))):
            write_text(run.path / name, json.dumps(document))
        if self.config.task.predict_test:
            write_text(run.path / "submission.json",
                       json.dumps(mq_results.submission(*self.documents(rows, "test_unannotated")[:2])))

    @classmethod
    def check_site(cls, checks: Checks) -> Iterator[Finding]:
        """Check the moments_*.json, and their clips against the resized Ego4D videos."""
        part, clips = "EgoMQ", []

        def read(path: Path) -> Iterator[Finding]:
            clips.extend((clip["video_uid"], clip["stop"]) for clip in annotation_json.read_moments(path))
            yield from ()
        yield from checks.check_clip_lists(part, "moments_*.json", read, clips)


class ClassNames(nn.Module):
    """The classes of a head's outputs as a hash in its checkpoint: a head of as many others is not taken for this."""

    def __init__(self, names: list[str]):
        super().__init__()
        digest = hashlib.sha256(json.dumps(names).encode()).digest()
        self.register_buffer("digest", torch.tensor([*digest], dtype=torch.uint8))

    def _load_from_state_dict(self, state: dict, prefix: str, local, strict, missing, unexpected, errors: list) -> None:
        saved = state.get(f"{prefix}digest")
        if saved is not None and not torch.equal(saved.cpu(), self.digest.cpu()):
            errors.append("the head was trained on other classes than moments_train.json and moments_val.json have: "
                          "give it the annotations with which it was trained")
        super()._load_from_state_dict(state, prefix, local, strict, missing, unexpected, errors)


def score(detected: dict[str, Rows], retrieved: dict[str, Rows], clips: dict) -> dict[str, float]:
    """Return the metrics of both kinds of rows, in %."""
    precision = mq_metrics.mean_average_precision(detected, clips)
    recalls = mq_metrics.recall(retrieved, clips)
    out = {"mAP": 100 * float(precision["average_map"])}
    out |= {f"mAP_{tiou}": 100 * float(value) for tiou, value in zip(mq_metrics.TIOUS, precision["map"], strict=True)}
    return out | {f"recall_{k}x_{tiou}": 100 * float(value)
                  for tiou, row in zip(mq_metrics.RECALL_TIOUS, recalls, strict=True)
                  for k, value in zip(mq_metrics.KS, row, strict=True)}


def rows_of(document: dict) -> dict[str, Rows]:
    """Return the rows of a result file's content, by clip_uid."""
    return {uid: Rows.of(*([row[key] for row in rows] for key in ("segment", "score", "label")))
            for uid, rows in document["results"].items()}


def table(segments_N2, scores_N, classes_N) -> np.ndarray:
    """Return (200, 4): start, stop, score and class of each segment; NaN after the last one."""
    rows = np.full((KEPT, 4), np.nan)
    rows[:len(scores_N)] = np.column_stack([segments_N2, scores_N, np.asarray(classes_N, float)])
    return rows
