"""Checkpoint files: found, opened without executing anything in them, and written atomically.

A pickle may hold tensors and plain containers. A foreign package's object (released files hold one of
`parse_config.ConfigParser`) becomes an inert placeholder; a pickle that names anything else is refused.
Key names and models are weights.py's.
"""
from __future__ import annotations

import collections
import hashlib
import pickle
import re
import sys
import types
import typing
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from egokit.runs import atomic_path

FORMAT = "egokit-1"


class WeightsError(ValueError):
    """A file that can't be loaded as asked; the message names it and says why."""


def _inert(module: str, name: str):
    """A class that stands for a foreign one: accepts any state, keeps none, does nothing."""
    def ignore(self, *args, **kwargs):
        return None
    return type(name, (), {"__module__": f"egokit.dropped.{module}", "__init__": ignore, "__setstate__": ignore,
                           "__new__": lambda cls, *args, **kwargs: object.__new__(cls)})


class SafeUnpickler(pickle.Unpickler):
    """Admits tensors and plain containers; replaces classes of foreign packages by inert ones; refuses the rest."""

    ADMITTED: typing.ClassVar = {("collections", "OrderedDict"): collections.OrderedDict,
                ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
                ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter}

    def find_class(self, module: str, name: str):
        if (module, name) in self.ADMITTED:
            return self.ADMITTED[module, name]
        if module == "torch" and (name.endswith("Storage") or isinstance(getattr(torch, name, None), torch.dtype)
                                  or name == "Size"):
            return getattr(torch, name)
        top = module.split(".")[0]
        if (module, name) in (("pathlib", "PosixPath"), ("pathlib", "Path")) or top not in sys.stdlib_module_names | {"torch", "numpy"}:
            return _inert(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which a checkpoint has no use for")


_SAFE_PICKLE = types.SimpleNamespace(__name__="egokit.checkpoints", Unpickler=SafeUnpickler, load=None)


def read(path: str | Path) -> dict:
    """What a checkpoint file holds, on the CPU and memory-mapped, executing none of it."""
    path = Path(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file
        return {"state_dict": load_file(path)}
    try:
        if not zipfile.is_zipfile(path):  # the format before torch 1.6, such as timm's first ViT files
            return torch.load(path, map_location="cpu", weights_only=True)
        return torch.load(path, map_location="cpu", mmap=True, weights_only=False, pickle_module=_SAFE_PICKLE)
    except Exception as error:
        raise WeightsError(f"{path} is not a checkpoint that can be read: {(str(error) or type(error).__name__).splitlines()[0][:200]} "
                           f"({path.stat().st_size} bytes; is the download complete?)") from error


def find(path: str | Path) -> Path:
    """The checkpoint file that `path` means: a file, or the best (else the newest complete) one of a run folder."""
    path = Path(path)
    if path.is_file():
        return path
    for folder in (path / "checkpoints", path):
        if (folder / "best.pt").is_file():
            return folder / "best.pt"
        newest = latest(folder)
        if newest:
            return newest
    if path.is_dir():
        raise WeightsError(f"{path} holds no checkpoint: expected checkpoints/best.pt (a run that has trained) or give a file")
    raise WeightsError(f"checkpoint {path} does not exist: give a released .pth, a .safetensors, an egokit checkpoint, "
                       "or the folder of a run that has trained (the toy's is made by notebook 02_pretrain)")


def latest(folder: Path) -> Path | None:
    """The newest step checkpoint of a run. Files appear whole or not at all, so the newest is complete."""
    steps = {int(found[1]): path for path in folder.glob("step-*.pt") if (found := re.fullmatch(r"step-(\d+)\.pt", path.name))}
    return steps[max(steps)] if steps else None


def state_dict(content, path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's content, whichever way they are wrapped."""
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds no state_dict of tensors: expected a released or an egokit checkpoint")
    return state


def write(path: str | Path, content: dict) -> None:
    """Save atomically: a kill or a full disk leaves what was there before."""
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def fingerprint(path: str | Path) -> str:
    """First 12 hex digits of the file's SHA-256: names a checkpoint in metrics.json."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:12]
