"""The model's equations written plainly, with einsum, on a released state dict.

It is a twin for tests (other seeds, other numbers of frames) and the baseline of benchmarks/model.py. It shares no line
with egokit's model: it reads released names, materialises every attention matrix, and runs every block on every token.

Shapes: B pairs, T frames, N patches a frame, S = 1 + T*N, L text tokens, D width, H heads of 64 channels.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, einsum

HEAD = 64


class Plain:
    """The model of a released state dict; its public methods are those of EgoVLP."""

    def __init__(self, state: dict[str, Tensor], frames: int | None = None):
        """Keep a state dict, with its temporal embedding resized to `frames` if that is given.

        Args:
            state: keys are released names, with or without 'module.'.
        """
        self.state = {key.removeprefix("module."): value.float() for key, value in state.items()}
        self.depth = 1 + max(int(key.split(".")[2]) for key in self.state if key.startswith("video_model.blocks."))
        self.fused = [i for i in range(self.depth) if f"video_model.blocks.{i}.attn.alpha_i2t" in self.state]
        have = self.state["video_model.temporal_embed"]
        if frames and frames > have.shape[1]:  # ends aligned: new frame t lies at t * (have - 1) / (frames - 1)
            at = torch.arange(frames) * (have.shape[1] - 1) / (frames - 1)
            low = at.floor().long().clamp(max=have.shape[1] - 2) if have.shape[1] > 1 else torch.zeros(frames).long()
            share = (at - low)[None, :, None]
            high = (low + 1).clamp(max=have.shape[1] - 1)
            self.state["video_model.temporal_embed"] = have[:, low] * (1 - share) + have[:, high] * share

    def linear(self, x: Tensor, name: str) -> Tensor:
        out = einsum("...i,oi->...o", x, self.state[f"{name}.weight"])
        return out + self.state[f"{name}.bias"] if f"{name}.bias" in self.state else out

    def norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps)

    @staticmethod
    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return attention of (groups, H, tokens, 64) tensors; mask (groups, 1, 1, tokens)."""
        scores = einsum("ghqc,ghkc->ghqk", query * HEAD ** -0.5, key)
        return einsum("ghqk,ghkc->ghqc", (scores if mask is None else scores + mask).softmax(-1), value)

    @staticmethod
    def heads(x: Tensor) -> Tensor:
        B, S, D = x.shape
        return x.reshape(B, S, D // HEAD, HEAD).permute(0, 2, 1, 3)

    @staticmethod
    def joined(x: Tensor) -> Tensor:
        B, H, S, C = x.shape
        return x.permute(0, 2, 1, 3).reshape(B, S, H * C)

    # video

    def divided(self, x: Tensor, name: str, T: int, over_time: bool) -> Tensor:
        """Return divided attention of tokens (B, S, D), grouped by position (over time) or frame."""
        B, S, D = x.shape
        H, N = D // HEAD, (S - 1) // T
        query, key, value = (self.heads(part) for part in self.linear(x, f"{name}.qkv").chunk(3, dim=-1))
        cls = self.attend(query[:, :, :1], key, value)
        order = (0, 3, 1, 2, 4) if over_time else (0, 2, 1, 3, 4)

        def grouped(z: Tensor) -> Tensor:
            z = z[:, :, 1:].reshape(B, H, T, N, HEAD).permute(*order)
            return z.reshape(-1, *z.shape[2:])

        groups = N if over_time else T
        own = [torch.cat([z[:, :, :1].repeat_interleave(groups, 0), grouped(z)], dim=2) for z in (key, value)]
        read = self.attend(grouped(query), *own).reshape(B, groups, H, -1, HEAD)
        read = read.permute(0, 2, 3, 1, 4) if over_time else read.permute(0, 2, 1, 3, 4)
        return self.linear(self.joined(torch.cat([cls, read.reshape(B, H, S - 1, HEAD)], dim=2)), f"{name}.proj")

    def block(self, x: Tensor, i: int, T: int, text: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        name = f"video_model.blocks.{i}"
        timed = x + self.divided(self.norm(x, f"{name}.norm3", 1e-5), f"{name}.timeattn", T, over_time=True)
        space = self.divided(self.norm(timed, f"{name}.norm1", 1e-5), f"{name}.attn", T, over_time=False)
        if text is not None:
            query = self.heads(self.linear(self.norm(space, f"{name}.attn.norm_i2t_i", 1e-5), f"{name}.attn.qkv_i2t"))
            key, value = (self.heads(part) for part in self.linear(text, f"{name}.attn.qkv_text_i2t").chunk(2, dim=-1))
            read = self.linear(self.joined(self.attend(query, key, value, mask)), f"{name}.attn.proj_i2t")
            space = space + self.state[f"{name}.attn.alpha_i2t"] * read
        x = x + space
        hidden = F.gelu(self.linear(self.norm(x, f"{name}.norm2", 1e-5), f"{name}.mlp.fc1"))
        return x + self.linear(hidden, f"{name}.mlp.fc2")

    def patches(self, frames: Tensor, cls: Tensor) -> Tensor:
        B, T = frames.shape[:2]
        weight = self.state["video_model.patch_embed.proj.weight"]
        P = weight.shape[-1]
        squares = frames.unfold(3, P, P).unfold(4, P, P)                       # (B, T, 3, rows, columns, P, P)
        x = einsum("btcyxij,ocij->btyxo", squares, weight).flatten(2, 3)
        x = x + self.state["video_model.patch_embed.proj.bias"]
        position = self.state["video_model.pos_embed"]
        x = x + position[:, None, 1:] + self.state["video_model.temporal_embed"][:, :T, None]
        return torch.cat([(cls + position[:, :1]).expand(B, -1, -1), x.flatten(1, 2)], dim=1)

    # text

    def words(self, ids: Tensor) -> Tensor:
        name = "text_model.embeddings"
        real = (ids != 1).long()
        x = (self.state[f"{name}.word_embeddings.weight"][ids]
             + self.state[f"{name}.position_embeddings.weight"][real.cumsum(1) * real + 1]
             + self.state[f"{name}.token_type_embeddings.weight"][0])
        return self.norm(x, f"{name}.LayerNorm", 1e-5)

    def layer(self, x: Tensor, i: int, mask: Tensor, video: Tensor | None = None) -> Tensor:
        name = f"text_model.encoder.layer.{i}"

        def read(query: Tensor, source: Tensor, part: str, mask: Tensor | None) -> Tensor:
            q, k, v = (self.heads(self.linear(z, f"{name}.{part}.self.{which}"))
                       for z, which in ((query, "query"), (source, "key"), (source, "value")))
            return self.linear(self.joined(self.attend(q, k, v, mask)), f"{name}.{part}.output.dense")

        out = read(x, x, "attention", mask)
        if video is not None:
            out = out + self.state[f"{name}.alpha_t2i"] * read(out, video, "crossattention_t2i", None)
        x = self.norm(out + x, f"{name}.attention.output.LayerNorm", 1e-5)
        hidden = F.gelu(self.linear(x, f"{name}.intermediate.dense"))
        return self.norm(self.linear(hidden, f"{name}.output.dense") + x, f"{name}.output.LayerNorm", 1e-5)

    # the two encoders and their heads

    def project(self, x: Tensor, name: str) -> Tensor:
        if f"{name}.4.weight" in self.state:
            return self.linear(self.linear(self.linear(x, f"{name}.0").relu(), f"{name}.2").relu(), f"{name}.4")
        return self.linear(x.relu(), f"{name}.1") if name == "txt_proj" else self.linear(x, f"{name}.0")

    @staticmethod
    def mask(tokens: dict) -> Tensor:
        return torch.where(tokens["attention_mask"][:, None, None].bool(), 0.0, torch.finfo(torch.float32).min)

    def encode_video(self, frames: Tensor) -> Tensor:
        x = self.patches(frames, self.state["video_model.cls_token"])
        for i in range(self.depth):
            x = self.block(x, i, frames.shape[1])
        return self.project(self.norm(x, "video_model.norm", 1e-5)[:, 0], "vid_proj")

    def encode_text(self, tokens: dict) -> Tensor:
        x = self.words(tokens["input_ids"])
        for i in range(self.depth):
            x = self.layer(x, i, self.mask(tokens))
        return self.project(x[:, 0], "txt_proj")

    def fuse(self, frames: Tensor, tokens: dict) -> tuple[Tensor, Tensor]:
        x, y, mask = self.patches(frames, self.state["cls_token"]), self.words(tokens["input_ids"]), self.mask(tokens)
        for i in range(self.depth):
            if i in self.fused:
                x, y = self.block(x, i, frames.shape[1], y, mask), self.layer(y, i, mask, x)
            else:
                x, y = self.block(x, i, frames.shape[1]), self.layer(y, i, mask)
        return x, y

    def itm_logits(self, frames: Tensor, tokens: dict) -> Tensor:
        x, y = self.fuse(frames, tokens)
        video = self.linear(self.norm(x, "norm", 1e-6)[:, 0], "cross_modal_video_transform")
        video = self.linear(video, "cross_modal_video_pooler.dense")
        text = self.linear(self.linear(y[:, 0], "cross_modal_text_transform"), "cross_modal_text_pooler.dense")
        return self.linear(torch.cat([text.tanh(), video.tanh()], dim=-1), "itm_score.fc")

    def mlm_logits(self, frames: Tensor, tokens: dict) -> Tensor:
        hidden = self.linear(self.fuse(frames, tokens)[1], "cross_modal_text_transform")
        hidden = F.gelu(self.linear(hidden, "mlm_score.transform.dense"))
        hidden = self.norm(hidden, "mlm_score.transform.LayerNorm", 1e-12)
        return self.linear(hidden, "mlm_score.decoder") + self.state["mlm_score.bias"]
