"""Checkpoints that a thread writes from copies in memory, so that training waits for the copies alone.

A copy is complete before training goes on: what the optimizer changes afterwards never reaches a file. Files are
written one after the other, in the order in which they are given, each under a temporary name first, so a kill leaves
whole files of earlier steps. After an error nothing more is written, and the training loop gets the error.
"""
import copy
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from egokit.model import checkpoints

CHUNK = 2**28  # bytes: pinned memory is rounded up to a power of two, which would waste a third of small pieces
ALIGNMENT = 64  # bytes, of tensors in a chunk
PAUSE = 0.002  # seconds between two looks at the thread


class HostCopy:
    """Host memory that takes a copy of a content's tensors, again and again; pinned if they are on a GPU."""

    def __init__(self):
        self._chunks: list[Tensor] = []
        self._places: dict[tuple[int, ...], list[tuple[int, int]]] = {}  # (chunk, offset) of tensors of these sizes

    @property
    def bytes(self) -> int:
        """Size of the memory, which is kept between copies."""
        return sum(len(chunk) for chunk in self._chunks)

    def take(self, content: dict) -> dict:
        """Return a copy of a content that no later change of its tensors or containers reaches.

        It lies in this object's memory, so the next call overwrites its tensors. Tensors that are the same memory are
        one tensor in the copy.
        """
        found: list[Tensor] = []
        _collect(content, found)
        originals = {_identity(tensor): tensor.detach() for tensor in found}
        sizes = tuple(tensor.nbytes for tensor in originals.values())
        devices = {tensor.device for tensor in originals.values() if tensor.is_cuda}
        if sizes not in self._places:
            self._places = {sizes: self._arrange(sizes, pinned=bool(devices))}
        copies = {}
        for (key, tensor), (chunk, offset) in zip(originals.items(), self._places[sizes], strict=True):
            copies[key] = _view(self._chunks[chunk], offset, tensor).copy_(tensor, non_blocking=True)
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        return copy.deepcopy(content, {id(tensor): copies[_identity(tensor)] for tensor in found})

    def _arrange(self, sizes: tuple[int, ...], pinned: bool) -> list[tuple[int, int]]:
        """Make room for tensors of these sizes in bytes; return the chunk and the offset of each."""
        self._chunks, used, places = [], [], [(0, 0)] * len(sizes)
        chunk_bytes = min(CHUNK, sum(size + ALIGNMENT for size in sizes))
        for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
            size = -(-sizes[number] // ALIGNMENT) * ALIGNMENT
            chunk = next((index for index, taken in enumerate(used) if taken + size <= len(self._chunks[index])), None)
            if chunk is None:
                chunk = len(used)
                self._chunks.append(_host_memory(max(size, chunk_bytes), pinned))
                used.append(0)
            places[number] = chunk, used[chunk]
            used[chunk] += size
        return places


def _collect(value, found: list[Tensor]) -> None:
    """Append the tensors in nested dicts, lists and tuples to `found`."""
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            _collect(item, found)


def _identity(tensor: Tensor) -> tuple:
    """Return what two tensors of the same memory have in common."""
    place = tensor.data_ptr() or id(tensor)  # an empty tensor lies nowhere
    return tensor.device, place, tensor.dtype, tensor.shape, tensor.stride()


def _host_memory(size: int, pinned: bool) -> Tensor:
    """Return `size` bytes of host memory, pinned if asked for and the machine has any left."""
    if pinned:
        try:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        except RuntimeError as error:
            print(f"copies of checkpoints take longer: no pinned memory ({str(error).splitlines()[0][:100]})",
                  flush=True)
    return torch.empty(size, dtype=torch.uint8)


def _view(chunk: Tensor, offset: int, like: Tensor) -> Tensor:
    """Return a tensor of a shape, type and order of axes in a chunk's memory.

    Its storage is its own part of the chunk, because PyTorch writes whole storages.
    """
    if not like.numel():
        return torch.empty(like.shape, dtype=like.dtype)
    dense = torch.empty_like(like, device="meta")
    part = torch.from_numpy(chunk.numpy()[offset:offset + like.nbytes])
    return part.view(like.dtype).as_strided(dense.shape, dense.stride())


class CheckpointWriter:
    """Writes checkpoints beside the training. One process of a training uses it, from its main thread.

    Leaving its `with` block waits for the files.

    Args:
        before: called by the thread before each file; what it raises keeps the file from being written.

    Attributes:
        waited: seconds for which the caller has waited, in all.
    """

    def __init__(self, before: Callable[[], None] = lambda: None):
        self.waited = 0.0
        self._before = before
        self._copies: dict[str, HostCopy] = {}
        self._jobs: list[_Job] = []
        self._error: BaseException | None = None
        self._is_raised = False

    @property
    def bytes(self) -> int:
        """Host memory of the copies, which is kept until the block ends."""
        return sum(each.bytes for each in self._copies.values())

    def write(self, path: Path, content: dict, memory: str, after: Callable[[], None] = lambda: None) -> None:
        """Copy a checkpoint's content, and let the thread write it when those before it are written.

        Args:
            content: see `checkpoints.write`.
            memory: name of the memory for the copy; one write at a time uses it, and the next waits.
            after: called by the thread when the file is whole.

        Raises:
            WeightsError: an earlier file could not be written, such as on a full disk.
        """
        began = time.perf_counter()
        try:
            self._wait(memory)
            self.raise_error()
            copied = self._copies.setdefault(memory, HostCopy()).take(content)
            job = _Job(self, path, copied, memory, after, self._jobs[-1] if self._jobs else None)
            job.start()
            self._jobs = [each for each in self._jobs if not each.is_done] + [job]
        finally:
            self.waited += time.perf_counter() - began

    def wait(self) -> None:
        """Wait until all files are written.

        A signal handler may call it wherever it interrupts the training: it takes no lock.
        """
        began = time.perf_counter()
        self._wait()
        self.waited += time.perf_counter() - began

    def _wait(self, memory: str | None = None) -> None:
        """Wait for all files, or for those that are written from one memory."""
        for job in self._jobs:
            while not job.is_done and memory in (None, job.memory):
                time.sleep(PAUSE)

    def raise_error(self) -> None:
        """Raise the error of a file that could not be written, if there was one."""
        if self._error:
            self._is_raised = True
            raise self._error

    def finish(self) -> None:
        """Wait until all files are written, and raise the error of one that could not be."""
        self.wait()
        self.raise_error()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        """Wait for the files, and let go of the memory; an error of the block counts more than one of a file."""
        self.wait()
        self._copies.clear()
        if kind is None:
            self.raise_error()
        elif self._error and not self._is_raised:
            print(self._error, flush=True)


class _Job(threading.Thread):
    """The writing of one file, after the file before it. At the end of the program, Python waits for it."""

    def __init__(self, writer: CheckpointWriter, path: Path, content: dict, memory: str, after: Callable[[], None],
                 previous: "_Job | None"):
        super().__init__(name=f"checkpoint {path.name}", daemon=False)
        self.memory, self.is_done = memory, False
        self._work = writer, path, content, after, previous

    def run(self) -> None:
        writer, path, content, after, previous = self._work
        del self._work  # the chain of finished jobs would keep all of them
        try:
            if previous:
                previous.join()
            if writer._error is None:
                writer._before()
                checkpoints.write(path, content)
                after()
        except BaseException as error:
            writer._error = error
        finally:
            self.is_done = True
