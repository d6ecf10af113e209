"""The video encoder: a space-time transformer whose last blocks can read a text.

Shapes: B clips, T frames, N patches a frame, S = 1 + T*N tokens (CLS, then frame by frame), L text tokens,
D width, H heads, K = D/H. Source: "Egocentric Video-Language Pre-training with Fusion in the Backbone"
(ICCV 2023), section 3. What combines the two encoders is in model.py.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from egokit.config.schema import ModelConfig
from egokit.model.layers import NORM_EPS, Linear, attend, cpu_inference, fresh_std, heads_first, read_short

PART = 2 ** 20  # numbers of a layer that a CPU recomputes at once: a clip of 4 frames at width 768 has 0.6 million


class TextGate(nn.Module):
    """Cross-attention of video tokens to text tokens, added through a scalar gate that starts at 0."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.query = Linear(width, width)
        self.key_value = Linear(width, 2 * width)
        self.proj = Linear(width, width)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x_BSD: Tensor, text_BLD: Tensor, mask_B11L: Tensor) -> Tensor:
        key, value = (heads_first(y, self.heads) for y in self.key_value(text_BLD).chunk(2, dim=-1))
        if cpu_inference(x_BSD, self.query, self.proj) and text_BLD.shape[1] < min(key.shape[-1], x_BSD.shape[1]):
            return x_BSD + self.gate * read_short(self.norm(x_BSD), self.query, key, value, mask_B11L, self.proj)
        read = attend(heads_first(self.query(self.norm(x_BSD)), self.heads), key, value, mask_B11L)
        return x_BSD + self.gate * self.proj(read.transpose(1, 2).flatten(2))


