"""Peer: EgoVLP, LaViLa and AVION, which are a video encoder, a text encoder and two projections.

Shapes: B clips or texts, T frames, L tokens, D width, E embedding.
"""
import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from egokit.config.schema import ModelConfig
from egokit.data.video import transforms
from egokit.model.dual import Dual
from egokit.model.heads import build_projection
from egokit.model.input_checks import clips_at_once, in_parts
from egokit.model.peers.clip_blocks import ClipText
from egokit.model.peers.tokenizers import checked, padded, tokenizer_of
from egokit.model.peers.video_encoders import JointVideo, TimeSformer

NAMES = {"egovlp": "EgoVLP", "lavila": "LaViLa", "avion": "AVION"}
# of red, green and blue, 0..255. Red is CLIP's 0.4815 with a slip, 0.4248: LaViLa and AVION were trained with it
SLIPPED_MEAN, SLIPPED_STD = (108.3272985, 116.7460125, 104.0937362), (68.5005327, 66.6321579, 70.3231631)
MOST_POSITIONS = 1 << 20  # of a text or an image: memory is taken for them before the file's shapes are compared


@dataclasses.dataclass(frozen=True)
class PeerShape:
    """The shape of a peer's network, as its tensors tell it.

    Attributes:
        video: of the video encoder; `text` is of the text encoder, where image_size and the like mean nothing.
        embed_dim: E.
        from_clip: the video encoder is CLIP's descendant (LaViLa, AVION), not ViT's (EgoVLP, also as LaViLa's files
            have it).
        distilbert: the text encoder is DistilBERT, not CLIP's.
        image_matrix, text_matrix: that projection is a matrix, not EgoVLP's layers.
    """
    video: ModelConfig
    text: ModelConfig
    embed_dim: int
    from_clip: bool
    distilbert: bool
    image_matrix: bool
    text_matrix: bool

    @property
    def image_size(self) -> int:
        return self.video.image_size

    @property
    def frames(self) -> int:
        return self.video.frames

    def with_frames(self, frames: int) -> "PeerShape":
        """Return this shape with room for clips of so many frames."""
        return dataclasses.replace(self, video=dataclasses.replace(self.video, frames=frames))

    @property
    def tokenizer_key(self) -> str:
        """The key of the section `site` that names the tokenizer of its texts."""
        return "bert_tokenizer" if self.distilbert else "clip_tokenizer"


class Peer(Dual):
    """EgoVLP, LaViLa or AVION. `egokit.load` makes one from its file.

    Attributes:
        tokenizer_source: folder or name of the tokenizer, which is loaded at the first text.
    """

    def __init__(self, family: str, shape: PeerShape, tokenizer: str | None = None):
        """Build the network without weights.

        Args:
            family: a key of NAMES.
            tokenizer: a folder or name; None for the one that the family was trained with.
        """
        super().__init__()
        self.shape, self.family = shape, NAMES[family]
        self.image_size, self.frames = shape.image_size, shape.frames
        if shape.from_clip:
            self.mean, self.std = (tuple(value / 255 for value in values) for values in (SLIPPED_MEAN, SLIPPED_STD))
        else:
            self.mean, self.std = transforms.MEAN, transforms.STD
        self.tokenizer_source = tokenizer
        self.visual = JointVideo(shape.video) if family == "avion" else TimeSformer(shape.video, shape.from_clip)
        self.textual = distilbert(shape.text) if shape.distilbert else ClipText(shape.text, quick=family != "avion")
        for name, encoder, is_matrix in (("image", shape.video, shape.image_matrix),
                                         ("text", shape.text, shape.text_matrix)):
            setattr(self, f"{name}_projection", nn.Parameter(torch.zeros(encoder.width, shape.embed_dim)) if is_matrix
                    else build_projection(f"linear{shape.embed_dim}", encoder.width, text=name == "text"))

    @property
    def embed_dim(self) -> int:
        """E, the dimension of the embeddings."""
        return self.shape.embed_dim

    def tokens(self, texts: list[str], longest: int) -> dict[str, Tensor]:
        """Return the tokens of B texts, each (B, L), on the model's device, on a GPU of few lengths L.

        Args:
            longest: how many tokens of a text are kept; at most as many as there are positions.

        Raises:
            WeightsError: the tokenizer can't be had, or is not the model's.
        """
        tokenizer = tokenizer_of(self.tokenizer_source, self.shape.tokenizer_key, self.family)
        text = self.shape.text
        return padded(tokenizer, texts, min(longest, text.max_positions), self.device, text.vocab_size, self.family,
                      end=None if self.shape.distilbert else text.vocab_size - 1)  # CLIP's end has the largest id

    def prepared_tokens(self, text, longest: int | None = None) -> dict[str, Tensor]:
        text_config = self.shape.text
        if isinstance(text, Mapping):
            text = checked(text, text_config.max_positions, text_config.vocab_size, self.shape.tokenizer_key,
                           padding=0 if self.shape.distilbert else None)
        return super().prepared_tokens(text, longest)

    def embed_text(self, tokens: dict[str, Tensor]) -> Tensor:
        """Return embeddings of texts, (B, E) float32."""
        if self.shape.distilbert:
            state_BD = self.textual(**tokens).last_hidden_state[:, 0]
        else:
            state_BD = self.textual(tokens["input_ids"])
        return _project(state_BD, self.text_projection).float()

    def embed_video(self, frames_BTCHW: Tensor) -> Tensor:
        """Return embeddings of clips, (B, E) float32; without gradients a few clips at a time, to bound the memory."""
        parts = clips_at_once(frames_BTCHW, self.image_size, self.frames, self.device)
        return in_parts(lambda rows: _project(self.visual(frames_BTCHW[rows]), self.image_projection).float(), *parts)


def _project(state_BD: Tensor, projection: nn.Module | nn.Parameter) -> Tensor:
    return state_BD @ projection if isinstance(projection, nn.Parameter) else projection(state_BD)


def distilbert(config: ModelConfig) -> nn.Module:
    """Return transformers' DistilBERT without weights, whose parameters have the released names."""
    from transformers import DistilBertConfig, DistilBertModel
    return DistilBertModel(DistilBertConfig(
        vocab_size=config.vocab_size, max_position_embeddings=config.max_positions, dim=config.width,
        n_heads=config.heads, n_layers=config.depth, hidden_dim=int(config.width * config.mlp_ratio)))


def fill_positions(model: nn.Module) -> None:
    """Give transformers' modules that were built without weights their numbers of positions, which no file has."""
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            owner, _, leaf = name.rpartition(".")
            if leaf != "position_ids":
                raise ValueError(f"{name} is a buffer that no file has, expected position_ids alone: use another "
                                 "version of transformers")
            if buffer.shape[-1] > MOST_POSITIONS:
                raise ValueError(f"it has {buffer.shape[-1]:,} positions, expected {MOST_POSITIONS:,} at most")
            model.get_submodule(owner).register_buffer(
                leaf, torch.arange(buffer.shape[-1], device="cpu").expand(buffer.shape), persistent=False)
