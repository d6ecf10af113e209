"""What every task shares: its tokenizer, its transforms, where its files are, how items become a batch."""
from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from egokit.config.build import ConfigError
from egokit.config.schema import Config
from egokit.data.video import open_video, transforms
from egokit.model.text_encoder import load_tokenizer
from egokit.runs.run_folder import Run
from egokit.train import distributed
from egokit.train.gradient_cache import by_micro_batches

RENAMED = {"score": "score_batch", "scores": "score_matrix", "expected": "num_rows", "keep": "save_outputs",
           "rows_in_sample": "rows_per_sample", "clips_in_sample": "clips_per_sample"}  # earlier names
WATCHED = 4  # held-out samples that the training view shows


class Task:
    """Subclasses give: dataset(split), loss(model, batch, step), prompts(), score(model, batch), metrics(rows, prompts).

    best: the metric that chooses the best checkpoint. uses_fusion: whether the loss trains the fusion encoder; if not, its
    parameters are left as they are. fixed_length: whether training pads all texts to data.max_tokens, as it does on a GPU, where
    every new shape costs time, or to the longest of a batch. clips_per_sample: rows of a batch's video for each sample.
    rows_per_sample: rows of its scores. published: of a task that is a user's file, the metrics that the ledger shows, each with
    its published number, or None where there is none.
    """
    best = ""
    published: ClassVar[dict[str, float | None]] = {}
    uses_fusion = False
    fixed_length = False
    clips_per_sample = 1
    rows_per_sample = 1

    def __init_subclass__(cls):
        for old, new in RENAMED.items():
            if old in vars(cls):
                raise ConfigError(f"{cls.__name__}.{old} is called {new} now: rename it, or nothing calls it")

    def __init__(self, config: Config):
        self.config = config
        self.root = Path(config.site.root)
        self.tokenizer = load_tokenizer(config.site.tokenizer)
        open_video.import_reader(config.data.reader)

    # to be given by a task
    def dataset(self, split: str):
        raise NotImplementedError(f"{type(self).__name__} has no {split} samples")

    def loss(self, model, batch: dict, step: int) -> dict[str, Tensor]:
        """Named terms; their sum is minimised. What takes memory is computed by `in_parts`."""
        raise NotImplementedError(f"{type(self).__name__} is evaluated, not trained")

    def prompts(self) -> list[str]:
        """Texts that every sample is compared with; encoded once."""
        return []

    def score_batch(self, model, batch: dict) -> dict[str, np.ndarray]:
        """Rows of one batch: arrays of one length, among them 'index', unique over the data set."""
        raise NotImplementedError(f"{type(self).__name__} has no scores")

    def metrics(self, rows: dict[str, np.ndarray], prompts_KE: np.ndarray | None) -> dict[str, float]:
        raise NotImplementedError(f"{type(self).__name__} has no metrics")

    def predictions(self, rows: dict[str, np.ndarray], prompts_KE: np.ndarray | None) -> list[dict]:
        """What the model says now about WATCHED samples, always the same ones, for log.jsonl: text, clips (numbers of the data set),
        their scores and relevancy (1: right)."""
        return []

    def num_rows(self) -> int:
        """Rows that a complete evaluation has."""
        return len(self.dataset("test"))

    def tables(self) -> list[Path]:
        """Annotation files that the metrics depend on."""
        return []

    def save_outputs(self, run: Run, section: str, rows: dict[str, np.ndarray], prompts_KE: np.ndarray | None) -> None:
        """What an evaluation leaves in the run folder beside its metrics."""
        run.write_rows(section, rows, prompts_KE)

    def chance(self) -> dict[str, float]:
        """What random scores give on the same labels."""
        return {}

    def validation(self) -> Task:
        """The task that is scored between epochs."""
        return self

    # shared
    def require_file(self, *parts: str) -> Path:
        """An annotation file under the root, or an error that says what makes it."""
        path = self.root.joinpath(*parts)
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing (site {self.config.site.name!r}, task {self.config.task!r}); "
                                    "run notebook 01_data_prep for this site, or correct 'site.root' in its file")
        return path

    def transform(self, frames_THWC: np.ndarray, rng: np.random.Generator | None) -> Tensor:
        """uint8 frames -> uint8 (T, 3, size, size); the random crop with an rng, else the centre crop."""
        size, data = self.config.model.image_size, self.config.data
        if rng is None:
            return transforms.evaluation(frames_THWC, size, data.eval_resize)
        return transforms.training(frames_THWC, size, data.crop_scale, data.flip, rng)

    def in_parts(self, function, *inputs: Tensor):
        """function(*inputs), train.micro_batch samples at a time; see microbatch.by_micro_batches."""
        return by_micro_batches(function, self.config.train.micro_batch * self.clips_per_sample, *inputs)

    def embeddings(self, model, batch: dict, counts: list[int] | None = None) -> tuple[Tensor, Tensor]:
        """Video and text embeddings, each (B, E), of the global batch, with gradients; `counts` are the ranks' rows, if known."""
        def embed(frames: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
            # texts first: on the way back, the gradient of all words of the vocabulary comes when the clips' activations are gone
            text_bE = model.embed_text({"input_ids": ids, "attention_mask": mask})
            return model.embed_video(transforms.normalise(frames)), text_bE

        video_bE, text_bE = self.in_parts(embed, batch["video"], batch["tokens"]["input_ids"], batch["tokens"]["attention_mask"])
        return distributed.gather(video_bE, counts), distributed.gather(text_bE, counts)

    def limited(self, length: int) -> int:
        return min(length, self.config.data.limit) if self.config.data.limit else length

    def collate(self, items: list[dict]) -> dict:
        """Stack 'video', tokenise 'text' to 'tokens', tensors for numbers; other values stay lists."""
        batch: dict = {}
        for key in items[0]:
            values = [item[key] for item in items]
            if key == "text":
                batch["tokens"] = self.tokenizer(values, self.config.data.max_tokens, self.fixed_length)
                batch["text"] = values
            elif isinstance(values[0], Tensor):
                batch[key] = torch.stack(values)
            elif isinstance(values[0], np.ndarray):
                batch[key] = torch.from_numpy(np.stack(values))
            else:
                batch[key] = torch.tensor(values) if isinstance(values[0], (int, float)) else values
        return batch


def cosine(one_BE: np.ndarray, other_KE: np.ndarray) -> np.ndarray:
    """(B, E) x (K, E) -> (B, K)"""
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-8) for x in (one_BE, other_KE)]
    return unit[0] @ unit[1].T
