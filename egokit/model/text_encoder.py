"""The text encoder: a RoBERTa whose last layers can read a video; and the tokenizer.

There is no pooler: the dual encoder takes the first token's state.

Shapes: B texts, L tokens, D width, S video tokens.

Sources: RoBERTa (arXiv 1907.11692) and the EgoVLPv2 paper, section 3.
"""
import functools
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egokit.config.access import exists
from egokit.config.schema import ModelConfig
from egokit.model import cpu_fast_paths as cpu
from egokit.model.layers import NORM_EPS, Linear, multi_head_attention
from egokit.model.recomputation import recomputed

PADDING = 1  # RoBERTa's padding id; position ids start right after it
HUB_NAMES = ("roberta-base", "FacebookAI/roberta-base")  # fetched also if a checkpoint names them


class TextAttention(nn.Module):
    """Multi-head attention with separate projections; dropout on weights and output."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.dense = (Linear(width, width) for _ in range(4))

    def forward(self, x_BLD: Tensor, source_BSD: Tensor, mask_B11S: Tensor | None = None) -> Tensor:
        """Return what x reads in the source, the text itself or a video, (B, L, D)."""
        read_BLD = multi_head_attention(x_BLD, source_BSD, self.query, (self.key, self.value), self.dense, self.heads,
                                        mask_B11S, self.dropout, self.training)
        return F.dropout(read_BLD, self.dropout, self.training)


class TextLayer(nn.Module):
    """One post-norm transformer layer; a fused one adds gated cross-attention to a video."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float, fused: bool):
        super().__init__()
        self.dropout = dropout
        self.attention = TextAttention(width, heads, dropout)
        self.video = TextAttention(width, heads, dropout) if fused else None
        self.gate = nn.Parameter(torch.zeros(1)) if fused else None  # starts closed
        self.attention_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.fc1 = Linear(width, int(width * mlp_ratio))
        self.fc2 = Linear(int(width * mlp_ratio), width)
        self.output_norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, x_BLD: Tensor, mask_B11L: Tensor, video_BSD: Tensor | None = None,
                first_only: bool = False) -> Tensor:
        """Return the states after this layer, (B, L, D).

        Args:
            video_BSD: the video to read.
            first_only: return the first token alone, (B, 1, D): nothing reads the others after a pass's last layer.
        """
        own = x_BLD[:, :1] if first_only else x_BLD
        read = self.attention(own, x_BLD, mask_B11L)
        if video_BSD is not None:
            read = read + self.gate * self.video(read, video_BSD)
        x_BLD = self.attention_norm(read + own)
        hidden = F.dropout(self.fc2(self.fc1(x_BLD, gelu=True)), self.dropout, self.training)
        return self.output_norm(hidden + x_BLD)


