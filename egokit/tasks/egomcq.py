"""EgoMCQ: which of five clips does a narration describe? Source: EgoVLP (arXiv 2206.01670), section 5.

Every distinct clip is read and encoded once. The fusion score needs a pass for each pair of question and clip, but the
unfused half of the video depends on the clip alone: it is computed once and serves all the clip's questions, which come
with their clip, so that only one batch of clips is in memory.
"""
from __future__ import annotations

import collections
from pathlib import Path

import numpy as np

from egokit.data import annotation_json
from egokit.data.annotation_json import CHOICES
from egokit.data.annotation_tables import classes_of
from egokit.data.loader import Samples
from egokit.data.video import clips, frame_sampling
from egokit.data.video.frame_sampling import evenly_spaced
from egokit.data.video.transforms import normalise
from egokit.model.egovlp import similarity
from egokit.model.input_checks import of_few_lengths, rounded_up
from egokit.tasks import metrics
from egokit.tasks.base import WATCHED, Task


def clip_key(clip: dict) -> tuple:
    return clip["video_uid"], float(clip["clip_start"]), float(clip["clip_end"])


class DistinctClips(Samples):
    def __init__(self, task: EgoMCQ):
        self.task = task
        self.chunked = task.require_file("Ego4D_Chunked")
        super().__init__(len(task.clips), task.config.seed, train=False)

    def read(self, index: int, rng) -> dict:
        uid, start, stop = self.task.clips[index]
        data = self.task.config.data
        pixels = clips.read_chunked(self.chunked / uid, start, stop,
                                    lambda first, last: frame_sampling.sample_frames(first, last, data.eval_frames),
                                    self.task.config.site.chunk_seconds, data.reader)
        return {"video": self.task.transform(pixels, None), "index": index}


class EgoMCQ(Task):
    best = "ensemble_intra"
    uses_fusion = True
    rows_per_sample = CHOICES  # a sample is a question, a row its pair with one clip

    def __init__(self, config):
        super().__init__(config)
        questions = annotation_json.read_egomcq(self.require_file("egomcq.json"))
        questions = self.questions = questions[:self.limited(len(questions))]
        self.texts = [question["query"]["clip_text"] for question in questions]
        self.choices = [[question["choices"][str(c)] for c in range(CHOICES)] for question in questions]
        self.answers = np.array([int(question["answer"]) for question in questions])
        self.types = np.array([int(question["types"]) for question in questions])
        # all five share their nouns: only the verb, that is the order of frames, decides
        nouns = [{frozenset(classes_of(clip.get("tag_noun", []))) for clip in five} for five in self.choices]
        self.verb_only = np.array([len(sets) == 1 and sets != {frozenset()} for sets in nouns])
        self.clips = sorted({clip_key(clip) for five in self.choices for clip in five})
        self.number = {key: i for i, key in enumerate(self.clips)}
        self.pairs_of = collections.defaultdict(list)  # clip -> [question * 5 + choice]
        for q, five in enumerate(self.choices):
            for c, clip in enumerate(five):
                self.pairs_of[self.number[clip_key(clip)]].append(q * CHOICES + c)

    def dataset(self, split: str) -> DistinctClips:
        return DistinctClips(self)

    def score_batch(self, model, batch: dict) -> dict[str, np.ndarray]:
        """Rows of question-and-choice pairs: 'index' = question * 5 + choice, 'dual' cosine, 'fusion' probability."""
        frames = normalise(batch["video"])
        video_BE, trunk = model.embed_video(frames), model.fusion_trunk(frames)
        # by question: those of a batch's clips that share one are neighbours, and so its text is encoded once for them
        pairs = sorted((pair, b) for b, clip in enumerate(batch["index"].tolist()) for pair in self.pairs_of[clip])
        rows: dict[str, list] = {"index": [], "dual": [], "fusion": []}
        size = self.config.evaluate.batch_size
        for at in range(0, len(pairs), size):
            index, own = np.array(pairs[at:at + size]).T
            n = len(index)
            index, own = (np.pad(x, (0, rounded_up(n, model.device) - n), mode="edge") for x in (index, own))  # cut off again below
            questions, asked = np.unique(index // CHOICES, return_inverse=True)
            questions = np.pad(questions, (0, rounded_up(len(questions), model.device) - len(questions)), mode="edge")
            longest = self.config.data.eval_max_tokens
            tokens = of_few_lengths(model.tokens([self.texts[q] for q in questions], longest), longest)
            states = model.fuse(trunk[own], model.text_trunk(tokens)[asked], tokens["attention_mask"][asked], frames.shape[1], "itm")
            rows["fusion"].append(model.itm_from_states(*states).float().softmax(-1)[:n, 1].cpu().numpy())
            rows["dual"].append(similarity(model.embed_text(tokens), video_BE).cpu().numpy()[asked[:n], own[:n]])
            rows["index"].append(index[:n])
        return self.finite({key: np.concatenate(parts) for key, parts in rows.items()})

    def finite(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The rows, or an error: of scores that are not numbers, the first would be taken for the highest."""
        for name in ("dual", "fusion"):
            for place in np.flatnonzero(~np.isfinite(rows[name]))[:1]:
                q, c = divmod(int(rows["index"][place]), CHOICES)
                uid, start, stop = clip_key(self.choices[q][c])
                raise ValueError(f"question {q}, choice {c}: the {name} score is {rows[name][place]}, of {self.texts[q]!r} and clip {uid} "
                                 f"{start:.2f}-{stop:.2f} s (evaluate.precision {self.config.evaluate.precision})")
        return rows

    def num_rows(self) -> int:
        """Rows that a complete evaluation has."""
        return len(self.texts) * CHOICES

    def tables(self) -> list[Path]:
        return [self.require_file("egomcq.json")]

    def chance(self) -> dict[str, float]:
        return metrics.chance(metrics.egomcq, (len(self.texts), CHOICES), self.answers, self.types, draws=500)

    def score_matrix(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Rows -> (questions, 5) for dual, fusion and ensemble."""
        out = {name: rows[name].reshape(-1, CHOICES) for name in ("dual", "fusion")}
        return out | {"ensemble": out["dual"] + out["fusion"]}

    def predictions(self, rows: dict[str, np.ndarray], prompts_KE) -> list[dict]:
        """Questions of both kinds with the ensemble's five scores."""
        scores_Q5 = self.score_matrix(rows)["ensemble"]
        return [{"text": self.texts[q], "clips": [self.number[clip_key(clip)] for clip in self.choices[q]],
                 "scores": scores_Q5[q].astype(float).round(4).tolist(),
                 "relevancy": (np.arange(CHOICES) == self.answers[q]).astype(int).tolist()}
                for q in evenly_spaced(np.argsort(self.types, kind="stable"), WATCHED)]

    def metrics(self, rows: dict[str, np.ndarray], prompts_KE) -> dict[str, float]:
        out = {}
        for name, scores in self.score_matrix(rows).items():
            out |= {f"{name}_{kind}": value for kind, value in metrics.egomcq(scores, self.answers, self.types).items()}
            if self.verb_only.any():
                out[f"{name}_verb_only"] = metrics.accuracy(scores, self.answers, self.verb_only)
        return out
