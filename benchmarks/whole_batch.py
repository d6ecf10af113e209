"""The whole batch on every rank: what egokit computed, sent and drew before each rank had its own part of it.

benchmarks/scaling.py measures these plain functions beside egokit's own, in one run. Every rank gathers all embeddings,
computes the whole matrix of R x R, sums the gradients of all embeddings over ranks, and draws, or is told, the pairs of
all ranks.
"""
import torch
import torch.distributed as dist
from torch import Tensor


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context, x: Tensor, counts: list[int]) -> Tensor:
        context.counts = counts
        parts = [torch.empty_like(x) for _ in counts]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(context, grad: Tensor):
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.split(context.counts)[dist.get_rank()], None


def gather(x: Tensor, counts: list[int]) -> Tensor:
    """Return the rows of all ranks; the backward pass sums the gradients of all rows over ranks. Shares are even."""
    return _Gather.apply(x.contiguous(), counts) if dist.is_initialized() else x


def unit_vectors(x_bE: Tensor) -> Tensor:
    """Return each row divided by its norm."""
    return x_bE / x_bE.norm(dim=-1, keepdim=True).clamp_min(1e-8)


def positives(verbs_BC: Tensor, nouns_BC: Tensor) -> Tensor:
    """Return which pairs share a verb and a noun, or are the same, (B, B) bool."""
    shared = (verbs_BC @ verbs_BC.T > 0) & (nouns_BC @ nouns_BC.T > 0)
    return shared | torch.eye(len(verbs_BC), dtype=torch.bool)


def egonce(similarity_BB: Tensor, positives_BB: Tensor, temperature: float = 0.05) -> Tensor:
    """Return EgoNCE of the whole matrix."""
    logits = similarity_BB / temperature
    positive_logits = logits.masked_fill(~positives_BB, float("-inf"))
    texts = torch.logsumexp(logits, 1) - torch.logsumexp(positive_logits, 1)
    videos = torch.logsumexp(logits, 0) - torch.logsumexp(positive_logits, 0)
    return texts.mean() + videos.mean()


def loss(text_bE: Tensor, video_bE: Tensor, verbs_bC: Tensor, nouns_bC: Tensor, counts: list[int]) -> tuple:
    """Return (EgoNCE, similarity, positives) from this rank's rows, which every rank computes as a whole."""
    video_BE, text_BE = gather(video_bE, counts), gather(text_bE, counts)
    similarity_BB = unit_vectors(text_BE) @ unit_vectors(video_BE).T
    positives_BB = positives(gather(verbs_bC, counts), gather(nouns_bC, counts))
    return egonce(similarity_BB, positives_BB), similarity_BB, positives_BB


def draw_pairs(similarity_BB: Tensor, positives_BB: Tensor, temperature: float, generator: torch.Generator) -> tuple:
    """Draw the pairs of the whole batch: (text index, video index, label), each (B,)."""
    logits, B = similarity_BB.detach().float().nan_to_num() / temperature, len(similarity_BB)
    own, keep = torch.arange(B), torch.zeros(B, dtype=torch.bool)
    keep[torch.randperm(B, generator=generator)[: B // 2]] = True
    swap_video = torch.rand(B, generator=generator) < 0.5

    def negatives(logits_BB: Tensor, positive_BB: Tensor) -> tuple[Tensor, Tensor]:
        possible = ~positive_BB.all(1)
        safe = logits_BB.masked_fill(positive_BB & possible[:, None], float("-inf"))
        return torch.multinomial(safe.softmax(1), 1, generator=generator)[:, 0], possible

    video, video_possible = negatives(logits, positives_BB)
    text, text_possible = negatives(logits.T, positives_BB.T)
    keep |= ~torch.where(swap_video, video_possible, text_possible)
    return torch.where(~keep & ~swap_video, text, own), torch.where(~keep & swap_video, video, own), keep.long()


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(context, x: Tensor, give: list[int], take: list[int]) -> Tensor:
        context.give, context.take = give, take
        out = x.new_empty((sum(take), *x.shape[1:]))
        dist.all_to_all_single(out.flatten(1), x.contiguous().flatten(1), take, give)
        return out

    @staticmethod
    def backward(context, grad: Tensor):
        return _Exchange.apply(grad, context.take, context.give), None, None


def gather_rows(x: Tensor, index_B: Tensor, counts: list[int]) -> Tensor:
    """Return the rows (b, …) that this rank's share of `index_B`, known to all ranks, names; all rows are copied."""
    if not dist.is_initialized():
        return x[index_B]
    rank, starts = dist.get_rank(), torch.tensor([0, *counts]).cumsum(0)
    wants, low, high = index_B.split(counts), starts[rank], starts[rank + 1]
    send = [want[(want >= low) & (want < high)] - low for want in wants]
    owner = torch.bucketize(wants[rank], starts[1:], right=True)
    take = torch.bincount(owner, minlength=len(counts)).tolist()
    rows = _Exchange.apply(x.index_select(0, torch.cat(send)), [*map(len, send)], take)
    return rows[torch.argsort(torch.argsort(owner, stable=True))]
