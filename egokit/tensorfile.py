"""Files of tensors: PyTorch's zip format and its older one, and safetensors, opened without executing anything in them.

A pickle may hold tensors and plain containers. A foreign package's object (released files hold one of
`parse_config.ConfigParser`) becomes an inert placeholder; a pickle that names anything else is refused. Tensors are read
one by one, into memory of their own and only where they are wanted: an optimizer's stay in the file, what is in memory
is never more than what was asked for, and a file that changes later changes nothing here.
"""
from __future__ import annotations

import collections
import dataclasses
import json
import math
import pickle
import re
import sys
import types
import typing
import zipfile
from pathlib import Path

import torch
from torch import Tensor


def _inert(module: str, name: str):
    """A class that stands for a foreign one: accepts any state, keeps none, does nothing."""
    def ignore(self, *args, **kwargs):
        return None
    nothing = dict.fromkeys(("__init__", "__setstate__", "__setitem__", "append", "extend", "add"), ignore)
    return type(name, (), {"__module__": f"egokit.dropped.{module}", **nothing,
                           "__new__": lambda cls, *args, **kwargs: object.__new__(cls)})


class SafeUnpickler(pickle.Unpickler):
    """Admits tensors and plain containers; replaces classes of foreign packages by inert ones; refuses the rest."""

    ADMITTED: typing.ClassVar = {("collections", "OrderedDict"): collections.OrderedDict,
                ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
                ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
                ("builtins", "set"): set, ("builtins", "frozenset"): frozenset, ("__builtin__", "set"): set}
    # plain data that training scripts leave in a checkpoint beside the tensors: dropped as well
    DROPPED = re.compile(r"pathlib\..*|argparse\.Namespace|datetime\..*|collections\.(defaultdict|Counter)|_codecs\.encode|"
                         r"numpy(\._?core)?(\.multiarray)?\.(scalar|dtype|ndarray|_reconstruct)|numpy\.random\._pickle\..*|numpy\.dtypes\..*")

    def find_class(self, module: str, name: str):
        if (module, name) in self.ADMITTED:
            return self.ADMITTED[module, name]
        if module == "torch" and (name.endswith("Storage") or isinstance(getattr(torch, name, None), torch.dtype)
                                  or name == "Size"):
            return getattr(torch, name)
        foreign = module.split(".")[0] not in sys.stdlib_module_names | {"torch", "numpy", "__builtin__"}
        if foreign or self.DROPPED.fullmatch(f"{module}.{name}"):
            return _inert(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which a checkpoint has no use for")


_SAFE_PICKLE = types.SimpleNamespace(__name__="egokit.checkpoints", Unpickler=SafeUnpickler,
                                     load=lambda file, **options: SafeUnpickler(file, **options).load())


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor that still lies in its file: `bytes_of(record)` gives the storage that it is a view of."""
    bytes_of: typing.Callable[[str], Tensor]
    record: str
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self) -> Tensor:
        return self.bytes_of(self.record).view(self.dtype).as_strided(self.size, self.stride, self.offset)


STORAGES = {"FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
            "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
            "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool, "UntypedStorage": torch.uint8}


class _LazyUnpickler(SafeUnpickler):
    """SafeUnpickler of the zip format: tensors become Stored."""

    def __init__(self, file, bytes_of, **options):
        super().__init__(file, **options)
        self.bytes_of = bytes_of

    def persistent_load(self, saved):
        _, dtype, record, _, _ = saved
        return record, dtype

    def find_class(self, module: str, name: str):
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: Stored(self.bytes_of, *storage, offset, tuple(size), tuple(stride))
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda stored, *_: stored
        if module in ("torch", "torch.storage") and name in STORAGES:
            return STORAGES[name]
        return super().find_class(module, name)


def _open_zip(path: Path) -> dict:
    """PyTorch's format since 1.6: a zip of one pickle and a record for each storage, whose checksums are verified."""
    archive = zipfile.ZipFile(path)
    pickled = next((name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")), None)
    if pickled is None:
        raise ValueError("it is a zip file, but holds no data.pkl")
    folder = pickled.removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise ValueError("it was written on a big-endian machine")
    storages: dict[str, Tensor] = {}

    def bytes_of(record: str) -> Tensor:
        if record not in storages:  # tied weights share a storage, and go on sharing it
            info = archive.getinfo(f"{folder}data/{record}")
            storages[record] = torch.empty(info.file_size, dtype=torch.uint8)
            with archive.open(info) as file:
                _fill(storages[record], file)
        return storages[record]

    with archive.open(pickled) as file:
        return _LazyUnpickler(file, bytes_of).load()


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
        out = torch.empty(end - begin, dtype=torch.uint8)
        with open(path, "rb") as file:
            file.seek(8 + length + begin)
            _fill(out, file)
        return out

    state = {}
    for key, entry in header.items():
        shape = tuple(entry["shape"])
        stride = tuple(math.prod(shape[i + 1:]) for i in range(len(shape)))
        state[key] = Stored(bytes_of, key, SAFETENSORS[entry["dtype"]], 0, shape, stride)
    return {"state_dict": state} | json.loads(plain.get("egokit", "{}"))


def _fill(out: Tensor, file) -> None:
    """Bytes of a file into a tensor, a megabyte at a time. Raises if the file ends before."""
    view, at = memoryview(out.numpy()), 0
    while at < len(view):
        got = file.readinto1(view[at:at + (1 << 20)])
        if not got:
            raise ValueError(f"it ends {len(view) - at} bytes too early")
        at += got
    file.read(1)  # the end: where a zip file's checksum is compared


def open_lazily(path: Path):
    """What a file holds, its tensors `Stored` (except in the format before torch 1.6). Raises many things on a bad file."""
    with open(path, "rb") as file:
        begins = file.read(16)
    if zipfile.is_zipfile(path):
        return _open_zip(path)
    if begins[8:9] == b"{":
        return _open_safetensors(path)
    if begins.startswith(b"PK"):
        raise ValueError("it begins like a checkpoint, but its end is missing")
    if begins.lstrip()[:1] == b"<":
        raise ValueError(f"it is a web page, beginning with {begins.decode(errors='replace')!r}")
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_SAFE_PICKLE)  # such as timm's first ViT files


def materialise(value):
    """Containers with every Stored in them read."""
    if isinstance(value, Stored):
        return value.tensor()
    if isinstance(value, dict):
        return {key: materialise(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(materialise(one) for one in value)
    return value
