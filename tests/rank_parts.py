"""One rank of test_dist.py: losses on parts of uneven shares, their gradients and their memory.

It prints what it found, as JSON: mostly {name: largest error relative to the largest number}.
"""
import json
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from egokit.model import dual
from egokit.tasks import losses
from egokit.train import distributed
from egokit.train.gradient_cache import by_micro_batches
from egokit.train.parts import Part, similarity_part

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
torch.set_num_threads(1)
counts = [2 + (3 * r + 1) % 4 for r in range(world)]  # 3, 2, 5, 4: uneven, and not in order
first, b, B = sum(counts[:rank]), counts[rank], sum(counts)
mine = slice(first, first + b)


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Encoders(nn.Module):
    """Two encoders and two learned numbers, on features of clips and texts."""

    def __init__(self):
        super().__init__()
        self.text, self.video = nn.Linear(7, 6), nn.Linear(7, 6)
        self.log_scale, self.bias = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(-0.5))
        with torch.no_grad():
            for seed, parameter in enumerate([*self.text.parameters(), *self.video.parameters()]):
                parameter.copy_(drawn(*parameter.shape, seed=seed))

    def embed(self, clips, texts):
        return self.video(clips).tanh(), self.text(texts).tanh()


clips_B7, texts_B7 = drawn(B, 7, seed=11), drawn(B, 7, seed=12)
classes_BC = [drawn(B, 3, seed=seed) > 0 for seed in (13, 14)]
positives_BB = losses.positives(*classes_BC)
relevancy_BB = (2 * drawn(B, B, seed=15).sigmoid()).round() / 2  # of few values, and not symmetric


def part_of(matrix_BB):
    """The part of this rank, cut out of the whole matrix."""
    return Part.whole(matrix_BB) if world == 1 else Part(matrix_BB[mine], matrix_BB.T[mine], first, world)


def siglip(model, s, positives):
    """A loss that reads rows alone, and has numbers of its own to learn."""
    s, positives = Part.of(s), Part.of(positives)
    signs = 2 * positives.rows_bB.to(s.rows_bB.dtype) - 1
    logits = model.log_scale.exp() * s.rows_bB + model.bias
    return s.mean_of_texts(-nn.functional.logsigmoid(signs * logits).sum(1))


LOSSES = {
    "egonce": lambda model, s, own: losses.egonce(s, own(positives_BB), 0.1),
    "infonce": lambda model, s, own: losses.infonce(s, 0.1),
    "max_margin": lambda model, s, own: losses.max_margin(s, Part.of(own(relevancy_BB)).own_pairs(), 0.4),
    "symmetric_multi_similarity": lambda model, s, own: losses.symmetric_multi_similarity(s, own(relevancy_BB)),
    "siglip": lambda model, s, own: siglip(model, s, own(positives_BB)),
    "two": lambda model, s, own: losses.infonce(s, 0.1) + siglip(model, s, own(positives_BB)),
}


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def error(got, expected):
    return max(((got[name] - x).abs().max() / x.abs().max()).item() for name, x in expected.items())


def whole(name, frozen=""):
    """Value and gradients of the whole matrix, in this process alone."""
    model = frozen_in(Encoders(), frozen)
    video_BE, text_BE = model.embed(clips_B7, texts_B7)
    value = LOSSES[name](model, dual.similarity(text_BE, video_BE), lambda matrix_BB: matrix_BB)
    value.backward()
    return value.item(), gradients(model)


def frozen_in(model, frozen):
    if frozen:
        getattr(model, frozen).requires_grad_(False)
    return model


def of_ranks(name, micro_batch, frozen=""):
    """Value and gradients of the ranks' parts, averaged as in a step with micro-batches."""
    model = frozen_in(Encoders(), frozen)
    video_bE, text_bE = by_micro_batches(model.embed, micro_batch, clips_B7[mine], texts_B7[mine])
    value = LOSSES[name](model, similarity_part(text_bE, video_bE, counts), part_of)
    (1024 * value).backward()  # as a GradScaler does
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= 1024
            distributed.mean(parameter.grad)
    return distributed.mean(value.detach()).item(), gradients(model)


class Loss(nn.Module):
    """What DDP wraps: both encoders, one after the other, and two losses on parts."""

    def __init__(self):
        super().__init__()
        self.model = Encoders()

    def forward(self):
        value = 0
        for name in ("egonce", "siglip"):  # each with its own collectives, forward and backward
            video_bE, text_bE = self.model.embed(clips_B7[mine], texts_B7[mine])
            value = value + LOSSES[name](self.model, similarity_part(text_bE, video_bE), part_of)
        return value


class Largest(TorchDispatchMode):
    """Number of elements of the largest tensor made in the block."""
    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.size = max([self.size, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))])
        return out


def largest(b=48):
    """Elements of the largest tensor of EgoNCE on parts, forward and backward, in b x B."""
    text_bE, video_bE = (drawn(b, 5, seed=seed).requires_grad_() for seed in (rank, 10 + rank))
    with Largest() as made:
        s = similarity_part(text_bE, video_bE, [b] * world)
        losses.egonce(s, s.is_own_pair()).backward()
    return made.size / (b * b * world)


with distributed.joined(rank, world, folder / "meeting", local=True):
    result = {}
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # all in double precision: what differs then is not rounding
    for name in LOSSES:
        value, expected = whole(name)
        for micro_batch in (0, 1, 2):
            got, grads = of_ranks(name, micro_batch)
            result[f"{name} {micro_batch}"] = max(abs(got / value - 1), error(grads, expected))
            assert grads.keys() == expected.keys()
    for frozen in ("text", "video"):
        expected, (_, grads) = whole("egonce", frozen)[1], of_ranks("egonce", 2, frozen)
        result[f"{frozen} frozen"] = error(grads, expected)
        assert grads.keys() == expected.keys()
    loss = nn.parallel.DistributedDataParallel(Loss(), bucket_cap_mb=1e-4) if world > 1 else Loss()
    loss().backward()
    both = [whole(name)[1] for name in ("egonce", "siglip")]
    result["ddp"] = error({name.split("model.")[1]: grad for name, grad in gradients(loss).items()},
                          {name: sum(grads.get(name, 0) for grads in both) for name in both[1]})
    result["largest"] = largest()

    video_bE, text_bE = Encoders().embed(clips_B7[mine], texts_B7[mine])
    rows_bB = similarity_part(text_bE, video_bE).rows_bB
    with torch.autocast("cpu", torch.bfloat16):
        result["autocast"] = (similarity_part(text_bE, video_bE).rows_bB - rows_bB).abs().max().item()
    if rank == world - 1:
        text_bE = text_bE * torch.nan
    s = similarity_part(text_bE, video_bE)
    result["nan"] = [losses.infonce(s).isnan().item(), losses.max_margin(s).isnan().item()]
    result["same bits"] = True
    if world > 1:
        rows_BB, columns_BB = (distributed.gather(x.detach().nan_to_num(9)) for x in (s.rows_bB, s.columns_bB))
        result["same bits"] = torch.equal(rows_BB, columns_BB.T)
print(json.dumps(result))