class TextEncoder(nn.Module):
    """Token ids to states. Only the last layers, `config.num_fused_layers` of them, can read a video."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.word_embed = nn.Embedding(config.vocab_size, config.width, padding_idx=PADDING)
        self.position_embed = nn.Embedding(config.max_positions, config.width, padding_idx=PADDING)
        self.type_embed = nn.Embedding(1, config.width)
        self.embed_norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.layers = nn.ModuleList(
            TextLayer(config.width, config.heads, config.mlp_ratio, config.dropout,
                      index >= config.depth - config.num_fused_layers)
            for index in range(config.depth))

    def reset_parameters(self) -> None:
        """Draw initial weights for training without a RoBERTa; gates are 0.

        Linear layers keep the size of what passes through them (1 / sqrt(width)). At RoBERTa's 0.02 the first token,
        whose own embedding all texts share, hardly reads the other words, and all texts have nearly the same embedding
        for the first epochs.
        """
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features ** -0.5)
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            self.word_embed.weight[PADDING].zero_()
            self.position_embed.weight[PADDING].zero_()

    def embed(self, input_ids_BL: Tensor) -> Tensor:
        """Return the embeddings (B, L, D) of token ids. Positions count from 2 and skip padding."""
        is_word = input_ids_BL.ne(PADDING).long()
        positions = is_word.cumsum(1) * is_word + PADDING
        fast = cpu.embedding_applies(self.word_embed)
        words_BLD = cpu.embedding(self.word_embed, input_ids_BL) if fast else self.word_embed(input_ids_BL)
        x_BLD = words_BLD + self.position_embed(positions) + self.type_embed.weight[0]
        return F.dropout(self.embed_norm(x_BLD), self.config.dropout, self.training)

    def run_layers(self, x_BLD: Tensor, mask_B11L: Tensor, start: int, stop: int) -> Tensor:
        """Return the states (B, L, D) after layers start to stop - 1, without a video."""
        for layer in self.layers[start:stop]:
            x_BLD = self.run_layer(layer, x_BLD, mask_B11L)
        return x_BLD

    def run_layer(self, layer: TextLayer, x_BLD: Tensor, mask_B11L: Tensor, video_BSD: Tensor | None = None,
                  first_only: bool = False) -> Tensor:
        """Return `layer`'s output, which the backward pass recomputes if the config says so.

        A layer that reads no video is never recomputed: its few tokens need little memory.
        """
        if video_BSD is not None and self.config.checkpointing != "none" and self.training:
            return recomputed(layer, self.config.checkpointing, x_BLD, mask_B11L, video_BSD, first_only,
                              has_dropout=self.config.dropout > 0)
        return layer(x_BLD, mask_B11L, video_BSD, first_only)

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        """Return the state of the first token (B, D) for tokens (B, L), without a video."""
        mask_B11L = additive_mask(tokens["attention_mask"])
        x_BLD = self.run_layers(self.embed(tokens["input_ids"]), mask_B11L, 0, self.config.depth - 1)
        return self.run_layer(self.layers[-1], x_BLD, mask_B11L, None, True)[:, 0]


def additive_mask(attention_mask_BL: Tensor) -> Tensor:
    """Return a mask to add to scores, (B, 1, 1, L): 0 for words, very negative for padding.

    It is finite, as a row that is masked entirely must not become NaN.

    Args:
        attention_mask_BL: 1 for words and 0 for padding.
    """
    return (1.0 - attention_mask_BL[:, None, None].float()) * -30000.0  # fits float16


class Tokenizer:
    """Strings to padded RoBERTa tokens, by transformers' AutoTokenizer."""

    def __init__(self, source: str, fetch: bool = False):
        """Load the tokenizer of a name or folder.

        Args:
            source: a folder, or a name of a hub. A checkpoint may name what it likes, so a name is only looked for on
                this machine, unless it is one of HUB_NAMES.
            fetch: fetch any name, because the site or the user gives it.

        Raises:
            FileNotFoundError: there is no such folder, or it can't be loaded.
            PermissionError: this user may not read the folder or one of its files.
        """
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # read at import; forked loaders warn without it
        from transformers import AutoTokenizer
        if Path(source).is_absolute() and not exists(source):
            raise FileNotFoundError(f"no tokenizer folder {source}; the toy's is made by notebook 01_data_prep "
                                    "(or 'egokit toy'), the real one is named 'roberta-base'")
        if Path(source).is_dir():
            for file in Path(source).iterdir():
                exists(file)
        try:
            self.inner = AutoTokenizer.from_pretrained(source, trust_remote_code=False,
                                                       local_files_only=not fetch and source not in HUB_NAMES)
        except Exception as error:  # tokenizers raises bare Exceptions for damaged files
            raise FileNotFoundError(f"tokenizer {source!r} could not be loaded: give a folder with vocab.json and "
                                    "merges.txt; or give the name as site.tokenizer, or as tokenizer= of egokit.load, "
                                    f"and go online once ({str(error)[:300]})") from None
        self.vocab_size = len(self.inner)
        self.mask_id = self.inner.mask_token_id
        self.special_ids = sorted(self.inner.all_special_ids)

    def __call__(self, texts: list[str], longest: int, fixed: bool = False) -> dict[str, Tensor]:
        """Return {"input_ids": (B, L), "attention_mask": (B, L)} of B texts.

        Args:
            longest: how many tokens of a text are kept.
            fixed: pad to `longest` tokens, and not only to the longest text.
        """
        encoding = self.inner(list(texts), padding="max_length" if fixed else True, truncation=True, max_length=longest,
                              return_tensors="pt")
        return {"input_ids": encoding["input_ids"], "attention_mask": encoding["attention_mask"]}

    def words(self, input_ids) -> list[str]:
        """Return a text's tokens as readable strings, empty where a token continues a word."""
        pieces = self.inner.convert_ids_to_tokens([int(i) for i in input_ids])
        return [piece.removeprefix("Ġ") if piece.startswith("Ġ") else "" for piece in pieces]


@functools.lru_cache(maxsize=4)
def load_tokenizer(source: str, fetch: bool = False) -> Tokenizer:
    """Return the tokenizer of a name or folder, see `Tokenizer`; a process loads it once."""
    return Tokenizer(source, fetch)
