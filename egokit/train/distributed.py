"""Process groups: joining, gathering with gradients, moving chosen rows. Nothing else touches torch.distributed.

Every function works, as the identity, in a program of one process. The convention for losses: each rank computes the
same global value from gathered tensors, or its own samples' part times world_size; DDP's mean of the gradients is then
the gradient of one process on the whole batch.
"""
from __future__ import annotations

import contextlib
import datetime
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = datetime.timedelta(minutes=10)  # of a collective: bounds the wait for a rank that has died
BUCKET = 2**25                            # bytes of gradients that are sent together, on GPUs
PATIENCE = datetime.timedelta(hours=12)   # where ranks meet after work of uneven length; a closed connection still ends it
_patient = None                           # a gloo group with that patience; it also keeps pickles off the GPU


def is_on() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_on() else 0


def world_size() -> int:
    return dist.get_world_size() if is_on() else 1


@contextlib.contextmanager
def joined(rank: int, world: int, meeting: Path, local: bool, device: torch.device | None = None):
    """Join the process group of `world` ranks for the duration of the block: NCCL's of this rank's GPU, or gloo's on a CPU.

    Rank 0 opens a free port and writes it to the file `meeting` (on a folder all ranks see); a file that belongs to
    this start alone, so that ranks of an earlier one can't join. A rank that fails leaves an NCCL group at once: it aborts it,
    as to destroy it is to wait for collectives in which the others may never meet it.
    """
    if world == 1:
        yield
        return
    if rank == 0:
        meeting.unlink(missing_ok=True)  # of an earlier start under the same name
        host = "127.0.0.1" if local else socket.gethostname()
        store = dist.TCPStore(host, 0, world, is_master=True, timeout=TIMEOUT, wait_for_workers=False)
        meeting.parent.mkdir(parents=True, exist_ok=True)
        part = meeting.with_suffix(".part")
        part.write_text(f"{host} {store.port}")
        os.replace(part, meeting)
    else:
        deadline = time.monotonic() + TIMEOUT.total_seconds()
        while not meeting.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"rank {rank}: rank 0 did not write {meeting} within {TIMEOUT}; see its log beside this one")
            time.sleep(0.05)
        host, port = meeting.read_text().split()
        store = dist.TCPStore(host, int(port), world, is_master=False, timeout=TIMEOUT)
    on_gpu = device is not None and device.type == "cuda"
    dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=world, timeout=TIMEOUT,
                            device_id=device if on_gpu else None)  # known now, its communicator is made, and fails, here
    global _patient
    _patient, failed = dist.new_group(backend="gloo", timeout=PATIENCE), False
    try:
        yield
    except (Exception, KeyboardInterrupt):
        failed = True
        raise
    finally:
        _patient = None
        if failed and on_gpu:
            dist.group.WORLD.abort()
        else:
            dist.destroy_process_group()
        if rank == 0:
            meeting.unlink(missing_ok=True)


def sizes(count: int, device=None) -> list[int]:
    """Every rank's count."""
    if not is_on():
        return [count]
    counts = torch.zeros(world_size(), dtype=torch.long, device=device)
    counts[rank()] = count
    dist.all_reduce(counts)
    return counts.tolist()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context, x: Tensor, counts: list[int]) -> Tensor:
        context.counts = counts
        padded = x.new_zeros((max(counts), *x.shape[1:]))
        padded[:len(x)] = x
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(context, grad: Tensor):
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.split(context.counts)[rank()], None


def gather(x: Tensor, counts: list[int] | None = None) -> Tensor:
    """(b, …) of each rank -> (B, …), in rank order, b may differ. Gradients of all ranks flow back, summed."""
    if not is_on():
        return x
    return _Gather.apply(x.contiguous(), counts or sizes(len(x), x.device))


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(context, x: Tensor, send: list[Tensor], receive: list[int]) -> Tensor:
        context.send, context.receive, context.length = send, receive, len(x)
        return _exchange(x[torch.cat(send)], [len(rows) for rows in send], receive)

    @staticmethod
    def backward(context, grad: Tensor):
        back = _exchange(grad, context.receive, [len(rows) for rows in context.send])
        out = grad.new_zeros((context.length, *grad.shape[1:]))
        return out.index_add_(0, torch.cat(context.send), back), None, None


