"""Checkpoint files: find, read, and write them atomically.

tensor_file.py knows the file formats; weights.py the key names and models.
"""
import contextlib
import contextvars
import copy
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from egokit.config.access import exists
from egokit.model import tensor_file
from egokit.runs.files import atomic_path, large_file_sha256
from egokit.runs.shown_text import shown

FORMAT = "egokit-1"
_read_by = contextvars.ContextVar("read_by", default=lambda function: function())
STATES = ("state_dict", "model", "model_state_dict")  # where files have tensors, unless they are the content itself


class WeightsError(ValueError):
    """A file that can't be loaded as asked; the message names it and says why."""

    report: dict[str, list[str]] | None = None  # where keys don't fit: all keys by kind


def read(path: str | Path, everything: bool = True) -> dict:
    """Return the content of a checkpoint file, its tensors on the CPU; none of it is executed.

    Args:
        everything: read all tensors. Otherwise only those of the state dict are read, and must be finite; others, such
            as an optimizer's, stay in the file, and `tensor_file.Stored` stands for them.

    Raises:
        WeightsError: the file is cut off, damaged, of another kind, or its weights are NaN or infinite.
        PermissionError: this user may not read it.
    """
    def content(lazy, path: Path):
        state = _place(lazy)
        if everything:
            return copy.deepcopy(lazy)
        if state is None:
            return _read_state(lazy, path) if isinstance(lazy, dict) else copy.deepcopy(lazy)
        return lazy | {state: _read_state(lazy[state], path)}
    return _read_by.get()(lambda: _opened(Path(path), content))


@contextlib.contextmanager
def read_by(call: Callable[[Callable[[], dict]], dict]) -> Iterator[None]:
    """Let a function carry out each `read` in the block, so that one process may read a file for others.

    Args:
        call: of a function without arguments, which reads the file; returns what that does.
    """
    before = _read_by.set(call)
    try:
        yield
    finally:
        _read_by.reset(before)


def outline(path: str | Path) -> dict:
    """Return the content of a checkpoint file without reading its tensors: those of its state dict have shapes alone.

    They are on the meta device.

    Raises:
        WeightsError, PermissionError: as `read`.
    """
    def shape(value):
        return torch.empty(value.size, dtype=value.storage.dtype, device="meta") if isinstance(
            value, tensor_file.Stored) else value

    def content(lazy, path: Path):
        state = _place(lazy)
        if not isinstance(lazy, dict):
            return lazy
        inner = {key: shape(value) for key, value in (lazy if state is None else lazy[state]).items()}
        return inner if state is None else lazy | {state: inner}
    return _opened(Path(path), content)


def _opened(path: Path, content: Callable[[object, Path], dict]) -> dict:
    """What a function makes of a file that is open, with the errors of `read`."""
    if exists(path) and not path.is_file():  # opening a pipe would block
        raise WeightsError(f"{path} is not a checkpoint that can be read: it is no regular file; give one")
    try:
        with open(path, "rb") as file:
            return content(tensor_file.open_lazily(file), path)
    except WeightsError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise WeightsError(f"{path} is not a checkpoint that can be read: {reason} "
                           f"({path.stat().st_size} bytes; is the download complete?)") from error


def find(path: str | Path) -> Path:
    """Return the checkpoint file that `path` means.

    It is the file itself, or a run folder's best.pt, else its newest step.

    Raises:
        WeightsError: there is none.
        PermissionError: this user may not read it.
    """
    path = Path(path)
    inside = path / "checkpoints"
    for choice in (path, inside / "best.pt", latest(inside), path / "best.pt", latest(path)):
        if choice and exists(choice) and choice.is_file():
            return choice
    if path.is_dir():
        raise WeightsError(f"{path} holds no checkpoint: expected checkpoints/best.pt (a run that has trained) "
                           "or give a file")
    raise WeightsError(f"checkpoint {path} does not exist: give a released .pth, a .safetensors, an egokit checkpoint, "
                       "the folder of a run that has trained (the toy's is made by notebook 02_pretrain), a folder "
                       "with config.json and *.safetensors, or hf:NAME")


def of_steps(folder: Path) -> list[Path]:
    """Return a run's step checkpoints, the newest first."""
    steps = {int(match[1]): path for path in (folder.glob("step-*.pt") if exists(folder) else ())
             if (match := re.fullmatch(r"step-(\d+)\.pt", path.name))}
    return [steps[step] for step in sorted(steps, reverse=True)]


def latest(folder: Path) -> Path | None:
    """Return a run's newest step checkpoint, or None.

    Files appear whole or not at all; a disk or a copy may damage one later, which `read_newest` allows for.
    """
    return next(iter(of_steps(folder)), None)


def read_newest(folder: Path, kinds: dict[str, type]) -> tuple[Path, dict, list[Path]] | None:
    """Read a run's newest step checkpoint that is whole.

    Args:
        kinds: what its content must have: keys, and the types of their values.

    Returns:
        Its path, its content, and the newer ones, which are damaged; None if there is no checkpoint at all.

    Raises:
        WeightsError: all are damaged; the message is of the newest.
    """
    damaged: dict[Path, WeightsError] = {}
    for path in of_steps(folder):
        try:
            content = read(path)
            found = content if isinstance(content, dict) else {}
            if wrong := sorted(key for key, kind in kinds.items() if not isinstance(found.get(key, ...), kind)):
                raise WeightsError(f"{path} is no training's checkpoint: {', '.join(wrong)} are missing or wrong; "
                                   "delete it")
            return path, content, list(damaged)
        except WeightsError as error:
            damaged[path] = error
    if damaged:
        raise next(iter(damaged.values()))
    return None