class DividedAttention(nn.Module):
    """Attention within one group of patches, over time or over space, with CLS as one more key.

    over="space": the patches of one frame. over="time": the patches at one position over all frames.
    CLS itself queries every token of the clip, in both; with `cls_only`, nothing else is computed.
    """

    def __init__(self, width: int, heads: int, over: str):
        super().__init__()
        self.heads, self.over = heads, over
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x_BSD: Tensor, frames: int, cls_only: bool = False) -> Tensor:
        B, S, D = x_BSD.shape
        H = self.heads
        if cls_only:
            query = heads_first(self.qkv(x_BSD[:, :1], rows=slice(D)), H)
            key, value = (heads_first(z, H) for z in self.qkv(x_BSD, rows=slice(D, None)).chunk(2, dim=-1))
            return self.proj(attend(query, key, value).transpose(1, 2).flatten(2))                # (B, 1, D)
        query, key, value = self.qkv(x_BSD).unflatten(-1, (3, H, D // H)).permute(2, 0, 3, 1, 4)  # each (B, H, S, K)
        cls = attend(query[:, :, :1], key, value)                     # (B, H, 1, K)
        G = frames if self.over == "space" else (S - 1) // frames

        def groups(z: Tensor) -> Tensor:
            """Patches (B, H, T*N, K) -> (B*G, H, size, K), a group being a frame or a position."""
            z = z[:, :, 1:].unflatten(2, (frames, (S - 1) // frames))
            z = z.permute(0, 2, 1, 3, 4) if self.over == "space" else z.permute(0, 3, 1, 2, 4)
            return z.flatten(0, 1)

        def with_cls(z: Tensor) -> Tensor:
            patches = groups(z)
            first = z[:, :, :1].repeat_interleave(G, dim=0)
            return torch.cat([first, patches], dim=2)

        read = attend(groups(query), with_cls(key), with_cls(value))
        read = read.unflatten(0, (B, G))                                                           # (B, G, H, size, K)
        read = read.permute(0, 1, 3, 2, 4) if self.over == "space" else read.permute(0, 3, 1, 2, 4)
        return self.proj(torch.cat([cls.transpose(1, 2).flatten(2), read.reshape(B, S - 1, D)], dim=1))


class Block(nn.Module):
    """One space-time block. The residual of the space attention starts from x, not from the time step's output.

    The last block of a pass may give CLS alone (B, 1, D), where nothing reads the patches: 10/16 of its arithmetic less.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, fused: bool):
        super().__init__()
        self.norm_time = nn.LayerNorm(width, eps=NORM_EPS)
        self.time = DividedAttention(width, heads, "time")
        self.norm_space = nn.LayerNorm(width, eps=NORM_EPS)
        self.space = DividedAttention(width, heads, "space")
        self.text = TextGate(width, heads) if fused else None
        self.norm_mlp = nn.LayerNorm(width, eps=NORM_EPS)
        self.fc1 = Linear(width, int(width * mlp_ratio))
        self.fc2 = Linear(int(width * mlp_ratio), width)

    def forward(self, x_BSD: Tensor, frames: int, text_BLD: Tensor | None = None,
                mask_B11L: Tensor | None = None, cls_only: bool = False) -> Tensor:
        timed = x_BSD + self.time(self.norm_time(x_BSD), frames)
        space = self.space(self.norm_space(timed), frames, cls_only)
        if text_BLD is not None:
            space = self.text(space, text_BLD, mask_B11L)
        x_BSD = x_BSD[:, :space.shape[1]] + space
        return x_BSD + self.fc2(self.fc1(self.norm_mlp(x_BSD), gelu=True))


class VideoEncoder(nn.Module):
    """Frames to tokens to states. `blocks[depth - fused:]` can take a text."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        width, patches = config.width, (config.image_size // config.patch_size) ** 2
        self.patch_embed = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embed = nn.Parameter(torch.zeros(1, 1 + patches, width))
        self.temporal_embed = nn.Parameter(torch.zeros(1, config.frames, width))
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.mlp_ratio, index >= config.depth - config.num_fused_layers)
            for index in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def reset_parameters(self) -> None:
        """A start without ViT weights; gates 0, time attention by `time_init`.

        Positions in space and time start at about half the size of a patch's embedding, and CLS without one: at ViT's
        0.02 (and the zero that a start from ViT needs in time) a small model takes epochs to tell where and when things are.
        """
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.normal_(module.weight, std=0.02 if isinstance(module, nn.Conv2d) else fresh_std(module.in_features))
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.position_embed, std=0.3)
        nn.init.normal_(self.temporal_embed, std=0.3)
        with torch.no_grad():
            self.position_embed[:, 0].zero_()
        self.reset_time()

    def reset_time(self) -> None:
        """Start of the time attention. Both ways the clip passes through it unchanged at step 0.

        released: qkv 0 and projection 1, as the original; q and k then never get a gradient.
        zero_output: qkv from the block's space attention, projection 0; it learns.
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
        """Normalised frames (B, T, 3, height, width) -> tokens (B, 1 + T*N, D); `cls_11D` replaces the encoder's own."""
        B, T = frames_BTCHW.shape[:2]
        patches = self.patch_embed(frames_BTCHW.flatten(0, 1)).flatten(2).transpose(1, 2)   # (B*T, N, D)
        patches = patches.unflatten(0, (B, T)) + self.position_embed[:, None, 1:] + self.temporal_embed[:, :T, None]
        cls = (self.cls_token if cls_11D is None else cls_11D) + self.position_embed[:, :1]
        return torch.cat([cls.expand(B, -1, -1).to(patches.dtype), patches.flatten(1, 2)], dim=1)

    def run(self, x_BSD: Tensor, frames: int, start: int, stop: int) -> Tensor:
        """Blocks start..stop without a text."""
        for block in self.blocks[start:stop]:
            x_BSD = self.step(block, x_BSD, frames)
        return x_BSD

    def step(self, block: Block, x_BSD: Tensor, frames: int, text_BLD: Tensor | None = None,
             mask_B11L: Tensor | None = None, cls_only: bool = False) -> Tensor:
        """One block, recomputed in the backward pass if the config says so.

        On a CPU that is done in parts, of the full-size model clip by clip: it takes hardly longer, and the other clips need no
        memory meanwhile.
        """
        if not (self.config.checkpointing and self.training):
            return block(x_BSD, frames, text_BLD, mask_B11L, cls_only)
        clips = max(1, PART // x_BSD.shape[1:].numel()) if x_BSD.device.type == "cpu" else len(x_BSD)
        parts = zip(*(x.split(clips) for x in (x_BSD, text_BLD, mask_B11L) if x is not None), strict=True)
        # blocks have no dropout, so there is no random state to keep and set again
        out = [checkpoint(block, part[0], frames, *(part[1:] or (None, None)), cls_only, use_reentrant=False, preserve_rng_state=False)
               for part in parts]
        return out[0] if len(out) == 1 else torch.cat(out)

    def forward(self, frames_BTCHW: Tensor) -> Tensor:
        """Normalised frames -> state of CLS (B, D), unfused."""
        frames = frames_BTCHW.shape[1]
        x_BSD = self.run(self.embed(frames_BTCHW), frames, 0, self.config.depth - 1)
        return self.norm(self.step(self.blocks[-1], x_BSD, frames, None, None, True))[:, 0]