def _exchange(x: Tensor, give: list[int], take: list[int]) -> Tensor:
    out = x.new_empty((sum(take), *x.shape[1:]))
    dist.all_to_all_single(out.flatten(1) if out.dim() > 1 else out, x.contiguous().flatten(1) if x.dim() > 1 else x.contiguous(),
                           output_split_sizes=take, input_split_sizes=give)
    return out


def gather_rows(x: Tensor, index_B: Tensor, counts: list[int]) -> Tensor:
    """Rows of the global tensor that this rank's share of `index_B` names, moving only those rows.

    x: this rank's rows (b, …). index_B: for each of the B global positions, the global row wanted there (the same on
    all ranks). Returns (b, …): the rows for this rank's positions. Gradients flow back to the rows' owners.
    """
    if not is_on():
        return x[index_B.to(x.device, non_blocking=True)]
    starts = torch.tensor([0, *counts]).cumsum(0)
    wants = [part.cpu() for part in index_B.split(counts)]                   # each rank's wanted global rows
    mine = starts[rank()], starts[rank() + 1]
    send = [(want[(want >= mine[0]) & (want < mine[1])] - mine[0]).to(x.device) for want in wants]
    owner = torch.bucketize(wants[rank()], starts[1:], right=True)           # rank that owns each row I want
    receive = torch.bincount(owner, minlength=world_size()).tolist()
    rows = _Rows.apply(x, send, receive)                                     # arrive sorted by owner
    return rows[torch.argsort(torch.argsort(owner, stable=True)).to(x.device)]


def broadcast(tensors: list[Tensor], device=None) -> list[Tensor]:
    """Rank 0's tensors, on every rank (same shapes everywhere)."""
    if not is_on():
        return tensors
    out = []
    for tensor in tensors:
        moved = tensor.to(device)
        dist.broadcast(moved, 0)
        out.append(moved.cpu())
    return out


def mean(values: Tensor) -> Tensor:
    """Mean over ranks, for logging."""
    if is_on():
        dist.all_reduce(values)
        values /= world_size()
    return values


def average_gradients(module: torch.nn.Module, bucket_bytes: int | None = None) -> None:
    """Replace every gradient by its mean over ranks, once a step, where DDP is not there to do it.

    On GPUs small gradients are sent together, as each message has its latency; on CPUs the copies would cost more than that
    (twice the time, 381 M parameters on two gloo ranks).
    """
    if not is_on():
        return
    grads, sent = [parameter.grad for parameter in module.parameters() if parameter.requires_grad], []
    if bucket_bytes is None:
        bucket_bytes = BUCKET if grads[0].is_cuda else 0
    for bucket in buckets(grads, bucket_bytes):
        flat = bucket[0] if len(bucket) == 1 else torch.cat([grad.flatten() for grad in bucket])
        sent.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
    for bucket, flat, work in sent:
        work.wait()
        flat.div_(world_size())
        if len(bucket) > 1:
            parts = flat.split([grad.numel() for grad in bucket])
            torch._foreach_copy_(bucket, [part.view_as(grad) for part, grad in zip(parts, bucket, strict=True)])


def buckets(grads: list[Tensor], most: int) -> Iterator[list[Tensor]]:
    """Consecutive gradients of one type, of `most` bytes together at most; a larger one is alone."""
    bucket: list[Tensor] = []
    size = 0
    for grad in grads:
        if bucket and (grad.dtype != bucket[0].dtype or size + grad.nbytes > most):
            yield bucket
            bucket, size = [], 0
        bucket.append(grad)
        size += grad.nbytes
    if bucket:
        yield bucket


def share_parameters(module: torch.nn.Module) -> None:
    """Rank 0's parameters, on every rank, in place: what DDP does at its start."""
    if is_on():
        for parameter in module.parameters():
            dist.broadcast(parameter.data, 0)


def gather_objects(value) -> list:
    """Every rank's object, on every rank."""
    if not is_on():
        return [value]
    out = [None] * world_size()
    dist.all_gather_object(out, value, group=_patient)
    return out


def start_any(flag: bool) -> Callable[[], bool]:
    """Ask whether any rank's flag is set. Returns at once, with a function that waits for the answer."""
    if not is_on():
        return lambda: flag
    flags = torch.tensor([int(flag)])
    asked = dist.all_reduce(flags, dist.ReduceOp.MAX, group=_patient, async_op=True)

    def answer() -> bool:
        asked.wait()
        return bool(flags)
    return answer


def barrier() -> None:
    if is_on():
        dist.barrier(group=_patient)