@contextlib.contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Turn the errors of objects that take their state from a checkpoint into a WeightsError that names the file."""
    try:
        yield
    except WeightsError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:150]
        raise WeightsError(f"{path} is no checkpoint of this training: its state can't be restored ({reason}); delete "
                           "it, and the run goes on from the one before") from error


def restore(model, path: Path) -> None:
    """Give a model in training the weights of one of its checkpoints.

    Raises:
        WeightsError: the file is missing or damaged, or of another model.
    """
    state = read(find(path), everything=False).get("state_dict")
    with restoring(path):
        model.load_state_dict(state)


def _place(content) -> str | None:
    """The key under which a checkpoint's content has its tensors; None if it is the tensors."""
    return next((key for key in STATES if isinstance(content, dict) and isinstance(content.get(key), dict)), None)


def state_dict(content, path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint's content: those under one of STATES, or the content itself.

    Raises:
        WeightsError: there are none, or the file of that path holds something else.
    """
    place = _place(content)
    state = content if place is None else content[place]
    if (not isinstance(state, dict) or not state
            or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items())):
        raise WeightsError(f"{path} holds no state_dict of tensors: expected a released or an egokit checkpoint")
    return state


def expect_floats(state: dict[str, Tensor], path) -> None:
    """Raise WeightsError for weights that are whole numbers: those of a quantised model mean others than they say."""
    if whole := [f"{key}: {str(value.dtype).removeprefix('torch.')}" for key, value in state.items()
                 if not value.is_floating_point()]:
        raise WeightsError(f"{path} has weights of another kind than floats, in {len(whole)} of {len(state)} tensors: "
                           f"{named(whole, 6)}; give a file that is not quantised, in float32 or half precision")


def named(keys: list[str], count: int) -> str:
    """Return the first keys of a file for a message: hidden characters are escapes, and none is long."""
    return ", ".join(shown(key, 100) for key in keys[:count]) + (" …" if len(keys) > count else "")


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor holds no NaN and no infinite number."""
    if not tensor.is_floating_point():
        return True
    if tensor.nbytes > tensor.untyped_storage().nbytes():  # expanded: all that it repeats
        tensor = torch.tensor([], dtype=tensor.dtype).set_(tensor.untyped_storage())
    return bool(tensor.sum(dtype=torch.float32).isfinite() or tensor.isfinite().all())  # mostly the sum tells


def _read_state(state: dict, path: Path) -> dict:
    """Read the tensors of a state dict, and look for numbers that are not finite.

    Raises:
        WeightsError: weights are NaN or infinite. A task's own tensors may be infinite, as masks are.
    """
    memo: dict = {}
    tensors, broken = {}, []
    for key, value in state.items():
        tensors[key] = tensor = copy.deepcopy(value, memo)
        told = memo.pop("finite", False)  # mostly, reading it has
        if isinstance(tensor, Tensor) and not told and not is_finite(tensor) and (
                not {"own", "head"} & {*str(key).split(".")} or tensor.isnan().any()):
            broken.append(str(key))
    if broken:
        raise WeightsError(f"{path} has weights that are NaN or infinite, in {len(broken)} of {len(tensors)} tensors: "
                           f"{named(broken, 6)}; the training that made it had "
                           "diverged: use an earlier checkpoint")
    return tensors


def write(path: str | Path, content: dict) -> None:
    """Write a checkpoint atomically: a kill or a full disk leaves what was there before.

    Args:
        content: tensors under "state_dict", and more beside it; in a .safetensors file that is what JSON can express.

    Raises:
        WeightsError: it can't be written; the message says how much room is needed and free.
    """
    path = Path(path)
    try:
        with atomic_path(path) as temporary:
            if path.suffix == ".safetensors":
                _save_safetensors(content, temporary)
            else:
                with open(temporary, "wb") as file:  # PyTorch would write the temporary file's name into the file
                    torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch.save says RuntimeError when the disk is full
        needed = sum(tensor.nbytes for tensor in content[_place(content)].values()) / 2**20
        free = shutil.disk_usage(path.parent).free / 2**20
        cause = next((each for each in (error, error.__context__) if isinstance(each, OSError) and each.strerror), None)
        reason = cause.strerror if cause else "No space left on device" if free < needed else \
            str(error).splitlines()[0][:150]
        raise WeightsError(f"{path} could not be written ({reason}): at least {needed:,.1f} MiB are needed, "
                           f"{free:,.1f} MiB are free (and your quota may be smaller). What was there before is whole. "
                           "Make room and run again: a training run goes on from its newest checkpoint") from error


def _save_safetensors(content: dict, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file
    plain = {key: value for key, value in content.items() if key != "state_dict"}
    tensors = {key: value.contiguous() for key, value in content["state_dict"].items()}
    try:
        save_file(tensors, path, metadata={"egokit": json.dumps(plain)})  # one key: the order of several differs
    except SafetensorError as error:
        raise RuntimeError(str(error)) from error


def fingerprint(path: str | Path) -> str:
    """Return 12 hex digits of a file's SHA-256, which name a checkpoint in metrics.json."""
    return large_file_sha256(path)[:12]
