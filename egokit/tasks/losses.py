"""Losses on similarities and logits, and the drawing of hard negatives and masked words.

Everything works on the global batch it is given; gathering is dist.py's, summing is the tasks'.
Shapes: T texts x V videos; where a diagonal matters T = V = B.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def positives(verbs_BC: Tensor, nouns_BC: Tensor) -> Tensor:
    """(B, B) bool: pairs that share a verb and a noun, and the diagonal. Multi-hot inputs. Source: EgoVLP, eq. 4."""
    shared = (verbs_BC @ verbs_BC.T > 0) & (nouns_BC @ nouns_BC.T > 0)
    return shared | torch.eye(len(verbs_BC), dtype=torch.bool, device=verbs_BC.device)


def egonce(similarity_TV: Tensor, positives_TV: Tensor, temperature: float = 0.05) -> Tensor:
    """EgoNCE over rows plus over columns. Source: EgoVLP (arXiv 2206.01670), eq. 3.

    For each row: -log of the softmax mass that falls on positives; the mean over rows, plus the same over columns.
    """
    logits = similarity_TV.float() / temperature
    blocked = logits.masked_fill(~positives_TV.bool(), float("-inf"))
    rows = torch.logsumexp(logits, 1) - torch.logsumexp(blocked, 1)
    columns = torch.logsumexp(logits, 0) - torch.logsumexp(blocked, 0)
    return rows.mean() + columns.mean()


def infonce(similarity_BB: Tensor, temperature: float = 0.05) -> Tensor:
    """Symmetric InfoNCE, positives on the diagonal: EgoNCE with no other positive. Source: recipes, Charades-Ego."""
    return egonce(similarity_BB, torch.eye(len(similarity_BB), dtype=torch.bool, device=similarity_BB.device), temperature)


def off_diagonal_mean(*pairs_BB: Tensor) -> Tensor:
    """The mean over what is off the diagonal of several matrices. By a sum, as a GPU would be waited for to select it."""
    B = len(pairs_BB[0])
    own = torch.eye(B, dtype=torch.bool, device=pairs_BB[0].device)
    return torch.stack([x.masked_fill(own, 0.0).sum() for x in pairs_BB]).sum() / (len(pairs_BB) * B * (B - 1))


def max_margin(similarity_BB: Tensor, relevancy_B: Tensor | None = None, margin: float = 0.2) -> Tensor:
    """Adaptive max-margin ranking: mean of relu(margin * relevancy_i - (s_ii - s_ij)) over off-diagonal pairs, both ways.

    `relevancy_B` scales row i's margin (1 if absent). Source: recipes, EK-100 fine-tuning.
    """
    s = similarity_BB.float()
    own = s.diagonal()[:, None]
    margins = margin * (torch.ones_like(own) if relevancy_B is None else relevancy_B.float()[:, None])
    return off_diagonal_mean(F.relu(margins - (own - s)), F.relu(margins - (own - s.T)))


def symmetric_multi_similarity(similarity_BB: Tensor, relevancy_BB: Tensor, margin: float = 0.6, slack: float = 0.1,
                               step: float = 1e-3) -> Tensor:
    """Similarities apart as relevancies are, for pairs that are relevant in part too. Source: arXiv 2406.12256.

    With d = c_ii - c_ij and m = margin * d - (s_ii - s_ij): relu(m) where pair ij is the less relevant one, relu(-m) where it
    is the more relevant one, relu(|m| - slack) where both are equal; the mean over off-diagonal pairs, both ways. Relevancies
    that differ by no more than `step` are equal: EK-100's differ by more if at all, their rounding by far less.
    """
    def one_way(s: Tensor, c: Tensor) -> Tensor:
        d = c.diagonal()[:, None] - c
        m = margin * d - (s.diagonal()[:, None] - s)
        return torch.where(d.abs() <= step, F.relu(m.abs() - slack), F.relu(m * d.sign()))

    s, c = similarity_BB.float(), relevancy_BB.float()
    return off_diagonal_mean(one_way(s, c), one_way(s.T, c.T))


def mask_words(input_ids_BL: Tensor, uniforms_BL3: Tensor, special_ids: list[int], mask_id: int, vocabulary: int,
               probability: float = 0.15) -> tuple[Tensor, Tensor]:
    """BERT's masking: chosen tokens become <mask> (80 %), a random token (10 %) or stay (10 %).

    `uniforms_BL3` are three draws from [0, 1) for each token. Returns (ids (B, L), labels (B, L) with -100 where nothing
    is to be predicted). Special tokens are never chosen.
    """
    special = torch.isin(input_ids_BL, torch.tensor(special_ids, device=input_ids_BL.device))
    chosen = (uniforms_BL3[..., 0] < probability) & ~special
    fate, word = uniforms_BL3[..., 1], (uniforms_BL3[..., 2] * vocabulary).long().clamp_max(vocabulary - 1)
    ids = torch.where(chosen & (fate < 0.8), torch.full_like(input_ids_BL, mask_id), input_ids_BL)
    return torch.where(chosen & (fate >= 0.9), word, ids), input_ids_BL.masked_fill(~chosen, -100)


def draw_pairs(similarity_TV: Tensor, positives_TV: Tensor, temperature: float = 0.05,
               generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs for image-text matching, drawn on the CPU: (text index (B,), video index (B,), label (B,)).

    Half of the batch, at random, keeps its pair (label 1). Of the others, a coin decides whether the video is swapped
    for one drawn from the text's row, or the text for one drawn from the video's column, with probability
    softmax(s / temperature) over non-positives; never a positive. A row without any non-positive keeps its pair.
    """
    # NaN (a diverged step, which the loop skips and counts) draws like 0: it must not fail here, on one rank alone
    logits = similarity_TV.detach().float().cpu().nan_to_num() / temperature
    positive = positives_TV.cpu().bool()
    B = len(logits)
    own = torch.arange(B)
    keep = torch.zeros(B, dtype=torch.bool)
    keep[torch.randperm(B, generator=generator)[: B // 2]] = True
    swap_video = torch.rand(B, generator=generator) < 0.5

    def negatives(logits_BB: Tensor, positive_BB: Tensor) -> tuple[Tensor, Tensor]:
        possible = ~positive_BB.all(1)
        safe = logits_BB.masked_fill(positive_BB & possible[:, None], float("-inf"))
        return torch.multinomial(safe.softmax(1), 1, generator=generator)[:, 0], possible

    video, video_possible = negatives(logits, positive)
    text, text_possible = negatives(logits.T, positive.T)
    keep |= ~torch.where(swap_video, video_possible, text_possible)
    video_index = torch.where(~keep & swap_video, video, own)
    text_index = torch.where(~keep & ~swap_video, text, own)
    return text_index, video_index, keep.long()
