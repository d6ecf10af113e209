"""EgoVLP: the dual encoder, the fusion encoder, and the public methods of the model.

encode_text, encode_video, match, itm_logits, mlm_logits and answer are for users: they check their input, move it to
the model's device, and work through batches of any size. embed_text, embed_video, fuse and the like are their parts,
for training and evaluation, whose input is prepared: they check nothing, and compute a batch in one piece. All but
answer keep gradients unless the caller is under `torch.no_grad()`.

Shapes: B pairs, T frames, S = 1 + T*N video tokens, L text tokens, D width, E embedding, V vocabulary.

Source: EgoVLPv2 (ICCV 2023), section 3.
"""
import torch
from torch import Tensor, nn

from egokit.config.schema import ModelConfig
from egokit.model import answering, roles
from egokit.model.dual import Dual
from egokit.model.heads import MLMHead, Pooler, build_projection
from egokit.model.input_checks import checked_tokens, of_few_lengths
from egokit.model.layers import Linear, init_std
from egokit.model.pairs import fused_outputs
from egokit.model.pretrained import Pretrained
from egokit.model.text_encoder import TextEncoder, additive_mask
from egokit.model.video_encoder import VideoEncoder


class EgoVLP(Dual, Pretrained):
    """EgoVLPv2: a dual encoder for retrieval and a fusion encoder for matching and masked words.

    They share a pair of backbones. `egokit.load` makes one from a checkpoint.

    Example:
        model = egokit.load("EgoVLPv2.pth")
        frames = egokit.read_clip("video.mp4", 3.0, 5.0, frames=4)[None]           # (1, 4, 3, 224, 224)
        probability = model.match(frames, ["#C C cuts the onion", "#C C drinks"])  # (2,)
    """

    fuses, family, max_tokens = True, "EgoVLPv2", 30

    def __init__(self, config: ModelConfig, tokenizer: str = "roberta-base"):
        super().__init__()
        width = config.width
        self.config, self.tokenizer_source = config, tokenizer
        self.video = VideoEncoder(config)
        self.text = TextEncoder(config)
        self.text_projection = build_projection(config.projection, width, text=True)
        self.video_projection = build_projection(config.projection, width, text=False)
        self.fusion_cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.fusion_norm = nn.LayerNorm(width, eps=1e-6)
        self.text_transform, self.video_transform = Linear(width, width), Linear(width, width)
        self.text_pooler, self.video_pooler = Pooler(width), Pooler(width)
        self.itm_head = Linear(2 * width, 2)
        self.word_head = MLMHead(width, config.vocab_size)
        self.register_module("head", None)  # a task's head
        self.own = nn.ModuleDict()  # and its other modules (own_modules.py)

    def reset_parameters(self) -> None:
        """Draw all initial weights, from PyTorch's current random state."""
        for head in (self.text_projection, self.video_projection, self.text_transform, self.video_transform,
                     self.text_pooler, self.video_pooler, self.itm_head, self.word_head):
            for module in head.modules():
                if isinstance(module, Linear):
                    nn.init.normal_(module.weight, std=init_std(module.in_features))
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        self.text.reset_parameters()
        self.video.reset_parameters()

    def _anchor(self) -> Tensor:
        return self.itm_head.weight

    @property
    def image_size(self) -> int:
        """Side of a frame in pixels."""
        return self.config.image_size

    @property
    def frames(self) -> int:
        """Most frames of a clip: what the temporal embedding holds."""
        return self.config.frames

    @property
    def embed_dim(self) -> int:
        """E, the dimension of the dual encoder's embeddings."""
        return self.video_projection[-1].out_features

    def compute_as(self, settings: ModelConfig) -> None:
        """Take over the settings that say how the model computes; they leave its shape and weights as they are.

        Raises:
            ConfigError: see `VideoEncoder.compute_as`; nothing is taken over then.
        """
        config = self.config.computed_as(settings)
        self.video.compute_as(config)
        self.config = self.text.config = config

    @property
    def num_unfused(self) -> int:
        """How many blocks of each encoder come before the first fused one."""
        return self.config.depth - self.config.num_fused_layers

    def parameters_by_role(self) -> dict[str, list[str]]:
        """Return parameters' names by role: 'fusion' (ITM, MLM), 'projection', 'head', 'own' (a task's), 'backbone'."""
        return roles.by_role(name for name, _ in self.named_parameters())

    def unused_parameters(self, trains: str) -> set[str]:
        """Return the names of parameters that get no gradient from a loss that reads `trains`: see `roles.unused`."""
        return roles.unused([name for name, _ in self.named_parameters()], trains, self.config.depth)

    # Parts, for training and evaluation: prepared input on the model's device, computed in one piece

    def fusion_trunk(self, frames_BTCHW: Tensor) -> Tensor:
        """Return the video's states before the first fused block, (B, S, D); no text is read."""
        x_BSD = self.video.embed(frames_BTCHW, self.fusion_cls_token)
        return self.video.run_blocks(x_BSD, frames_BTCHW.shape[1], 0, self.num_unfused)

    def text_trunk(self, tokens: dict[str, Tensor]) -> Tensor:
        """Return the texts' states before the first fused layer, (B, L, D); no video is read."""
        return self.text.run_layers(self.text.embed(tokens["input_ids"]), additive_mask(tokens["attention_mask"]),
                                    0, self.num_unfused)

    def embed_video(self, frames_BTCHW: Tensor) -> Tensor:
        """Return what `encode_video` returns, (B, E) float32, without its checks and in one piece.

        Args:
            frames_BTCHW: normalised frames on the model's device.
        """
        return self.video_projection(self.video(frames_BTCHW)).float()

    def embed_text(self, tokens: dict[str, Tensor]) -> Tensor:
        """Return what `encode_text` returns, (B, E) float32, without its checks and in one piece.

        Args:
            tokens: input_ids and attention_mask, each (B, L), on the model's device.
        """
        return self.text_projection(self.text(tokens)).float()

    def fuse(self, video_BSD: Tensor, text_BLD: Tensor, attention_mask_BL: Tensor, frames: int, read: str = "all",
             attention_BSD: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Return the states of videos and texts after the fused layers.

        Each encoder reads the other's states from before the layer, not after it.

        Args:
            video_BSD: of `fusion_trunk`; `text_BLD` is of `text_trunk`.
            attention_mask_BL: 1 for words and 0 for padding.
            frames: T.
            read: which of the last states the caller reads, as the others need not be computed. "all": (B, S, D) and
                (B, L, D). "itm": CLS and the first token, each (B, 1, D). "mlm": the text alone, (None, (B, L, D)).
                "video": CLS alone, ((B, 1, D), None).
            attention_BSD: of the first fused block's `attention`, if it is known: it is the same for all texts.
        """
        mask_B11L, first = additive_mask(attention_mask_BL), self.num_unfused
        *pairs, (last_block, last_layer) = zip(self.video.blocks[first:], self.text.layers[first:], strict=True)
        for block, layer in pairs:
            video_BSD, text_BLD, attention_BSD = (
                self.video.run_block(block, video_BSD, frames, text_BLD, mask_B11L, False, attention_BSD),
                self.text.run_layer(layer, text_BLD, mask_B11L, video_BSD), None)
        first_only = read in ("itm", "video")
        return (None if read == "mlm" else
                self.video.run_block(last_block, video_BSD, frames, text_BLD, mask_B11L, first_only, attention_BSD),
                None if read == "video"
                else self.text.run_layer(last_layer, text_BLD, mask_B11L, video_BSD, first_only))

    def fused_video(self, trunk_BSD: Tensor, tokens: dict[str, Tensor], frames: int) -> Tensor:
        """Return the fused states (B, D) float32 of clips with a text each, which a head reads.

        Args:
            trunk_BSD: of `fusion_trunk`; `tokens` as `embed_text` takes them; `frames` is T.
        """
        video_B1D, _ = self.fuse(trunk_BSD, self.text_trunk(tokens), tokens["attention_mask"], frames, read="video")
        return self.fusion_norm(video_B1D)[:, 0].float()

    def itm_from_states(self, video_BSD: Tensor, text_BLD: Tensor) -> Tensor:
        """Return matching logits (B, 2) of fused states; class 1 is 'match'."""
        video_BD = self.video_pooler(self.video_transform(self.fusion_norm(video_BSD)[:, 0]))
        text_BD = self.text_pooler(self.text_transform(text_BLD[:, 0]))
        return self.itm_head(torch.cat([text_BD, video_BD], dim=-1))

    def mlm_from_states(self, text_XD: Tensor) -> Tensor:
        """Return vocabulary logits (…, V) of fused text states (…, D)."""
        return self.word_head(self.text_transform(text_XD))

    # Public methods: input is checked, and may come from any device in batches of any size

    def tokens(self, text, longest: int = 30) -> dict[str, Tensor]:
        """Return {"input_ids": (B, L), "attention_mask": (B, L)} on the model's device, on a GPU of few lengths L.

        Args:
            text: a string, strings, or such tokens.
            longest: how many tokens of a string are kept.

        Raises:
            ValueError: `text` is nothing of these, or does not fit the model.
        """
        return of_few_lengths(self.prepared_tokens(text, longest), longest)

    def prepared_tokens(self, text, longest: int | None = None) -> dict[str, Tensor]:
        """Return what `tokens` returns, no longer than the longest text."""
        config = self.config
        tokens = checked_tokens(text, config.max_positions - 2, config.vocab_size, self.tokenizer_source,
                                longest or self.max_tokens)
        return {key: value.to(self.device) for key, value in tokens.items()}

    def match(self, frames_BTCHW: Tensor, text) -> Tensor:
        """Return the fusion encoder's probability (B,) that each clip matches its text.

        Example:
            probability_B = model.match(frames_BTCHW, ["#C C cuts the onion"])

        Args:
            frames_BTCHW: B clips as `encode_video` takes them, or one clip for all texts.
            text: B texts as `encode_text` takes them, or one text for all clips.

        Raises:
            ValueError: as those methods; or clips and texts differ in number, and neither is one.
        """
        return self.itm_logits(frames_BTCHW, text).softmax(dim=-1)[:, 1]

    def itm_logits(self, frames_BTCHW: Tensor, text) -> Tensor:
        """Return matching logits (B, 2) float32; class 1 is 'match'. Arguments: as of `match`."""
        return fused_outputs(self, frames_BTCHW, text, "itm",
                             lambda video_BSD, text_BLD: self.itm_from_states(video_BSD, text_BLD).float())

    def mlm_logits(self, frames_BTCHW: Tensor, text) -> Tensor:
        """Return vocabulary logits (B, L, V) float32 at every token, given the clips.

        Arguments are those of `match`; words to predict are mask tokens in `text`, which is best given as tokens.
        """
        return fused_outputs(self, frames_BTCHW, text, "mlm",
                             lambda _, text_BLD: self.mlm_from_states(text_BLD).float())

    def answer(self, frames_BTCHW: Tensor, question=None, k: int = 5) -> list[list[tuple[str, float]]]:
        """Return the k most probable answers of the model's head, a list of (word, probability), best first, for each.

        Args:
            frames_BTCHW, question: clips and texts as `match` takes them; None for a head that reads the clip alone.
            k: how many answers; all, if there are fewer.

        Raises:
            ValueError: as `match`; or the model's head can't answer this; the message says what to do.
        """
        return answering.answer(self, frames_BTCHW, question, k)
