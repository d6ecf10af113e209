"""Communication between processes: joining a group, and collectives with gradients.

Only this room touches torch.distributed. In a program of one process every function works, as the identity. What a
loss computes on each rank stands in `Task.loss` (egokit/tasks/base.py); `gather`, and moving.py, are made for it.
"""
import contextlib
import datetime
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from egokit.runs.files import processes, write_text
from egokit.train import timing

TIMEOUT = datetime.timedelta(minutes=10)  # of collectives: bounds the wait for a rank that has died
# timeout of barriers after uneven work (reading, evaluation); a rank that dies is still noticed at once
UNEVEN_TIMEOUT = datetime.timedelta(hours=12)
BUCKET_BYTES = 2**25  # gradients that are sent together, on GPUs
_uneven_group = None  # a gloo group with UNEVEN_TIMEOUT; it also keeps pickled objects off the GPU
_node_group = None  # the same for the ranks of this node
_node_leader = 0  # the lowest rank of this node


def is_on() -> bool:
    """Return whether this process belongs to a group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if is_on() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if is_on() else 1


@contextlib.contextmanager
def joined(rank: int, world: int, meeting: Path, local: bool, device: torch.device | None = None) -> Iterator[None]:
    """Join a process group for the duration of the block: NCCL on a GPU, gloo on a CPU.

    A rank that fails aborts its NCCL group and leaves at once. To destroy the group would be to wait for collectives
    in which the other ranks may never take part.

    Args:
        rank: this process's number, from 0.
        world: number of processes; with 1 there is no group.
        meeting: rendezvous file, in a folder that all ranks see. Rank 0 opens a free port and writes its address there.
            The file must belong to this start alone, so that ranks of an earlier start can't join.
        local: all ranks run on this machine.
        device: this rank's GPU, or a CPU.

    Raises:
        TimeoutError: rank 0 did not write the file within TIMEOUT.
    """
    if world == 1:
        yield
        return
    if rank == 0:
        meeting.unlink(missing_ok=True)  # left by an earlier start under the same name
        host = "127.0.0.1" if local else socket.gethostname()
        store = dist.TCPStore(host, 0, world, is_master=True, timeout=TIMEOUT, wait_for_workers=False)
        write_text(meeting, f"{host} {store.port}")
    else:
        deadline = time.monotonic() + TIMEOUT.total_seconds()
        while not meeting.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"rank {rank}: rank 0 did not write {meeting} within {TIMEOUT}; "
                                   "see its log beside this one")
            time.sleep(0.05)
        host, port = meeting.read_text().split()
        store = dist.TCPStore(host, int(port), world, is_master=False, timeout=TIMEOUT)
    on_gpu = device is not None and device.type == "cuda"
    dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=world, timeout=TIMEOUT,
                            device_id=device if on_gpu else None)  # with it NCCL connects, or fails, here and not later
    global _uneven_group, _node_group, _node_leader
    _uneven_group, failed = dist.new_group(backend="gloo", timeout=UNEVEN_TIMEOUT), False
    try:
        _node_group, _node_leader = (_uneven_group, 0) if local else _join_node()
        yield
    except (Exception, KeyboardInterrupt):
        failed = True
        raise
    finally:
        _uneven_group, _node_group, _node_leader = None, None, 0
        if failed and on_gpu:
            dist.group.WORLD.abort()
        else:
            dist.destroy_process_group()
        if rank == 0:
            meeting.unlink(missing_ok=True)


def _join_node() -> tuple[object, int]:
    """Make a group of the ranks on this node, those that see the same processes; return it and its lowest rank."""
    names = gather_objects(processes())
    ranks = [number for number, name in enumerate(names) if name == names[rank()]]
    # each node's ranks meet by themselves, so no rank takes part in the making of all nodes' groups
    return dist.new_group(ranks, UNEVEN_TIMEOUT, backend="gloo", use_local_synchronization=True), ranks[0]


def patient_group(of_node: bool = False) -> tuple[int, object]:
    """Return the lowest rank of the gloo group with UNEVEN_TIMEOUT, and the group: of all ranks, or this node's."""
    return (_node_leader, _node_group) if of_node else (0, _uneven_group)


@timing.waits
def sizes(count: int, device=None) -> list[int]:
    """Return every rank's count, in rank order."""
    if not is_on():
        return [count]
    counts = torch.zeros(world_size(), dtype=torch.long, device=device)
    counts[rank()] = count
    dist.all_reduce(counts)
    return counts.tolist()


@timing.waits
def gather_padded(x: Tensor, counts: list[int]) -> Tensor:
    """Return the rows of all ranks in one buffer, (W, longest b, …), without gradients; zeros follow shorter shares."""
    short = max(counts) - len(x)
    x = torch.cat([x, x.new_zeros((short, *x.shape[1:]))]) if short else x.contiguous()
    out = x.new_empty((len(counts) * max(counts), *x.shape[1:]))
    dist.all_gather_into_tensor(out, x)
    return out.unflatten(0, (len(counts), max(counts)))


