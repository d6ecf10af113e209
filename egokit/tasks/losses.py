"""Loss formulas on similarity matrices; drawing of hard negatives and masked words.

Every function works on the global batch that it is given. A task's `loss` gathers that batch over ranks
(train/distributed.py), says which terms are summed, and has the contract under DDP (Task.loss in base.py).

Shapes: T texts x V videos, similarities are cosines. Where pairs stand on the diagonal, T = V = B: row i is text i,
column j is video j.
"""
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from egokit.tasks import counter_random
from egokit.train.parts import Part


def positives(verbs_BC: Tensor, nouns_BC: Tensor) -> Tensor:
    """Return which pairs are positive: the diagonal, and those that share a verb and a noun.

    Args:
        verbs_BC, nouns_BC: multi-hot classes of each sample, 0 or 1.

    Returns:
        (B, B) bool, symmetric.

    Source: EgoVLP (arXiv 2206.01670), eq. 4.
    """
    shared = (verbs_BC @ verbs_BC.T > 0) & (nouns_BC @ nouns_BC.T > 0)
    return shared | torch.eye(len(verbs_BC), dtype=torch.bool, device=verbs_BC.device)


def egonce(similarity_TV: Tensor, positives_TV: Tensor, temperature: float = 0.05) -> Tensor:
    """Return EgoNCE, the contrastive loss of pre-training.

    It is a mean over texts plus a mean over videos. For text i with positives P_i, and for every video in the same way
    over its column:

        -log( sum over j in P_i of exp(s_ij / temperature)  /  sum over all j of exp(s_ij / temperature) )

    `infonce` calls it, too: a change here also changes fine-tuning on Charades-Ego.

    Args:
        similarity_TV: cosines s.
        positives_TV: bool, at least one in each row and column; see `positives`.

    Returns:
        Scalar, float32.

    Source: EgoVLP (arXiv 2206.01670), eq. 3.
    """
    logits = similarity_TV.float() / temperature
    positive_logits = logits.masked_fill(~positives_TV.bool(), float("-inf"))
    text_to_video_T = torch.logsumexp(logits, 1) - torch.logsumexp(positive_logits, 1)
    video_to_text_V = torch.logsumexp(logits, 0) - torch.logsumexp(positive_logits, 0)
    return text_to_video_T.mean() + video_to_text_V.mean()


def infonce(similarity_BB: Tensor, temperature: float = 0.05) -> Tensor:
    """Return symmetric InfoNCE: EgoNCE whose only positives are on the diagonal.

    Returns:
        Scalar, float32.

    Source: EgoVLPv2's recipe for Charades-Ego.
    """
    own_pair = torch.eye(len(similarity_BB), dtype=torch.bool, device=similarity_BB.device)
    return egonce(similarity_BB, own_pair, temperature)


def off_diagonal_mean(*matrices_BB: Tensor) -> Tensor:
    """Return the mean of everything off the diagonal of several (B, B) matrices."""
    B = len(matrices_BB[0])
    diagonal = torch.eye(B, dtype=torch.bool, device=matrices_BB[0].device)
    # a sum, because the CPU would wait for the GPU to select the elements
    total = torch.stack([x.masked_fill(diagonal, 0.0).sum() for x in matrices_BB]).sum()
    return total / (len(matrices_BB) * B * (B - 1))


def max_margin(similarity_BB: Tensor, relevancy_B: Tensor | None = None, margin: float = 0.2) -> Tensor:
    """Return the adaptive max-margin ranking loss, in both directions.

    The mean over i != j of

        relu(margin * c_i - (s_ii - s_ij))    and    relu(margin * c_i - (s_ii - s_ji))

    Args:
        similarity_BB: cosines s, pairs on the diagonal.
        relevancy_B: c, the relevancy of each pair in [0, 1], which scales its margin; None is 1.

    Returns:
        Scalar, float32.

    Source: EgoVLPv2's recipe for fine-tuning on EK-100.
    """
    s = similarity_BB.float()
    own = s.diagonal()[:, None]
    margins = margin * (torch.ones_like(own) if relevancy_B is None else relevancy_B.float()[:, None])
    return off_diagonal_mean(F.relu(margins - (own - s)), F.relu(margins - (own - s.T)))


def symmetric_multi_similarity(similarity_BB: Tensor, relevancy_BB: Tensor, margin: float = 0.6, slack: float = 0.1,
                               step: float = 1e-3) -> Tensor:
    """Return a loss that sets similarities as far apart as relevancies are.

    With d = c_ii - c_ij and m = margin * d - (s_ii - s_ij), the mean over i != j, in both directions, of

        relu(m)             where pair ij is less relevant than pair ii (d > step),
        relu(-m)            where it is more relevant (d < -step),
        relu(|m| - slack)   where both are equally relevant.

    Args:
        similarity_BB: cosines s, pairs on the diagonal.
        relevancy_BB: c, the relevancy of text i and video j in [0, 1].
        step: relevancies that differ by no more are equal. EK-100's differ by more if at all; their rounding errors are
            far smaller.

    Returns:
        Scalar, float32.

    Source: symmetric multi-similarity loss (arXiv 2406.12256).
    """
    def one_direction(s: Tensor, c: Tensor) -> Tensor:
        d = c.diagonal()[:, None] - c
        m = margin * d - (s.diagonal()[:, None] - s)
        return torch.where(d.abs() <= step, F.relu(m.abs() - slack), F.relu(m * d.sign()))

    s, c = similarity_BB.float(), relevancy_BB.float()
    return off_diagonal_mean(one_direction(s, c), one_direction(s.T, c.T))


