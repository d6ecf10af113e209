"""TaskTools: what every task can use in its methods; a task's own file need not know more of egokit than this."""
from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from egokit.config.access import exists
from egokit.config.schema import Config
from egokit.data.loader import stack
from egokit.data.site_checks import missing_file
from egokit.data.video import transforms
from egokit.model.dual import Dual
from egokit.model.text_encoder import Tokenizer, load_tokenizer
from egokit.train import distributed
from egokit.train.gradient_cache import by_micro_batches
from egokit.train.parts import Part, similarity_part


class TaskTools:
    """Base of `Task`, which gives `inputs`, `needs_fusion`, `embed_video`, `clips_per_sample` and `fixed_length`.

    Attributes:
        config: the resolved recipe.
        root: the data root.
    """
    config: Config
    root: Path

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The site's tokenizer, EgoVLPv2's, with which training encodes texts; a model's `tokens` has its own."""
        return load_tokenizer(self.config.site.tokenizer, fetch=True)

    def require_file(self, *parts: str) -> Path:
        """Return the path of a file under the data root, or raise an error that says the fix."""
        path = self.root.joinpath(*parts)
        if not exists(path):
            raise missing_file(path, self.inputs(self.config, "train"), self.config)
        return path

    def expect_fusion(self, model, action: str) -> None:
        """Raise FusionError if an action needs a fusion encoder that the model lacks; called before data is read."""
        if (what := self.needs_fusion(self.config, action)) and isinstance(model, Dual):
            model.require_fusion(what)

    def transform(self, frames_THWC: np.ndarray, rng: np.random.Generator | None) -> Tensor:
        """Crop and resize uint8 frames to (T, 3, size, size): at random with an rng."""
        size, data = self.config.model.image_size, self.config.data
        if rng is None:
            return transforms.evaluation(frames_THWC, size, data.eval_resize)
        return transforms.training(frames_THWC, size, data.crop_scale, data.flip, rng)

    def in_parts(self, function: Callable, *inputs: Tensor):
        """Return function(*inputs), computed train.micro_batch samples at a time.

        See `gradient_cache.by_micro_batches`: the function must neither mix rows nor talk to other ranks.
        """
        return by_micro_batches(function, self.config.train.micro_batch * self.clips_per_sample, *inputs)

    def own_embeddings(self, model, batch: dict) -> tuple[Tensor, Tensor]:
        """Return the video and text embeddings of this rank's batch, each (b, E), with gradients.

        Args:
            batch: this rank's "video" (b, T, 3, size, size) and "tokens".
        """
        def embed(frames: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
            # Texts first: the backward pass then frees the clips' activations before it makes the words' large gradient
            text_bE = model.embed_text({"input_ids": ids, "attention_mask": mask})
            return self.embed_video(model, frames), text_bE

        tokens = batch["tokens"]
        return self.in_parts(embed, batch["video"], tokens["input_ids"], tokens["attention_mask"])

    def similarity_part(self, model, batch: dict, counts: list[int] | None = None) -> Part:
        """Return the cosines of this rank's texts with all videos, and of its videos with all texts, with gradients.

        Args:
            batch: this rank's "video" (b, T, 3, size, size) and "tokens".
            counts: every rank's b, if known.
        """
        video_bE, text_bE = self.own_embeddings(model, batch)
        return similarity_part(text_bE, video_bE, counts)

    def embeddings(self, model, batch: dict, counts: list[int] | None = None) -> tuple[Tensor, Tensor]:
        """Return the video and text embeddings of the global batch, each (B, E), with gradients.

        For a loss on similarities, `similarity_part` takes less memory and arithmetic.

        Args:
            batch: this rank's "video" (b, T, 3, size, size) and "tokens".
            counts: every rank's b, if known.
        """
        video_bE, text_bE = self.own_embeddings(model, batch)
        return distributed.gather(video_bE, counts), distributed.gather(text_bE, counts)

    def cross_entropy(self, logits_bK: Tensor, class_b: Tensor) -> Tensor:
        """Return this rank's share of the mean cross-entropy of the global batch, times the number of ranks.

        Args:
            logits_bK: of this rank's samples; `class_b` are their classes.
        """
        total = F.cross_entropy(logits_bK.float(), class_b, reduction="sum")
        return total * distributed.world_size() / sum(distributed.sizes(len(class_b), class_b.device))

    def limited(self, length: int) -> int:
        """Return the number of samples to use: data.limit at most, if it is set."""
        return min(length, self.config.data.limit or length)

    def collate(self, items: list[dict]) -> dict:
        """Make a batch: tensors and arrays are stacked, numbers become a tensor, other values stay lists.

        "text" is also tokenised to "tokens": {"input_ids": (b, L), "attention_mask": (b, L)}.
        """
        return stack(items, lambda texts: self.tokenizer(texts, self.config.data.max_tokens, self.fixed_length))
