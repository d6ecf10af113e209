"""EgoMCQ: a narration and five clips; which of them does it describe.

Every distinct clip is read and encoded once. A model without a fusion encoder is scored by its dual encoder alone, by
the cosine and by the plain dot product. The fusion score needs a pass for each pair of question and clip, but the
unfused half of the video side depends on the clip alone: it is computed once and serves all questions of the clip.
Pairs are scored together with their clip, so that few clips are in memory.

Source: EgoVLP (arXiv 2206.01670), section 5.
"""
from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from egokit.config.schema import Config
from egokit.data import annotation_json
from egokit.data.annotation_json import CHOICES
from egokit.data.annotation_tables import classes_of
from egokit.data.loader import Samples
from egokit.data.site_checks import EGOMCQ, PREP, Checks, Finding
from egokit.data.video import clips, frame_sampling
from egokit.model.dual import dot_product, similarity
from egokit.model.input_checks import in_few_numbers, rounded_up
from egokit.runs.ledger import Result
from egokit.tasks import class_names, metrics
from egokit.tasks.multiple_choice import ChoiceTask
from egokit.tasks.published.egomcq import PEERS

PAIR_FRAMES = 16  # see `EgoMCQ.pairs_at_once`
PUBLISHED = {("ensemble", "inter"): 91.0, ("ensemble", "intra"): 60.9}


def clip_key(clip: dict) -> tuple[str, float, float]:
    """Return what identifies a clip of egomcq.json: video_uid, start and end in seconds."""
    return clip["video_uid"], float(clip["clip_start"]), float(clip["clip_end"])


def tags_of(clip: dict, tag: str) -> list[int]:
    """Return the "verb" or "noun" classes that a clip or a narration of egomcq.json is tagged with."""
    return classes_of(clip.get(f"tag_{tag}", []))


class DistinctClips(Samples):
    """Test samples: each clip once, however many questions it belongs to."""

    def __init__(self, task: EgoMCQ):
        self.task = task
        self.chunked = task.require_file("Ego4D_Chunked")
        super().__init__(len(task.clips), task.config.seed, train=False)

    def read(self, index: int, rng) -> dict:
        uid, start, stop = self.task.clips[index]
        data = self.task.config.data

        def pick(first: int, last: int) -> np.ndarray:
            return frame_sampling.sample_frames(first, last, data.eval_frames)

        pixels = clips.read_chunked(self.chunked / uid, start, stop, pick, self.task.config.site.chunk_seconds,
                                    data.reader)
        return {"video": self.task.transform(pixels, None), "index": index}