def mask_words(input_ids_BL: Tensor, uniforms_BL3: Tensor, special_ids: list[int], mask_id: int, vocabulary: int,
               probability: float = 0.15) -> tuple[Tensor, Tensor]:
    """Choose the words to predict and mask them as BERT does.

    A chosen token becomes <mask> (80 %), a random token (10 %) or stays (10 %). Special tokens are never chosen.

    Args:
        uniforms_BL3: three draws from [0, 1) for each token: whether it is chosen, what becomes of it, which token
            replaces it.
        vocabulary: number of tokens.
        probability: share of tokens that are chosen.

    Returns:
        (ids, labels), each (B, L); a label is -100 where nothing is to be predicted.

    Source: BERT (arXiv 1810.04805), section 3.1.
    """
    special = torch.isin(input_ids_BL, torch.tensor(special_ids, device=input_ids_BL.device))
    chosen = (uniforms_BL3[..., 0] < probability) & ~special
    fate, word = uniforms_BL3[..., 1], (uniforms_BL3[..., 2] * vocabulary).long().clamp_max(vocabulary - 1)
    ids = torch.where(chosen & (fate < 0.8), torch.full_like(input_ids_BL, mask_id), input_ids_BL)
    return torch.where(chosen & (fate >= 0.9), word, ids), input_ids_BL.masked_fill(~chosen, -100)


def draw_pairs(similarity: Part, positives: Part, temperature: float = 0.05, seed: int = 0,
               step: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Draw this rank's pairs for image-text matching (ITM): true pairs, and hard negatives.

    A random half of the global batch keeps its pair (label 1). For each other sample, a coin decides whether its video
    or its text is swapped (label 0). The new video is drawn from the text's row, or the new text from the video's
    column, with probability softmax(s / temperature) over what is not positive. A sample without any negative keeps its
    pair.

    Every random number is a hash of (seed, step, global row). So the draws are the same for any number of ranks, and
    each rank draws for its own rows alone.

    Args:
        similarity, positives: on any device; pairs stand on the diagonal of the whole matrices.

    Returns:
        (text index, video index, label) of this rank's b rows, each (b,) and on the matrices' device. Indices are
        global numbers.

    Source: EgoVLPv2 (arXiv 2307.05463).
    """
    (b, B), device, first = similarity.rows_bB.shape, similarity.rows_bB.device, similarity.first
    own = np.arange(first, first + b)
    order_B = counter_random.hashes(np.arange(B), seed, step, 0)
    swaps = order_B[own] >= np.partition(order_B, B // 2)[B // 2]
    swaps_video = counter_random.uniforms(own, seed, step, 1) < 0.5
    rows, columns = np.flatnonzero(swaps & swaps_video), np.flatnonzero(swaps & ~swaps_video)
    swapped = np.concatenate([rows, columns])
    uniforms = counter_random.uniforms(own[swapped], seed, step, 2)
    # which rows swap is known on the CPU, so that it does not wait for a GPU
    rows, columns, swapped, uniforms = (torch.from_numpy(x).to(device, non_blocking=True)
                                        for x in (rows, columns, swapped, uniforms))

    def chosen(part: Part) -> Tensor:
        rows_bB, columns_bB = part.rows_bB.detach(), part.columns_bB.detach()
        return torch.cat([rows_bB.index_select(0, rows), columns_bB.index_select(0, columns)])

    index_n, possible_n = draw_negatives(chosen(similarity), chosen(positives), temperature, uniforms)
    own = torch.arange(first, first + b, device=device)
    index_n = torch.where(possible_n, index_n, own[swapped])
    video_index_b = own.index_copy(0, rows, index_n[:len(rows)])
    text_index_b = own.index_copy(0, columns, index_n[len(rows):])
    return text_index_b, video_index_b, torch.ones_like(own).index_copy(0, swapped, (~possible_n).long())


def draw_negatives(similarity_nB: Tensor, positives_nB: Tensor, temperature: float,
                   uniforms_n: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a column of each row, with probability softmax(s / temperature) over what is not positive.

    The uniform number u of a row chooses the first column up to which the probabilities sum to more than u. They are
    summed as integers, of 46 bits at B = 32,768: exactly, so that the sum's order and the device don't matter, and a
    positive, whose integer is 0, is never drawn. What is 2^46 times less probable than the most probable is 0, too.

    Args:
        uniforms_n: float64 from [0, 1).

    Returns:
        (column, whether the row has a negative), each (n,); without a negative the column means nothing.
    """
    # NaN (of a diverged step, which the loop skips and counts) draws like 0: an error here would stop one rank alone
    logits = similarity_nB.to(torch.float64, copy=True).div_(temperature).nan_to_num_()
    positive, B = positives_nB.bool(), logits.shape[1]
    logits.masked_fill_(positive, float("-inf"))
    share = logits.sub_(logits.amax(1, keepdim=True)).exp_().mul_(2.0 ** (62 - B.bit_length()))
    cumulated = share.masked_fill_(positive, 0.0).long().cumsum_(1)  # a row of positives alone was NaN
    total_n1 = cumulated[:, -1:]
    # float64 may round the product up to the total
    target_n1 = torch.minimum((uniforms_n[:, None] * total_n1.double()).long(), total_n1 - 1)
    column_n = torch.searchsorted(cumulated, target_n1, right=True)[:, 0]
    return column_n, total_n1[:, 0] > 0
