"""The peers' video encoders: TimeSformer as EgoVLP and LaViLa have it, and AVION's joint attention.

Shapes: B clips, T frames, N patches a frame, D width, S = 1 + T*N tokens.
"""
import torch
from torch import Tensor, nn

from egokit.config.schema import ModelConfig
from egokit.model.layers import LayerNorm
from egokit.model.peers.clip_blocks import Block, QuickGELULinear
from egokit.model.video_encoder import PatchEmbed, VideoEncoder

VIDEO_EPS, PRE_NORM_EPS = 1e-6, 1e-5


class TimeSformer(VideoEncoder):
    """egokit's own video encoder without its fused parts, and with these peers' norms and activation.

    Sources: EgoVLP (arXiv 2206.01670); LaViLa (arXiv 2212.04501), which starts from CLIP.
    """

    def __init__(self, config: ModelConfig, from_clip: bool):
        """Build it without weights.

        Args:
            from_clip: as LaViLa has it: no bias of the patches, a norm before the blocks, QuickGELU.
        """
        super().__init__(config)
        for block in self.blocks:
            block.text = None
            if from_clip:
                block.fc1 = QuickGELULinear(config.width, block.fc1.out_features)
        for module in self.modules():
            if isinstance(module, LayerNorm):
                module.eps = VIDEO_EPS
        self.ln_pre = LayerNorm(config.width, eps=PRE_NORM_EPS) if from_clip else None
        if from_clip:
            self.patch_embed.bias = None

    def embed(self, frames_BTCHW: Tensor, cls_11D: Tensor | None = None) -> Tensor:
        x_BSD = super().embed(frames_BTCHW, cls_11D)
        return x_BSD if self.ln_pre is None else self.ln_pre(x_BSD)


class JointVideo(nn.Module):
    """CLIP's image encoder over all tokens of a clip at once, with exact GELU.

    Source: AVION (arXiv 2309.16669).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, patches = config.width, (config.image_size // config.patch_size) ** 2
        self.conv1 = PatchEmbed(3, width, config.patch_size, stride=config.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(1 + patches, width))
        self.temporal_embedding = nn.Parameter(torch.zeros(config.frames, width))
        self.ln_pre, self.ln_post = LayerNorm(width, eps=VIDEO_EPS), LayerNorm(width, eps=VIDEO_EPS)
        self.blocks = nn.ModuleList(Block(config, VIDEO_EPS, quick=False) for _ in range(config.depth))

    def forward(self, frames_BTCHW: Tensor) -> Tensor:
        """Return the state of CLS (B, D) for normalised frames."""
        B, T = frames_BTCHW.shape[:2]
        patches = self.conv1(frames_BTCHW.flatten(0, 1)).unflatten(0, (B, T))                       # (B, T, N, D)
        patches = patches + self.positional_embedding[1:] + self.temporal_embedding[:T, None]
        cls = (self.class_embedding + self.positional_embedding[0]).expand(B, 1, -1).to(patches.dtype)
        x_BSD = self.ln_pre(torch.cat([cls, patches.flatten(1, 2)], dim=1))
        for block in self.blocks:
            x_BSD = block(x_BSD)
        return self.ln_post(x_BSD[:, 0])
