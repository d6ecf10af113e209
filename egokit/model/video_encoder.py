"""The video encoder: a space-time transformer whose last blocks can read a text.

Shapes: B clips, T frames, N patches a frame, S = 1 + T*N tokens (CLS, then frame by frame), L text tokens,
D width, H heads, K = D/H. egovlp.py combines the two encoders.

Source: "EgoVLPv2: Egocentric Video-Language Pre-training with Fusion in the Backbone" (ICCV 2023), section 3.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egokit.config.build import ConfigError
from egokit.config.schema import ModelConfig
from egokit.model.cpu_fast_paths import recompute_in_parts
from egokit.model.layers import (
    NORM_EPS,
    LayerNorm,
    Linear,
    attend,
    init_std,
    merge_heads,
    multi_head_attention,
    split_heads,
)
from egokit.model.precision import half_precision
from egokit.model.recomputation import recomputed

# in which data types egokit's own kernels compute, by kind of device; on a CPU that is Triton's interpreter, for tests
KERNEL_TYPES = {"cuda": (torch.float16, torch.bfloat16), "cpu": (torch.float16, torch.bfloat16, torch.float32)}


class PatchEmbed(nn.Conv2d):
    """A linear layer of the pixels of each patch, with a convolution's weights."""

    def forward(self, frames_XCHW: Tensor) -> Tensor:
        """Return the patches (X, N, D) of X frames, row by row."""
        if frames_XCHW.device.type == "cpu":  # whose convolution is quick
            return super().forward(frames_XCHW).flatten(2).transpose(1, 2)
        return self.as_product(frames_XCHW)

    def as_product(self, frames_XCHW: Tensor) -> Tensor:
        """Return `forward`'s patches by one product, which writes them side by side; a convolution does not."""
        side = self.stride[0]
        height, width = (size // side * side for size in frames_XCHW.shape[2:])  # a convolution leaves out the rest
        frames_XCHW = frames_XCHW[:, :, :height, :width].to(half_precision(frames_XCHW.device) or frames_XCHW.dtype)
        pixels = frames_XCHW.unflatten(2, (-1, side)).unflatten(4, (-1, side)).permute(0, 2, 4, 1, 3, 5)
        return F.linear(pixels.flatten(3).flatten(1, 2), self.weight.flatten(1), self.bias)


class GatedCrossAttention(nn.Module):
    """Cross-attention from video to text tokens, added through a gate that starts at 0."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = LayerNorm(width, eps=NORM_EPS)
        self.query = Linear(width, width)
        self.key_value = Linear(width, 2 * width)
        self.proj = Linear(width, width)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x_BSD: Tensor, text_BLD: Tensor, mask_B11L: Tensor, half: bool = False) -> Tensor:
        """Return x + gate · attention(norm(x), text), (B, S, D); with `half` all of it in x's data type."""
        read_BSD = multi_head_attention(self.norm(x_BSD, half), text_BLD, self.query, (self.key_value,), self.proj,
                                        self.heads, mask_B11L)
        return x_BSD + (self.gate.to(x_BSD.dtype) if half else self.gate) * read_BSD


class DividedAttention(nn.Module):
    """Attention within groups of patches, over time or space, with CLS as one more key.

    over="space": a group is the patches of one frame. over="time": it is the patches at one position in all frames.
    CLS itself queries every token of the clip, in both.

    Attributes:
        fused_on: kinds of devices on which it is one operation of divided_attention.py.
    """
    fused_on: tuple[str, ...] = ()

    def __init__(self, width: int, heads: int, over: str):
        super().__init__()
        self.heads, self.over = heads, over
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        if self.fused_on:  # unpickled in a process that may not know the operation yet
            from egokit.model import divided_attention  # noqa: F401

    def forward(self, x_BSD: Tensor, frames: int, cls_only: bool = False) -> Tensor:
        """Return the attention's output, (B, S, D); with `cls_only` that of CLS alone, (B, 1, D)."""
        B, S, D = x_BSD.shape
        H = self.heads
        if cls_only:
            query = split_heads(self.qkv(x_BSD[:, :1], rows=slice(D)), H)
            key, value = (split_heads(y, H) for y in self.qkv(x_BSD, rows=slice(D, None)).chunk(2, dim=-1))
            return self.proj(merge_heads(attend(query, key, value)))
        computed_in = half_precision(x_BSD.device) or x_BSD.dtype  # as autocast does for sdpa
        # not in float32, whose products over space take egokit's kernels ten times as long on an H200 (docs/gpu.md)
        if x_BSD.device.type in self.fused_on and computed_in in KERNEL_TYPES[x_BSD.device.type]:
            qkv_BSC = self.qkv(x_BSD).to(computed_in)
            return self.proj(torch.ops.egokit.divided_attention(qkv_BSC, H, frames, self.over == "time")[0])
        query, key, value = self.qkv(x_BSD).unflatten(-1, (3, H, D // H)).permute(2, 0, 3, 1, 4)  # each (B, H, S, K)
        cls_BH1K = attend(query[:, :, :1], key, value)
        patches = (S - 1) // frames
        G, axis = (frames, 2) if self.over == "space" else (patches, 3)  # groups, and their axis in (B, H, T, N, K)

        def grouped(z_BHSK: Tensor) -> Tensor:
            """Return the patches as (B*G, H, size, K), G groups being the frames or the positions."""
            return z_BHSK[:, :, 1:].unflatten(2, (frames, patches)).movedim(axis, 1).flatten(0, 1)

        def with_cls(z_BHSK: Tensor) -> Tensor:
            cls = z_BHSK[:, :, :1].repeat_interleave(G, dim=0)
            return torch.cat([cls, grouped(z_BHSK)], dim=2)

        read = attend(grouped(query), with_cls(key), with_cls(value))                                # (B*G, H, size, K)
        read_BTNHK = read.unflatten(0, (B, G)).movedim(1, axis).movedim(1, 3)
        return self.proj(torch.cat([merge_heads(cls_BH1K), read_BTNHK.reshape(B, S - 1, D)], dim=1))


class Block(nn.Module):
    """One space-time block; space attention is added to x, not to the time attention's output."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, fused: bool):
        super().__init__()
        self.norm_time = LayerNorm(width, eps=NORM_EPS)
        self.time = DividedAttention(width, heads, "time")
        self.norm_space = LayerNorm(width, eps=NORM_EPS)
        self.space = DividedAttention(width, heads, "space")
        self.text = GatedCrossAttention(width, heads) if fused else None
        self.norm_mlp = LayerNorm(width, eps=NORM_EPS)
        self.fc1 = Linear(width, int(width * mlp_ratio))
        self.fc2 = Linear(int(width * mlp_ratio), width)

    def attention(self, x_BSD: Tensor, frames: int, cls_only: bool = False) -> Tensor:
        """Return what divided attention adds to x, (B, S, D), or of CLS alone, (B, 1, D). No text changes it."""
        half = x_BSD.dtype != torch.float32  # model.half_residual
        timed = x_BSD + self.time(self.norm_time(x_BSD, half), frames)
        return self.space(self.norm_space(timed, half), frames, cls_only)

    def forward(self, x_BSD: Tensor, frames: int, text_BLD: Tensor | None = None, mask_B11L: Tensor | None = None,
                cls_only: bool = False, attention_BSD: Tensor | None = None) -> Tensor:
        """Return the tokens after this block, (B, S, D).

        Args:
            text_BLD: the text to read; `mask_B11L` is its additive mask.
            cls_only: return CLS alone, (B, 1, D): nothing reads the patches after a pass's last block, which then
                saves 10/16 of its arithmetic.
            attention_BSD: what `attention` returns, if it is known.
        """
        half = x_BSD.dtype != torch.float32  # model.half_residual
        space = self.attention(x_BSD, frames, cls_only) if attention_BSD is None else \
            attention_BSD[:, :1 if cls_only else None]
        if text_BLD is not None:
            space = self.text(space, text_BLD, mask_B11L, half)
        x_BSD = x_BSD[:, :space.shape[1]] + space
        return x_BSD + self.fc2(self.fc1(self.norm_mlp(x_BSD, half), gelu=True))


def devices_of_kernels(config: ModelConfig) -> tuple[str, ...]:
    """Return the kinds of devices on which divided attention is computed by egokit's own kernels.

    model.attention=auto takes them where they can be had, and "triton" insists.

    Raises:
        ConfigError: there is a GPU, but model.attention=triton can't be had.
    """
    wanted = config.attention == "triton"
    if config.attention == "sdpa" or (not wanted and not torch.cuda.is_available()):
        return ()
    try:
        from egokit.model import divided_attention
    except ImportError as error:
        if not wanted or not torch.cuda.is_available():
            return ()
        raise ConfigError(f"model.attention=triton needs the package triton ({error}): install the one that belongs "
                          "to this PyTorch, or set model.attention=sdpa") from error
    if refusal := divided_attention.refusal(config.width // config.heads):
        if not wanted:
            return ()
        raise ConfigError(f"model.attention=triton {refusal}, or set model.attention=sdpa")
    return divided_attention.DEVICES


class VideoEncoder(nn.Module):
    """Frames to tokens to states. The last blocks, `config.num_fused_layers` of them, can read a text.

    EgoVLP.__init__ (egovlp.py) makes it. Another video encoder has to offer what the rest of egokit asks of this one:
    - `embed`, `run_blocks`, `run_block` and `forward`, as below; tokens with CLS first, states of the text's width;
    - `blocks`, modules, one for each layer of the text encoder; the last ones read a text (`Block.text`);
    - `compute_as`, and `config` which it replaces, to switch `checkpointing` and the like;
    - `reset_parameters`; to start from a ViT also `reset_time` and `temporal_embed` (backbones.py);
    - no buffers outside the state dict, because loading builds the model without memory and fills in the state dict.

    Names of its parameters decide: `video.blocks.N.text.*` belongs to fusion (EgoVLP.parameters_by_role), "norm" and
    "bias" have no weight decay (train/optim.py). Files know them by released_keys.py and recorded_shape.py.
    viz/attention.py draws the gates and square patches.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        width, patches = config.width, (config.image_size // config.patch_size) ** 2
        self.patch_embed = PatchEmbed(3, width, config.patch_size, stride=config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embed = nn.Parameter(torch.zeros(1, 1 + patches, width))
        self.temporal_embed = nn.Parameter(torch.zeros(1, config.frames, width))
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.mlp_ratio, index >= config.depth - config.num_fused_layers)
            for index in range(config.depth))
        self.norm = LayerNorm(width, eps=NORM_EPS)
        self.compute_as(config)

    def compute_as(self, config: ModelConfig) -> None:
        """Take over a config of the same shape that differs in how it computes.

        Raises:
            ConfigError: model.attention=triton can't be had.
        """
        devices, self.config = devices_of_kernels(config), config
        for block in self.blocks:
            block.time.fused_on = block.space.fused_on = devices

    def reset_parameters(self) -> None:
        """Draw initial weights for training without a ViT; gates are 0.

        Positions in space and time start at about half the size of a patch's embedding, and CLS without one. At ViT's
        0.02 (and at 0 in time, which a start from a ViT needs) a small model takes epochs to learn where and when
        things are.
        """
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                std = 0.02 if isinstance(module, nn.Conv2d) else init_std(module.in_features)
                nn.init.normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.position_embed, std=0.3)
        nn.init.normal_(self.temporal_embed, std=0.3)
        with torch.no_grad():
            self.position_embed[:, 0].zero_()
        self.reset_time()

    def reset_time(self) -> None:
        """Initialise time attention as `config.time_init` says; its output is 0 either way.

        released: qkv is 0 and the projection 1, as in the original code; q and k then never get a gradient.
        zero_output: qkv is a copy of the block's space attention, and the projection is 0; it learns.
        """
        for block in self.blocks:
            nn.init.zeros_(block.time.proj.bias)
            if self.config.time_init == "released":
                nn.init.zeros_(block.time.qkv.weight)
                nn.init.zeros_(block.time.qkv.bias)
                nn.init.ones_(block.time.proj.weight)
            else:
                block.time.qkv.load_state_dict(block.space.qkv.state_dict())
                nn.init.zeros_(block.time.proj.weight)

    def embed(self, frames_BTCHW: Tensor, cls_11D: Tensor | None = None) -> Tensor:
        """Return the tokens (B, 1 + T*N, D) of normalised frames (B, T, 3, height, width).

        Args:
            cls_11D: a CLS token to use in place of the encoder's own.
        """
        B, T = frames_BTCHW.shape[:2]
        patches = self.patch_embed(frames_BTCHW.flatten(0, 1))                              # (B*T, N, D)
        patches = patches.unflatten(0, (B, T)) + self.position_embed[:, None, 1:] + self.temporal_embed[:, :T, None]
        cls = (self.cls_token if cls_11D is None else cls_11D) + self.position_embed[:, :1]
        x_BSD = torch.cat([cls.expand(B, -1, -1).to(patches.dtype), patches.flatten(1, 2)], dim=1)
        half = half_precision(x_BSD.device) if self.config.half_residual and self.training else None
        return x_BSD.to(half) if half else x_BSD

    def run_blocks(self, x_BSD: Tensor, frames: int, start: int, stop: int) -> Tensor:
        """Return the tokens (B, S, D) after blocks start to stop - 1, without a text."""
        for block in self.blocks[start:stop]:
            x_BSD = self.run_block(block, x_BSD, frames)
        return x_BSD

    def run_block(self, block: Block, x_BSD: Tensor, frames: int, text_BLD: Tensor | None = None,
                  mask_B11L: Tensor | None = None, cls_only: bool = False,
                  attention_BSD: Tensor | None = None) -> Tensor:
        """Return `block`'s output, which the backward pass recomputes if the config says so."""
        if attention_BSD is not None:
            return block(x_BSD, frames, text_BLD, mask_B11L, cls_only, attention_BSD)
        if self.config.checkpointing == "none" or not self.training:
            return block(x_BSD, frames, text_BLD, mask_B11L, cls_only)

        def rows(x_BSD: Tensor, text_BLD: Tensor | None = None, mask_B11L: Tensor | None = None) -> Tensor:
            return recomputed(block, self.config.checkpointing, x_BSD, frames, text_BLD, mask_B11L, cls_only)
        return recompute_in_parts(rows, x_BSD, *(() if text_BLD is None else (text_BLD, mask_B11L)))

    def forward(self, frames_BTCHW: Tensor) -> Tensor:
        """Return the state of CLS (B, D) for normalised frames, without a text."""
        frames = frames_BTCHW.shape[1]
        x_BSD = self.run_blocks(self.embed(frames_BTCHW), frames, 0, self.config.depth - 1)
        return self.norm(self.run_block(self.blocks[-1], x_BSD, frames, None, None, True))[:, 0]