class EgoMCQ(ChoiceTask):
    """Multiple-choice questions, scored by dual encoder, fusion encoder and their sum.

    A model without a fusion encoder has the scores "dual" and "dot", which is LaViLa's: the dot product of embeddings
    that are not normalised.

    Attributes:
        types: (questions,) 1 for inter-video, 2 for intra-video.
        verb_only: (questions,) bool: all five clips share their nouns, so only the verb, which is the order of frames,
            decides.
        clips: the distinct clips, by `clip_key`; `entries` are their dicts of egomcq.json.
        pairs_of: number of a clip -> its pairs, each question * 5 + choice.
    """
    notebook = "05_egomcq"
    sections: ClassVar = {"evaluate": "egomcq"}
    title = "EgoMCQ"
    recipe, recipe_sha256, samples, unit = "egomcq", "ec7677c0c581", 39751, "questions"
    published: ClassVar = [  # EgoVLPv2 (ICCV 2023), table 2
        Result(f"EgoMCQ {kind.replace('_', '-')}{'' if kind == 'verb_only' else '-video'}, {score}", "egomcq",
               f"{score}_{kind}", PUBLISHED.get((score, kind)), "EgoVLPv2.pth",
               "inter" if kind == "verb_only" else kind, f"{score}.{kind}", (score, kind) in PUBLISHED,
               source="EgoVLPv2's paper, table 2")
        for score in ("dual", "fusion", "ensemble") for kind in ("inter", "intra", "verb_only")]
    peers = PEERS
    figures = ("questions-egomcq.png",)
    best = "ensemble_intra"
    meanings: ClassVar = {"dual": "cosine", "fusion": "matching probability", "ensemble": "their sum",
                          "dot": "dot product"}
    partly_relevant = "the same verb or the same noun"
    rows_per_sample = CHOICES  # a sample is a question, a row its pair with one clip

    def __init__(self, config):
        super().__init__(config)
        questions = annotation_json.read_egomcq(self.require_file("egomcq.json"))
        questions = self.questions = questions[:self.limited(len(questions))]
        self.texts = [question["query"]["clip_text"] for question in questions]
        choices = [[question["choices"][str(c)] for c in range(CHOICES)] for question in questions]
        self.answers = np.array([int(question["answer"]) for question in questions])
        self.types = np.array([int(question["types"]) for question in questions])
        nouns = [{frozenset(tags_of(clip, "noun")) for clip in five} for five in choices]
        self.verb_only = np.array([len(sets) == 1 and sets != {frozenset()} for sets in nouns])
        self.kinds = [[{1: "inter-video", 2: "intra-video"}[kind], *(["verb-only"] if verb_only else [])]
                      for kind, verb_only in zip(self.types, self.verb_only, strict=True)]
        entry_of = {clip_key(clip): clip for five in choices for clip in five}
        self.clips = sorted(entry_of)
        self.entries = [entry_of[key] for key in self.clips]
        number = {key: v for v, key in enumerate(self.clips)}
        self.choices = np.array([[number[clip_key(clip)] for clip in five] for five in choices])
        self.pairs_of = collections.defaultdict(list)
        for pair, v in enumerate(self.choices.flat):
            self.pairs_of[int(v)].append(pair)

    def dataset(self, split: str) -> DistinctClips:
        return DistinctClips(self)

    def score_batch(self, model, batch: dict) -> dict[str, np.ndarray]:
        """Score all pairs of a batch's clips.

        Returns:
            "index" (question * 5 + choice), "dual" and what else `_kinds` names, a row for each pair.
        """
        parts = list(self._scored(model, [batch]))
        if not parts:  # no question asks for these clips
            return {"index": np.zeros(0, int)} | dict.fromkeys(self._kinds(model), np.zeros(0, np.float32))
        return {key: np.concatenate([rows[key] for rows in parts]) for key in parts[0]}

    def score_batches(self, model, batches: Iterable[dict]) -> Iterator[dict[str, np.ndarray]]:
        if type(self).score_batch is not EgoMCQ.score_batch:  # a derived task scores each batch in its own way
            return super().score_batches(model, batches)
        return self._scored(model, batches)

    @staticmethod
    def _kinds(model) -> tuple[str, str]:
        return ("dual", "fusion" if model.fuses else "dot")

    def _scored(self, model, batches: Iterable[dict]) -> Iterator[dict[str, np.ndarray]]:
        """Yield rows as `score_batch` returns them, each pair's once.

        On a GPU the fused layers compute parts of one size. Pairs that are too few for one wait, with their clips'
        states, for those of the next batch; the last part is padded. On a CPU padding only costs.
        """
        on_gpu, waiting, kept = model.device.type == "cuda", [], ()
        for batch in batches:
            T, clips = batch["video"].shape[1], batch["index"].tolist()
            size, first = self.pairs_at_once(T, model.device), len(kept[0]) if kept else 0
            # in order of questions: pairs that share a question are neighbours, and its text is encoded once
            pairs = sorted(waiting + [(pair, b) for b, clip in enumerate(clips, first) for pair in self.pairs_of[clip]])
            full = len(pairs) // size * size if on_gpu else len(pairs)
            # before the clips are embedded, because moving tokens to a GPU waits until it is idle
            parts = [self._texts(model, pairs[at:min(at + size, full)], size) for at in range(0, full, size)]
            frames = model.normalise(batch["video"])
            clips = model.embed_video(frames), *([model.fusion_trunk(frames)] if model.fuses else [])
            kept = tuple(torch.cat(both) for both in zip(kept, clips, strict=True)) if waiting else clips
            del clips, frames
            if parts:
                yield self._rows([self._score_part(model, part, T, *kept) for part in parts], self._kinds(model))
            of_waiting = sorted({b for _, b in pairs[full:]})
            waiting = [(pair, of_waiting.index(b)) for pair, b in pairs[full:]]
            kept = tuple(x[of_waiting] for x in kept) if waiting else ()
        if waiting:
            part = self._texts(model, waiting, size)
            yield self._rows([self._score_part(model, part, T, *kept)], self._kinds(model))

    def pairs_at_once(self, frames: int, device: torch.device) -> int:
        """Return how many pairs go through the fused layers at once.

        On a GPU it is as many as have the frames of evaluate.batch_size clips of PAIR_FRAMES frames: the texts' small
        products then take hardly any of the time, and the memory is the same for any number of frames.
        """
        clips = self.config.evaluate.batch_size
        return max(1, clips * PAIR_FRAMES // frames) if device.type == "cuda" else clips

    def _texts(self, model, pairs: list[tuple[int, int]], size: int) -> tuple:
        """Return what `_score_part` needs of a part's pairs: their numbers, clips, and the tokens of their questions.

        On a GPU, pairs are padded to `size`, and questions to a multiple of its quarter, by repeating the last one.
        """
        index, own = np.array(pairs).T
        added = rounded_up(len(index), model.device, size) - len(index)
        questions, question_P = np.unique(np.pad(index, (0, added), mode="edge") // CHOICES, return_inverse=True)
        texts = in_few_numbers([self.texts[q] for q in questions], model.device, -(-size // 4))
        tokens = model.tokens(texts, self.config.data.eval_max_tokens)
        own_P = np.pad(own, (0, added), mode="edge")
        return index, *(torch.from_numpy(x).to(model.device) for x in (own_P, question_P)), tokens

    def _score_part(self, model, part: tuple, frames: int, video_BE: Tensor, trunk_BSD: Tensor | None = None) -> tuple:
        """Return a part's pair numbers, and both scores of each as `_kinds` names them, still on the device."""
        index, own_P, question_P, tokens = part
        if trunk_BSD is None:
            text_BE = model.embed_text(tokens)
            return index, *(kind(text_BE, video_BE)[question_P, own_P] for kind in (similarity, dot_product))
        words, mask = model.text_trunk(tokens)[question_P], tokens["attention_mask"][question_P]
        states = model.fuse(trunk_BSD[own_P], words, mask, frames, "itm")
        fusion_P = model.itm_from_states(*states).float().softmax(-1)[:, 1]
        return index, similarity(model.embed_text(tokens), video_BE)[question_P, own_P], fusion_P

    def _rows(self, parts: list[tuple], kinds: tuple[str, str]) -> dict[str, np.ndarray]:
        """Return the rows of parts, without what was padded."""
        cut = [(index, *(x[:len(index)].cpu().numpy() for x in scores)) for index, *scores in parts]
        return self.require_finite({key: np.concatenate(values) for key, values in
                                    zip(("index", *kinds), zip(*cut, strict=True), strict=True)})

    def require_finite(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the rows, or raise a ValueError that names a score of NaN or Inf.

        argmax would take the first NaN for the highest score.
        """
        for name in [name for name in ("dual", "fusion", "dot") if name in rows]:
            for place in np.flatnonzero(~np.isfinite(rows[name]))[:1]:
                q, c = divmod(int(rows["index"][place]), CHOICES)
                uid, start, stop = self.clips[self.choices[q, c]]
                raise ValueError(f"question {q}, choice {c}: the {name} score is {rows[name][place]}, "
                                 f"of {self.texts[q]!r} and clip {uid} {start:.2f}-{stop:.2f} s "
                                 f"(evaluate.precision {self.config.evaluate.precision})")
        return rows

    def tables(self) -> list[Path]:
        return [self.require_file("egomcq.json")]

    def chance(self) -> dict[str, float]:
        return metrics.chance(metrics.egomcq, (len(self.texts), CHOICES), self.answers, self.types, draws=500)

    def score_matrix(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the (questions, 5) scores of "dual", "fusion" and "ensemble", which is their sum; or "dual", "dot"."""
        out = {name: rows[name].reshape(-1, CHOICES) for name in ("dual", "fusion", "dot") if name in rows}
        return out | ({"ensemble": out["dual"] + out["fusion"]} if "fusion" in out else {})

    def score_of(self, metrics: dict[str, float]) -> str:
        return self.best if self.best in metrics else "dual_intra"

    def describe_clip(self, v: int) -> str:
        clip = self.entries[v]
        return f"{clip.get('clip_text', 'a clip')} ({clip['clip_start']:.1f} to {clip['clip_end']:.1f} s)"

    def query_tags(self) -> dict[str, list[list[str]]]:
        """Return the kinds of the questions, and the verbs and nouns that their narrations are tagged with."""
        return super().query_tags() | {tag: class_names.typical_words(
            [tags_of(question["query"], tag) for question in self.questions], self.texts) for tag in ("verb", "noun")}

    def relevancy_to(self, text: str) -> np.ndarray | None:
        """Return 1 for each clip with the verb and the noun class of a narration, 1/2 for one of the two."""
        query = next((question["query"] for question in self.questions if question["query"]["clip_text"] == text), {})
        wanted = {tag: set(tags_of(query, tag)) for tag in ("verb", "noun")}
        if not all(wanted.values()):
            return None
        return np.array([[bool(wanted[tag] & set(tags_of(clip, tag))) for tag in wanted] for clip in self.entries]
                        ).mean(1)

    def metrics(self, rows: dict[str, np.ndarray], prompts_KE) -> dict[str, float]:
        """Return the accuracies of each score in %.

        Returns:
            "<score>_inter", "<score>_intra" and, if there are such questions, "<score>_verb_only", for the scores
            that `score_matrix` has.
        """
        out = {}
        for name, scores in self.score_matrix(rows).items():
            out |= {f"{name}_{kind}": value for kind, value in metrics.egomcq(scores, self.answers, self.types).items()}
            if self.verb_only.any():
                out[f"{name}_verb_only"] = metrics.accuracy(scores, self.answers, self.verb_only)
        return out

    def per_query(self, rows: dict[str, np.ndarray], prompts_KE) -> dict[str, list[np.ndarray]]:
        """Return 100 for each question that is answered rightly and 0 for the others, for each of the metrics."""
        chosen = {"inter": self.types == 1, "intra": self.types == 2, "verb_only": self.verb_only}
        return {f"{name}_{kind}": [100.0 * (scores.argmax(1) == self.answers)[chosen_Q]]
                for name, scores in self.score_matrix(rows).items() for kind, chosen_Q in chosen.items()
                if chosen_Q.any()}

    @classmethod
    def inputs(cls, config: Config, action: str) -> dict[str, str]:
        return {"egomcq.json": EGOMCQ, "Ego4D_Chunked": PREP}

    @classmethod
    def check_site(cls, checks: Checks) -> Iterator[Finding]:
        """Check egomcq.json, and its clips against the prepared Ego4D videos."""
        part, path = "EgoMCQ", checks.root / "egomcq.json"
        table = checks.check_file(part, path, EGOMCQ)
        yield table
        if table.state == "ok":
            yield from checks.each(part, path.name, cls._check_questions(checks, part, path))

    @classmethod
    def _check_questions(cls, checks: Checks, part: str, path: Path) -> Iterator[Finding]:
        """Check the questions, and their clips against the videos."""
        questions = annotation_json.read_egomcq(path)
        clips = [clip_key(clip) for question in questions for clip in question["choices"].values()]
        types = collections.Counter(int(question["types"]) for question in questions)
        yield Finding(part, "questions", "ok",
                      f"{len(questions):,} ({types[1]:,} inter-video, {types[2]:,} intra-video)")
        yield from checks.check_rows(part, "choices", [uid for uid, _, _ in clips], checks.root / "Ego4D_Chunked",
                                     checks.prep_ego4d, [stop for _, _, stop in clips])
