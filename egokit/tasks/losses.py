"""Loss formulas on similarity matrices; drawing of hard negatives and masked words.

The losses take a `Part` (train/parts.py), this rank's rows and columns of the matrix of the global batch, and return
this rank's share of the loss, times the number of ranks: the first way of `Task.loss` (base.py). They also take the
whole matrix, and then return the loss.

Shapes: similarities are cosines of texts (rows) with videos (columns), B x B of the global batch: row i is text i,
column j is video j, and pairs stand on the diagonal. b rows and b columns are this rank's; in one process, b = B.
"""
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from egokit.tasks import counter_random
from egokit.train.parts import Part


def positives(verbs_bC: Tensor, nouns_bC: Tensor, verbs_BC: Tensor | None = None, nouns_BC: Tensor | None = None,
              first: int = 0) -> Tensor:
    """Return which pairs are positive: the diagonal, and those that share a verb and a noun.

    Args:
        verbs_bC, nouns_bC: multi-hot classes of each sample, 0 or 1.
        verbs_BC, nouns_BC: those of the samples with which they are compared; None: the same.
        first: the place of the first of the b samples among the B.

    Returns:
        (b, B) bool; of all samples with all, symmetric.

    Source: EgoVLP (arXiv 2206.01670), eq. 4.
    """
    verbs_BC, nouns_BC = (own if x is None else x for own, x in ((verbs_bC, verbs_BC), (nouns_bC, nouns_BC)))
    shared_bB = (verbs_bC.float() @ verbs_BC.float().T > 0) & (nouns_bC.float() @ nouns_BC.float().T > 0)
    shared_bB.diagonal(first).fill_(True)
    return shared_bB


def egonce(similarity: Part | Tensor, positives: Part | Tensor, temperature: float = 0.05) -> Tensor:
    """Return EgoNCE, the contrastive loss of pre-training.

    It is a mean over texts plus a mean over videos. For text i with positives P_i, and for every video in the same way
    over its column:

        -log( sum over j in P_i of exp(s_ij / temperature)  /  sum over all j of exp(s_ij / temperature) )

    `infonce` calls it, too: a change here also changes fine-tuning on Charades-Ego.

    Args:
        similarity: cosines s, a part or the whole matrix.
        positives: bool, at least one in each row and column, of the same kind; see the function `positives`.

    Returns:
        Scalar, float32: of a part, this rank's share times the number of ranks.

    Source: EgoVLP (arXiv 2206.01670), eq. 3.
    """
    logits = Part.of(similarity).map(lambda s: s.float() / temperature)
    positive_logits = logits.map(lambda x, p: x.masked_fill(~p.bool(), float("-inf")), Part.of(positives))
    text_to_video_b = torch.logsumexp(logits.rows_bB, 1) - torch.logsumexp(positive_logits.rows_bB, 1)
    video_to_text_b = torch.logsumexp(logits.columns_bB, 1) - torch.logsumexp(positive_logits.columns_bB, 1)
    return logits.mean_of_texts(text_to_video_b) + logits.mean_of_videos(video_to_text_b)


def infonce(similarity: Part | Tensor, temperature: float = 0.05) -> Tensor:
    """Return symmetric InfoNCE: EgoNCE whose only positives are on the diagonal.

    Returns:
        Scalar, float32: of a part, this rank's share times the number of ranks.

    Source: EgoVLPv2's recipe for Charades-Ego.
    """
    similarity = Part.of(similarity)
    return egonce(similarity, similarity.is_own_pair(), temperature)


def off_diagonal_mean(pairs: Part, rows_bB: Tensor, columns_bB: Tensor) -> Tensor:
    """Return this rank's share of the mean of what stands off the diagonal, times the number of ranks.

    Args:
        pairs: says which elements are on the diagonal.
        rows_bB, columns_bB: values for this rank's rows and for its columns, to be averaged together.
    """
    own_pair, B = pairs.is_own_pair(), rows_bB.shape[1]
    # a sum, because the CPU would wait for the GPU to select the elements
    total = torch.stack([rows_bB.masked_fill(own_pair.rows_bB, 0.0).sum(),
                         columns_bB.masked_fill(own_pair.columns_bB, 0.0).sum()]).sum()
    return total * pairs.ranks / (2 * B * (B - 1))


def max_margin(similarity: Part | Tensor, relevancy_b: Tensor | None = None, margin: float = 0.2) -> Tensor:
    """Return the adaptive max-margin ranking loss, in both directions.

    The mean over i != j of

        relu(margin * c_i - (s_ii - s_ij))    and    relu(margin * c_i - (s_ii - s_ji))

    Args:
        similarity: cosines s, pairs on the diagonal; a part or the whole matrix.
        relevancy_b: c, the relevancy of each pair of this rank in [0, 1], which scales its margin; None is 1.

    Returns:
        Scalar, float32: of a part, this rank's share times the number of ranks.

    Raises:
        ValueError: relevancy_b is not of this rank's pairs, such as one gathered from all ranks.

    Source: EgoVLPv2's recipe for fine-tuning on EK-100.
    """
    s = Part.of(similarity).map(Tensor.float)
    own = s.own_pairs()[:, None]
    if relevancy_b is not None and relevancy_b.shape != own[:, 0].shape:  # it would be broadcast
        raise ValueError(f"relevancy_b: expected a number for each of this rank's {len(own)} pairs, got a tensor "
                         f"{tuple(relevancy_b.shape)}; give this rank's own, not what is gathered from all ranks")
    margins = margin * (torch.ones_like(own) if relevancy_b is None else relevancy_b.float()[:, None])
    return off_diagonal_mean(s, F.relu(margins - (own - s.rows_bB)), F.relu(margins - (own - s.columns_bB)))


def symmetric_multi_similarity(similarity: Part | Tensor, relevancy: Part | Tensor, margin: float = 0.6,
                               slack: float = 0.1, step: float = 1e-3) -> Tensor:
    """Return a loss that sets similarities as far apart as relevancies are.

    With d = c_ii - c_ij and m = margin * d - (s_ii - s_ij), the mean over i != j, in both directions, of

        relu(m)             where pair ij is less relevant than pair ii (d > step),
        relu(-m)            where it is more relevant (d < -step),
        relu(|m| - slack)   where both are equally relevant.

    Args:
        similarity: cosines s, pairs on the diagonal; a part or the whole matrix.
        relevancy: c, the relevancy of text i and video j in [0, 1], of the same kind.
        step: relevancies that differ by no more are equal. EK-100's differ by more if at all; their rounding errors are
            far smaller.

    Returns:
        Scalar, float32: of a part, this rank's share times the number of ranks.

    Source: symmetric multi-similarity loss (arXiv 2406.12256).
    """
    def one_direction(s: Tensor, c: Tensor) -> Tensor:
        d = c.diagonal(first)[:, None] - c
        m = margin * d - (s.diagonal(first)[:, None] - s)
        return torch.where(d.abs() <= step, F.relu(m.abs() - slack), F.relu(m * d.sign()))

    s, c = (Part.of(matrix).map(Tensor.float) for matrix in (similarity, relevancy))
    s.expect_same_pairs(c)
    first = s.first
    return off_diagonal_mean(s, one_direction(s.rows_bB, c.rows_bB), one_direction(s.columns_bB, c.columns_bB))


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
