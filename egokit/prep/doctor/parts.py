"""The checks of each part of a site: the machine, the models, and the five data sets."""
from __future__ import annotations

import collections
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from egokit.config.schema import RANDOM
from egokit.data import annotation_json, relevancy
from egokit.data.annotation_tables import (
    EK100_ANNOTATIONS,
    charades_classes,
    charades_videos,
    ek100_annotations,
    read_metadata,
)
from egokit.data.egoclip_table import EgoClipTable
from egokit.data.video import open_video as video
from egokit.prep.doctor.finding import Checks, Finding
from egokit.prep.video import SetupError, ffmpeg

RELEASED = ("EgoVLPv2.pth", "EgoVLPv2_smallproj.pth", "EgoVLPv2_smallproj_epoch1.pth", "EK-100_finetune.pth",
            "Charades-Ego_finetune.pth")


class Examination(Checks):
    """All checks of a site: each method is a part of PARTS and yields its findings."""

    def machine(self) -> Iterator[Finding]:
        part = "machine"
        import torch
        devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Finding(part, "GPUs", "ok" if devices else "note",
                      ", ".join(devices) or "none: evaluation works, training is slow")
        try:
            yield Finding(part, "ffmpeg", "ok", ffmpeg())
        except SetupError as error:
            yield Finding(part, "ffmpeg", "missing", str(error))
        if self.root.is_dir():
            free = shutil.disk_usage(self.root).free / 1e9
            yield Finding(part, "disk", "ok" if free > 50 or self.site.toy else "note",
                          f"{free:,.0f} GB free under {self.root}")

    def models(self) -> Iterator[Finding]:
        part, tokenizer = "models", f"tokenizer {self.site.tokenizer}"
        from egokit.model.text_encoder import load_tokenizer
        try:
            yield Finding(part, tokenizer, "ok", f"{load_tokenizer(self.site.tokenizer).vocab_size:,} words")
        except FileNotFoundError as error:
            yield Finding(part, tokenizer, "missing", str(error).splitlines()[0], self.fix("tokenizer"))
        for key, source in (("site.vit", self.site.vit), ("site.roberta", self.site.roberta)):
            if source and source != RANDOM:
                local = Path(source).expanduser().exists()
                message = "found" if local else "no file: taken as a name, downloaded at the first use"
                yield Finding(part, f"{key}: {source}", "ok" if local else "note", message)
        if self.site.weights:
            folder = Path(self.site.weights).expanduser()
            absent = [name for name in RELEASED if not (folder / name).is_file()]
            message = f"{len(RELEASED) - len(absent)} of {len(RELEASED)} in {folder}"
            message += f"; not {', '.join(absent)}" if absent else ""
            yield Finding(part, "released checkpoints", "note" if absent else "ok", message,
                          self.fix("weights") if absent else "")

    def egoclip(self) -> Iterator[Finding]:
        part = "EgoClip"
        chunks = self.root / "Ego4D_Chunked"
        yield from self.check_prepared(part)
        path = self.root / "egoclip.csv"
        yield self.check_file(part, path, "EgoClip")
        if path.is_file():
            table = EgoClipTable(path, warn=False)
            yield Finding(part, "rows", "ok", f"{len(table):,} narrations of {len(table.videos):,} videos")
            if table.malformed:
                yield Finding(part, "rows", "note", f"{table.malformed:,} malformed rows are left out")
            video_of_row, stop = table.columns["video_uid"], np.zeros(len(table.videos))
            np.maximum.at(stop, video_of_row, table.columns["clip_end"])
            rows = np.bincount(video_of_row, minlength=len(table.videos))
            counts = dict(zip(table.videos, rows.tolist(), strict=True))
            ends = dict(zip(table.videos, stop.tolist(), strict=True))
            yield from self.check_rows(part, "rows", counts, chunks, "chunks", ends, self.chunked_seconds)

    def egomcq(self) -> Iterator[Finding]:
        part, path = "EgoMCQ", self.root / "egomcq.json"
        yield self.check_file(part, path, "EgoMCQ")
        if path.is_file():
            questions = annotation_json.read_egomcq(path)
            clips = [clip for question in questions for clip in question["choices"].values()]
            types = collections.Counter(int(question["types"]) for question in questions)
            yield Finding(part, "questions", "ok",
                          f"{len(questions):,} ({types[1]:,} inter-video, {types[2]:,} intra-video)")
            ends: dict[str, float] = {}
            for clip in clips:
                ends[clip["video_uid"]] = max(ends.get(clip["video_uid"], 0.0), float(clip["clip_end"]))
            yield from self.check_rows(part, "choices", collections.Counter(clip["video_uid"] for clip in clips),
                                       self.root / "Ego4D_Chunked", "chunks", ends, self.chunked_seconds)

    def ek100(self) -> Iterator[Finding]:
        part = "EK-100"
        folder = self.root / EK100_ANNOTATIONS
        videos = self.root / "EK100" / "video_ht256px"
        rates: collections.Counter = collections.Counter()
        yield self.check_file(part, videos, "EK videos", f"{len(list(videos.glob('P*/*.MP4'))):,} videos")
        for split in ("train", "test"):
            tables = [folder / f"EPIC_100_retrieval_{split}{kind}.csv" for kind in ("", "_sentence")]
            yield from (self.check_file(part, path, "EK annotations") for path in tables)
            if not all(path.is_file() for path in tables):
                continue
            clips, sentences = ek100_annotations(self.root, split)
            yield Finding(part, split, "ok", f"{len(clips):,} clips, {len(sentences):,} sentences")
            matrix_file, what = relevancy.relevancy_path(folder / "relevancy", split), f"relevancy of {split}"
            yield self.check_file(part, matrix_file, "derived")
            if matrix_file.is_file():
                try:
                    relevancy.check(matrix_file, (len(clips), len(sentences)))
                    yield Finding(part, what, "ok", f"{len(clips):,} x {len(sentences):,}")
                except ValueError as error:
                    yield Finding(part, what, "wrong", str(error),
                                  f"delete {matrix_file.name}, then {self.fix('derived')}")
            names = clips.participant_id + "/" + clips.video_id + ".MP4"
            ends = {name: max(times) for name, times in clips.stop_timestamp.groupby(names)}

            def seconds(name: str) -> float:
                opened = video.open_video(videos / name, self.config.data.reader)
                rates[round(opened.fps, 2)] += 1
                return opened.length / opened.fps
            yield from self.check_rows(part, f"clips of {split}", collections.Counter(names), videos, "EK videos",
                                       ends, seconds)
        if rates:
            message = ", ".join(f"{count} videos at {rate:g} a second" for rate, count in rates.most_common())
            yield Finding(part, "frame rates", "ok",
                          f"{message} (clips are found by their times at the file's own rate)")

    def charades(self) -> Iterator[Finding]:
        part = "Charades-Ego"
        folder = self.root / "CharadesEgo" / "CharadesEgo"
        videos = self.root / "CharadesEgo" / "CharadesEgo_v1_480"
        class_names = folder / "Charades_v1_classes.txt"
        yield self.check_file(part, videos, "Charades videos", f"{len(list(videos.glob('*.mp4'))):,} videos")
        yield self.check_file(part, class_names, "Charades annotations")
        for split in ("train", "test"):
            table = folder / f"CharadesEgo_v1_{split}_only1st.csv"
            yield self.check_file(part, table, "Charades annotations")
            if table.is_file() and class_names.is_file():
                ids, targets = charades_videos(table, charades_classes(class_names))
                yield Finding(part, split, "ok",
                              f"{len(ids):,} videos, {int((~targets.any(1)).sum()):,} of them without an action, "
                              f"{int(targets.any(0).sum())} of {targets.shape[1]} classes")
                counts = collections.Counter(f"{uid}.mp4" for uid in ids)
                yield from self.check_rows(part, f"videos of {split}", counts, videos, "Charades videos")
        for split in ("train", "val", "test"):
            yield self.check_file(part, folder / f"metadata_{split}.csv", "derived")
        if (folder / "metadata_train.csv").is_file():
            rows = read_metadata(folder / "metadata_train.csv")
            ends = {f"{uid}.mp4": stop for uid, stop in rows.groupby("id").t_end.max().items()}
            yield from self.check_rows(part, "training segments", collections.Counter(rows.id + ".mp4"), videos,
                                       "Charades videos", ends, lambda name: self.video_seconds(videos / name))

    def egomq(self) -> Iterator[Finding]:
        part, folder = "EgoMQ", self.root / "Ego4D_256"
        counts: collections.Counter = collections.Counter()
        ends: dict[str, float] = {}
        for split in annotation_json.SPLITS:
            path = self.root / f"moments_{split}.json"
            yield self.check_file(part, path, "moments")
            if path.is_file():
                for clip in annotation_json.read_moments(path):
                    name = f"{clip['video_uid']}.mp4"
                    counts[name] += 1
                    ends[name] = max(ends.get(name, 0.0), clip["stop"])
        if counts:
            yield Finding(part, "clips", "ok", f"{sum(counts.values()):,} of {len(counts):,} videos")
            yield from self.check_rows(part, "clips", counts, folder, "chunks", ends,
                                       lambda name: self.video_seconds(folder / name))
