"""Checkpoints: found, read, and written atomically. Formats of files are tensor_file.py's, key names and models weights.py's."""
from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import torch
from torch import Tensor

from egokit.model import tensor_file
from egokit.runs.files import atomic_path

FORMAT = "egokit-1"


class WeightsError(ValueError):
    """A file that can't be loaded as asked; the message names it and says why."""

    report: dict[str, list[str]] | None = None  # of keys that don't fit: all of them, by kind


def read(path: str | Path, everything: bool = True) -> dict:
    """What a checkpoint file holds, on the CPU, executing none of it.

    With everything=False only the tensors of the state dict are read; others, such as an optimizer's, stay in the file.
    """
    path = Path(path)
    try:
        content = tensor_file.open_lazily(path)
        nested = [key for key in ("state_dict", "model") if isinstance(content, dict) and isinstance(content.get(key), dict)]
        if everything or not nested:
            return tensor_file.materialise(content)
        return content | {key: tensor_file.materialise(content[key]) for key in nested[:1]}
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
    state = content.get("state_dict", content.get("model", content)) if isinstance(content, dict) else None
    if (not isinstance(state, dict) or not state
            or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items())):
        raise WeightsError(f"{path} holds no state_dict of tensors: expected a released or an egokit checkpoint")
    return state


def write(path: str | Path, content: dict) -> None:
    """Save atomically: a kill or a full disk leaves what was there before. A .safetensors file takes what JSON can say besides."""
    path = Path(path)
    try:
        _write(path, content)
    except (OSError, RuntimeError) as error:  # torch.save says RuntimeError when the disk is full
        needed, free = sum(tensor.nbytes for tensor in content["state_dict"].values()), shutil.disk_usage(path.parent).free
        raise WeightsError(f"{path} could not be written ({str(error).splitlines()[0][:150]}): at least {needed / 2**20:,.1f} MiB are "
                           f"needed, {free / 2**20:,.1f} MiB are free (and your quota may be smaller). What was there before is whole. "
                           "Make room and run again: a training run goes on from its newest checkpoint") from error


def _write(path: Path, content: dict) -> None:
    with atomic_path(path) as temporary:
        if path.suffix != ".safetensors":
            torch.save(content, temporary)
            return
        from safetensors.torch import save_file
        temporary.touch()
        mode = temporary.stat().st_mode  # save_file leaves the file to its owner alone
        plain = {key: value for key, value in content.items() if key != "state_dict"}
        save_file({key: value.contiguous() for key, value in content["state_dict"].items()}, temporary,
                  metadata={"format": "pt", "egokit": json.dumps(plain)})
        temporary.chmod(mode)


def fingerprint(path: str | Path) -> str:
    """First 12 hex digits of the file's SHA-256: names a checkpoint in metrics.json."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:12]