@timing.waits
def swap(x_W: Tensor) -> Tensor:
    """Send x_W[r] to rank r, and return what each rank sent here, (W, …), without gradients."""
    out = torch.empty_like(x_W, memory_format=torch.contiguous_format)
    dist.all_to_all_single(out, x_W.contiguous())
    return out


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context, x: Tensor, counts: list[int]) -> Tensor:
        context.counts = counts
        padded = gather_padded(x, counts)
        if min(counts) == max(counts):
            return padded.flatten(0, 1)
        return torch.cat([part[:count] for part, count in zip(padded, counts, strict=True)])

    @staticmethod
    def backward(context, grad: Tensor):
        own, W = context.counts[rank()], len(context.counts)
        return exchange(grad, context.counts, [own] * W).unflatten(0, (W, own)).sum(0), None


def gather(x: Tensor, counts: list[int] | None = None) -> Tensor:
    """Return the rows of all ranks, with gradients.

    The backward pass sums the gradients that all ranks have for this rank's rows; each rank receives those alone.

    Args:
        x: this rank's rows (b, …); b may differ between ranks.
        counts: every rank's b, if known; else the ranks exchange it.

    Returns:
        (B, …): the rows of all ranks, in rank order, the same on every rank.
    """
    if not is_on():
        return x
    return _Gather.apply(x.contiguous(), counts or sizes(len(x), x.device))


@timing.waits
def exchange(x: Tensor, give: Sequence[int], take: Sequence[int]) -> Tensor:
    """Send rows to other ranks and receive theirs, without gradients.

    NCCL sends nothing to a rank that gets no row; gloo sends an empty message.

    Args:
        x: rows (g, …): the first give[0] are for rank 0, the next give[1] for rank 1, and so on.
        take: number of rows that come from each rank.

    Returns:
        (t, …): the rows that arrived, in rank order.
    """
    x, out = x.contiguous(), x.new_empty((sum(take), *x.shape[1:]))
    dist.all_to_all_single(out.flatten(1) if out.dim() > 1 else out, x.flatten(1) if x.dim() > 1 else x,
                           output_split_sizes=[*take], input_split_sizes=[*give])
    return out


def broadcast(tensors: list[Tensor], device=None) -> list[Tensor]:
    """Return rank 0's tensors on every rank, on the CPU; shapes must be equal everywhere.

    Args:
        device: where the group communicates: this rank's GPU, or the CPU.
    """
    if not is_on():
        return tensors
    moved = [tensor.to(device) for tensor in tensors]
    for tensor in moved:
        dist.broadcast(tensor, 0)
    return [tensor.cpu() for tensor in moved]


@timing.waits
def mean(values: Tensor) -> Tensor:
    """Return the mean over ranks, for logging; `values` is changed in place."""
    if is_on():
        dist.all_reduce(values)
        values /= world_size()
    return values


@timing.waits
def average_gradients(module: torch.nn.Module, bucket_bytes: int | None = None) -> None:
    """Replace every gradient by its mean over ranks; once a step, for steps without DDP.

    On GPUs small gradients are sent together, because each message has its latency. On CPUs the copies would cost more
    than the latency (twice the time, for 381 M parameters on two gloo ranks).

    Args:
        bucket_bytes: most bytes that are sent together; None takes BUCKET_BYTES on GPUs and 0 on CPUs.
    """
    if not is_on():
        return
    grads = [parameter.grad for parameter in module.parameters() if parameter.requires_grad]
    sent = []
    if bucket_bytes is None:
        bucket_bytes = BUCKET_BYTES if grads[0].is_cuda else 0
    for bucket in buckets(grads, bucket_bytes):
        flat = bucket[0] if len(bucket) == 1 else torch.cat([grad.flatten() for grad in bucket])
        sent.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
    for bucket, flat, work in sent:
        work.wait()
        flat.div_(world_size())
        if len(bucket) > 1:
            parts = flat.split([grad.numel() for grad in bucket])
            torch._foreach_copy_(bucket, [part.view_as(grad) for part, grad in zip(parts, bucket, strict=True)])


def buckets(grads: list[Tensor], max_bytes: int) -> Iterator[list[Tensor]]:
    """Yield lists of consecutive gradients of one type, of at most `max_bytes` together.

    A larger gradient is alone.
    """
    bucket: list[Tensor] = []
    size = 0
    for grad in grads:
        if bucket and (grad.dtype != bucket[0].dtype or size + grad.nbytes > max_bytes):
            yield bucket
            bucket, size = [], 0
        bucket.append(grad)
        size += grad.nbytes
    if bucket:
        yield bucket


def broadcast_in_place(tensors: Iterable[Tensor]) -> None:
    """Copy rank 0's parameters or buffers to every rank, in place, as DDP does at its start."""
    if is_on():
        for tensor in tensors:
            dist.broadcast(tensor.data, 0)


@timing.waits
def gather_objects(value) -> list:
    """Return every rank's object, pickled and sent to every rank, in rank order."""
    if not is_on():
        return [value]
    out = [None] * world_size()
    dist.all_gather_object(out, value, group=_uneven_group)
    return out


def start_any(flag: bool) -> Callable[[], bool]:
    """Start to ask whether any rank's flag is set.

    Returns:
        At once, a function that waits for the answer, which is the same on all ranks.
    """
    if not is_on():
        return lambda: flag
    flags = torch.tensor([int(flag)])
    work = dist.all_reduce(flags, dist.ReduceOp.MAX, group=_uneven_group, async_op=True)

    @timing.waits
    def answer() -> bool:
        work.wait()
        return bool(flags)
    return answer


@timing.waits
def barrier() -> None:
    """Wait until all ranks are here, for up to UNEVEN_TIMEOUT."""
    if is_on():
        dist.barrier(group=_uneven_group)
