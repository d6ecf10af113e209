"""Read files of tensors: PyTorch's zip format, its older one, and safetensors.

Nothing in a file is executed. Tensors are read one by one, each into memory of its own, and only those that are asked
for: an optimizer's stay in the file. A file that changes later changes no tensor that was read.
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

OLDER = 0x1950a86a20f9469cfc6c  # the first pickle of files before PyTorch 1.6


def _open_zip(path: Path) -> dict:
    """Open PyTorch's format since 1.6: a zip of one pickle and a record for each storage.

    The checksums of what is read are verified.
    """
    archive = zipfile.ZipFile(path)
    pickled = next((name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")), None)
    if pickled is None:
        raise ValueError("it is a zip file, but holds no data.pkl")
    folder = pickled.removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise ValueError("it was written on a big-endian machine")

    @functools.cache  # tied weights share a storage, and keep sharing it
    def bytes_of(record: str) -> Tensor:
        info = archive.getinfo(f"{folder}data/{record}")
        with archive.open(info) as file:
            return _filled(info.file_size, file)

    with archive.open(pickled) as file:
        return SafeUnpickler(file, bytes_of).load()


def _open_older(path: Path) -> dict:
    """Open PyTorch's format before 1.6.

    It has three pickles of constants, the content, the names of records, then their bytes.
    """
    places: dict[str, tuple[int, int]] = {}  # (offset, size) in bytes

    bytes_of = functools.cache(lambda record: _bytes(path, *places[record]))  # tied weights share a storage
    with open(path, "rb") as file:
        def next_pickle():
            unpickler = SafeUnpickler(file, bytes_of)
            return unpickler.load(), unpickler.itemsizes
        if next_pickle()[0] != OLDER:
            raise ValueError("it is no file of tensors")
        next_pickle(), next_pickle()  # the protocol's version, and the machine's properties
        content, itemsizes = next_pickle()
        for record in next_pickle()[0]:
            count = int.from_bytes(file.read(8), "little", signed=True)
            places[str(record)] = (file.tell(), count * itemsizes[str(record)])
            file.seek(max(count, 0) * itemsizes[str(record)], 1)
        if file.tell() > path.stat().st_size:
            raise ValueError("it ends too early")
    return content


SAFETENSORS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
               "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
               "BOOL": torch.bool}


def _open_safetensors(path: Path) -> dict:
    """Open safetensors' format: a JSON header, then bytes.

    Its own reader maps the file, which a copy would double.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", {})

    def bytes_of(record: str) -> Tensor:
        begin, end = header[record]["data_offsets"]
        return _bytes(path, 8 + length + begin, end - begin)

    state = {}
    for key, entry in header.items():
        shape = tuple(entry["shape"])
        stride = tuple(math.prod(shape[i + 1:]) for i in range(len(shape)))
        state[key] = Stored(bytes_of, key, SAFETENSORS[entry["dtype"]], 0, shape, stride)
    return {"state_dict": state} | json.loads(metadata.get("egokit", "{}"))


def _bytes(path: Path, offset: int, size: int) -> Tensor:
    """`size` bytes of a file from `offset` on."""
    with open(path, "rb") as file:
        file.seek(offset)
        return _filled(size, file)


def _filled(size: int, file) -> Tensor:
    """The next `size` bytes of a file, read a megabyte at a time; ValueError if it ends."""
    content = torch.empty(size, dtype=torch.uint8, device="cpu")
    view, position = memoryview(content.numpy()), 0
    while position < size:
        count = file.readinto1(view[position:position + (1 << 20)])
        if not count:
            raise ValueError(f"it ends {size - position} bytes too early")
        position += count
    file.read(1)  # at the end of a zip's record its checksum is compared
    return content


def open_lazily(path: Path):
    """Return the content of a file, its tensors as `Stored`: they are read by `materialise`.

    Raises:
        Exception: a bad file raises many kinds, ValueError and pickle.UnpicklingError among them.
    """
    with open(path, "rb") as file:
        beginning = file.read(512)
    text = beginning.decode(errors="replace").lstrip("\ufeff \t\r\n")
    if zipfile.is_zipfile(path):
        return _open_zip(path)
    if beginning[8:9] == b"{":
        return _open_safetensors(path)
    if beginning.startswith(b"PK"):
        raise ValueError("it begins like a checkpoint, but its end is missing")
    if text.startswith("<"):
        raise ValueError(f"it is a web page, beginning with {text[:16]!r}")
    if text.startswith(("{", "version https://git-lfs")):
        raise ValueError(f"it is text, beginning with {text[:32]!r}: the file itself was not fetched")
    if not beginning.startswith(b"\x80"):
        raise ValueError(f"it is no file of tensors: it begins with {beginning[:16]!r}")
    return _open_older(path)


def materialise(value, seen: dict | None = None):
    """Return containers with every `Stored` in them read; what is shared stays shared.

    Args:
        seen: values by id that have been read already, and what was made of them; for the recursion.
    """
    seen = {} if seen is None else seen
    if id(value) in seen:
        return seen[id(value)][0]
    if isinstance(value, Stored):
        result = value.tensor()
    elif isinstance(value, dict):
        result = {key: materialise(item, seen) for key, item in value.items()}
    elif type(value) in (list, tuple):
        result = type(value)(materialise(item, seen) for item in value)
    else:
        return value
    seen[id(value)] = result, value  # the value is held, so that no other object gets its id
    return result
