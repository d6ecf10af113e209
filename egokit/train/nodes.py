"""Work that one rank does for all, or one rank of each node for its node: reading files, and looking into folders.

All ranks call these functions together. An error of the rank that works is raised on every rank, so none waits for it.
"""
import io
import pickle
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from egokit.train import distributed


def once(function: Callable[[], object]):
    """Return what rank 0's call of a function returns, on every rank.

    Args:
        function: called by rank 0 alone; what it returns is pickled.

    Raises:
        Exception: rank 0's, of the same class and message on all ranks if it can be pickled, else a RuntimeError.
    """
    if not distributed.is_on():
        return function()
    error = content = None
    if distributed.rank() == 0:
        try:
            content = pickle.dumps((function(), None))
        except Exception as raised:
            error, content = raised, pickle.dumps((None, portable(raised)))
    result, sent = pickle.loads(_broadcast_bytes(content))
    if sent is not None:
        raise error or sent
    return result


def once_a_node(function: Callable[[], object]):
    """Return what a function returns, called by one rank of each node, on every rank of the node.

    Tensors are sent one by one, so that no rank holds them twice. Those that share memory don't share it afterwards,
    except one tensor that stands at several places.

    Args:
        function: called by the lowest rank of each node. What it returns is pickled, but for its tensors, which are on
            the CPU.

    Raises:
        Exception: that of the first rank whose call failed, on all ranks of all nodes; see `once`.
    """
    if not distributed.is_on():
        return function()
    content = error = None
    if distributed.rank() == distributed.patient_group(of_node=True)[0]:
        try:
            content = _Packed(function())
        except Exception as raised:
            error = raised
    failures = [each for each in distributed.gather_objects(portable(error) if error else None) if each]
    if failures:
        raise error or failures[0]
    if distributed.rank() == distributed.patient_group(of_node=True)[0]:
        _broadcast_bytes(content.pickled, of_node=True)
        for tensor in content.tensors:
            _broadcast_in_node(tensor.detach().contiguous())
        return content.value
    return _Unpickler(io.BytesIO(_broadcast_bytes(None, of_node=True))).load()


class _Packed(pickle.Pickler):
    """A value, pickled without its tensors, and its tensors in the order in which they are met."""

    def __init__(self, value):
        self.value, self.tensors, self._numbers, file = value, [], {}, io.BytesIO()
        super().__init__(file)
        self.dump(value)
        self.pickled = file.getvalue()

    def persistent_id(self, item):
        if not isinstance(item, Tensor):
            return None
        if id(item) not in self._numbers:
            self._numbers[id(item)] = len(self.tensors)
            self.tensors.append(item)
        return self._numbers[id(item)], item.dtype, tuple(item.shape)


class _Unpickler(pickle.Unpickler):
    """Reads a `_Packed` value; its tensors are received when they are met, in the same order as they are sent."""

    def __init__(self, file):
        super().__init__(file)
        self._tensors: list[Tensor] = []

    def persistent_load(self, pid) -> Tensor:
        number, dtype, shape = pid
        if number == len(self._tensors):
            self._tensors.append(torch.empty(shape, dtype=dtype))
            _broadcast_in_node(self._tensors[-1])
        return self._tensors[number]


def portable(error: Exception) -> Exception:
    """Return an error that other processes can unpickle: itself, or a RuntimeError that names its class."""
    try:
        same = pickle.loads(pickle.dumps(error))
        if type(same) is type(error) and str(same) == str(error):
            return error
    except Exception:
        pass
    return RuntimeError(f"rank {distributed.rank()} failed for the others: {type(error).__name__}: {error}")


def _broadcast_bytes(content: bytes | None, of_node: bool = False) -> bytes:
    """Return rank 0's bytes on every rank, or those of each node's lowest rank on the node's ranks.

    Args:
        content: read on the ranks that send alone.
    """
    source, group = distributed.patient_group(of_node)
    sends = distributed.rank() == source
    size = torch.tensor([len(content) if sends else 0])
    dist.broadcast(size, source, group=group)
    data = torch.frombuffer(bytearray(content), dtype=torch.uint8) if sends else torch.empty(size, dtype=torch.uint8)
    dist.broadcast(data, source, group=group)
    return content if sends else data.numpy().tobytes()


def _broadcast_in_node(tensor: Tensor) -> None:
    """Give every rank of a node its lowest rank's values, in place: of a tensor on the CPU, dense and equally large."""
    if tensor.numel():
        source, group = distributed.patient_group(of_node=True)
        dist.broadcast(tensor.reshape(-1).view(torch.uint8), source, group=group)
