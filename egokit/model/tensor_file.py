"""Files of tensors: PyTorch's zip format and its older one, and safetensors, opened without executing anything in them.

Tensors are read one by one, into memory of their own and only where they are wanted: an optimizer's stay in the file, what
is in memory is never more than what was asked for, and a file that changes later changes nothing here.
"""
from __future__ import annotations

import functools
import json
import math
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from egokit.model.safe_pickle import SafeUnpickler, Stored

OLDER = 0x1950a86a20f9469cfc6c  # what the first pickle of a file before PyTorch 1.6 says


def _open_zip(path: Path) -> dict:
    """PyTorch's format since 1.6: a zip of one pickle and a record for each storage, whose checksums are verified."""
    archive = zipfile.ZipFile(path)
    pickled = next((name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")), None)
    if pickled is None:
        raise ValueError("it is a zip file, but holds no data.pkl")
    folder = pickled.removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise ValueError("it was written on a big-endian machine")

    @functools.cache  # tied weights share a storage, and go on sharing it
    def bytes_of(record: str) -> Tensor:
        info = archive.getinfo(f"{folder}data/{record}")
        with archive.open(info) as file:
            return _filled(info.file_size, file)

    with archive.open(pickled) as file:
        return SafeUnpickler(file, bytes_of).load()


def _open_older(path: Path) -> dict:
    """PyTorch's format before 1.6: three pickles of constants, the content, the storages' keys, then each one's count and bytes."""
    places: dict[str, tuple[int, int]] = {}

    kept = functools.cache(lambda record: _bytes(path, *places[record]))  # tied weights share a storage
    with open(path, "rb") as file:
        def one():
            unpickler = SafeUnpickler(file, kept)
            return unpickler.load(), unpickler.found
        if one()[0] != OLDER:
            raise ValueError("it is no file of tensors")
        one(), one()  # the protocol's version, and the machine's
        content, widths = one()
        for record in one()[0]:
            count = int.from_bytes(file.read(8), "little", signed=True)
            places[str(record)] = (file.tell(), count * widths[str(record)])
            file.seek(max(count, 0) * widths[str(record)], 1)
        if file.tell() > path.stat().st_size:
            raise ValueError("it ends too early")
    return content


SAFETENSORS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
               "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}


def _open_safetensors(path: Path) -> dict:
    """safetensors: a JSON header, then the bytes. Its own reader maps the file, which a copy then doubles."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    plain = header.pop("__metadata__", {})

    def bytes_of(record: str) -> Tensor:
        begin, end = header[record]["data_offsets"]
        return _bytes(path, 8 + length + begin, end - begin)

    state = {}
    for key, entry in header.items():
        shape = tuple(entry["shape"])
        stride = tuple(math.prod(shape[i + 1:]) for i in range(len(shape)))
        state[key] = Stored(bytes_of, key, SAFETENSORS[entry["dtype"]], 0, shape, stride)
    return {"state_dict": state} | json.loads(plain.get("egokit", "{}"))


def _bytes(path: Path, first: int, size: int) -> Tensor:
    with open(path, "rb") as file:
        file.seek(first)
        return _filled(size, file)


def _filled(size: int, file) -> Tensor:
    """The next `size` bytes of a file, read a megabyte at a time. Raises if it ends before."""
    out = torch.empty(size, dtype=torch.uint8, device="cpu")
    view, at = memoryview(out.numpy()), 0
    while at < size:
        got = file.readinto1(view[at:at + (1 << 20)])
        if not got:
            raise ValueError(f"it ends {size - at} bytes too early")
        at += got
    file.read(1)  # the end: where a zip file's checksum is compared
    return out


def open_lazily(path: Path):
    """What a file holds, its tensors `Stored`. Raises many things on a bad file."""
    with open(path, "rb") as file:
        begins = file.read(512)
    text = begins.decode(errors="replace").lstrip("\ufeff \t\r\n")
    if zipfile.is_zipfile(path):
        return _open_zip(path)
    if begins[8:9] == b"{":
        return _open_safetensors(path)
    if begins.startswith(b"PK"):
        raise ValueError("it begins like a checkpoint, but its end is missing")
    if text.startswith("<"):
        raise ValueError(f"it is a web page, beginning with {text[:16]!r}")
    if text.startswith(("{", "version https://git-lfs")):
        raise ValueError(f"it is text, beginning with {text[:32]!r}: the file itself was not fetched")
    if not begins.startswith(b"\x80"):
        raise ValueError(f"it is no file of tensors: it begins with {begins[:16]!r}")
    return _open_older(path)


def materialise(value, seen: dict | None = None):
    """Containers with every Stored in them read; what is shared stays shared."""
    seen = {} if seen is None else seen
    if id(value) in seen:
        return seen[id(value)][0]
    if isinstance(value, Stored):
        out = value.tensor()
    elif isinstance(value, dict):
        out = {key: materialise(one, seen) for key, one in value.items()}
    elif type(value) in (list, tuple):
        out = type(value)(materialise(one, seen) for one in value)
    else:
        return value
    seen[id(value)] = out, value  # held, so that its id stays its own
    return out
