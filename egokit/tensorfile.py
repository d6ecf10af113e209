"""Files of tensors: PyTorch's zip format and its older one, and safetensors, opened without executing anything in them.

A pickle may hold tensors and plain containers. A foreign package's object (released files hold one of
`parse_config.ConfigParser`) becomes an inert placeholder; a pickle that names anything else is refused. Tensors are read
one by one, into memory of their own and only where they are wanted: an optimizer's stay in the file, what is in memory
is never more than what was asked for, and a file that changes later changes nothing here.
"""
from __future__ import annotations

import collections
import functools
import json
import math
import pickle
import re
import sys
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


class Stored:
    """A tensor that still lies in its file: `bytes_of(record)` gives the storage that it is a view of."""
    __slots__ = ("bytes_of", "dtype", "offset", "record", "size", "stride")

    def __init__(self, bytes_of, record: str, dtype: torch.dtype, offset: int, size: tuple[int, ...], stride: tuple[int, ...]):
        self.bytes_of, self.record, self.dtype, self.offset, self.size, self.stride = bytes_of, record, dtype, offset, size, stride

    def __setstate__(self, state):
        raise pickle.UnpicklingError("it changes a tensor's description")

    def tensor(self) -> Tensor:
        return self.bytes_of(self.record).view(self.dtype).as_strided(self.size, self.stride, self.offset)


OLDER = 0x1950a86a20f9469cfc6c  # what the first pickle of a file before PyTorch 1.6 says


class _Build:
    """What a pickle calls where PyTorch would rebuild a tensor; unlike a function, nothing in a pickle can change it."""
    __slots__ = ("function",)

    def __init__(self, function):
        self.function = function

    def __call__(self, *args):
        return self.function(*args)

    def __setstate__(self, state):
        raise pickle.UnpicklingError("it changes what builds a tensor")


class _Dict(dict):
    """A state dict is an OrderedDict with notes in an attribute: they are dropped."""
    __slots__ = ()

    def __setstate__(self, state):
        pass


class _Storage(collections.namedtuple("_Storage", "record dtype")):
    """A storage that a pickle refers to by its record."""
    __slots__ = ()


STORAGES = {"FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
            "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
            "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool, "UntypedStorage": torch.uint8}


class SafeUnpickler(pickle.Unpickler):
    """Tensors become Stored; containers are admitted; classes of foreign packages become inert ones; the rest is refused.

    Nothing that a name can give belongs to Python, PyTorch or this package: what a pickle calls or changes is made for it.
    """

    # plain data that training scripts leave in a checkpoint beside the tensors: dropped as well
    DROPPED = re.compile(r"pathlib\..*|argparse\.Namespace|datetime\..*|collections\.(defaultdict|Counter)|_codecs\.encode|"
                         r"torch\.device|(builtins|__builtin__)\.(range|slice|complex|bytearray)|"
                         r"numpy(\._?core)?(\.multiarray)?\.(scalar|dtype|ndarray|_reconstruct)|numpy\.random\._pickle\..*|numpy\.dtypes\..*")

    def __init__(self, file, bytes_of, **options):
        super().__init__(file, **options)
        self.found: dict[str, int] = {}  # records that were referred to, and how many bytes a number of theirs has

        def tensor(storage, offset, size, stride, *_):
            if not isinstance(storage, _Storage):
                raise pickle.UnpicklingError("a tensor without a storage")
            return Stored(bytes_of, storage.record, storage.dtype, int(offset), tuple(size), tuple(stride))
        whole = _Build(lambda stored, *_: stored)
        self.admitted = {
            ("collections", "OrderedDict"): _Build(lambda *items: _Dict(*items)),
            ("builtins", "set"): _Build(lambda *items: set(*items)), ("builtins", "frozenset"): _Build(lambda *items: frozenset(*items)),
            ("torch", "Size"): _Build(lambda *items: tuple(*items)),
            ("torch._utils", "_rebuild_tensor_v2"): _Build(tensor), ("torch._utils", "_rebuild_tensor"): _Build(tensor),
            ("torch._utils", "_rebuild_parameter"): whole, ("torch._utils", "_rebuild_parameter_with_state"): whole,
            ("torch._tensor", "_rebuild_from_type_v2"): _Build(lambda build, kind, given, state: build(*given))}

    def find_class(self, module: str, name: str):
        module = "builtins" if module == "__builtin__" else module
        if (module, name) in self.admitted:
            return self.admitted[module, name]
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            if name not in STORAGES:
                raise pickle.UnpicklingError(f"it holds a {name}: complex and quantised numbers are not supported")
            return STORAGES[name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        foreign = module.split(".")[0] not in sys.stdlib_module_names | {"torch", "numpy", "egokit"}
        if foreign or self.DROPPED.fullmatch(f"{module}.{name}"):
            return _inert(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which a checkpoint has no use for")

    def persistent_load(self, saved):
        """("storage", type, record, device, count): zip and older files alike."""
        if not isinstance(saved, tuple) or len(saved) < 5 or saved[0] != "storage" or not isinstance(saved[1], torch.dtype):
            raise pickle.UnpicklingError("it refers to something that is no storage")
        if len(saved) > 5 and saved[5] is not None:
            raise pickle.UnpicklingError("it has views of storages, which PyTorch no longer writes")
        record = str(saved[2])
        self.found[record] = saved[1].itemsize
        return _Storage(record, saved[1])


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
            storages[record] = torch.empty(info.file_size, dtype=torch.uint8, device="cpu")
            with archive.open(info) as file:
                _fill(storages[record], file)
        return storages[record]

    with archive.open(pickled) as file:
        return SafeUnpickler(file, bytes_of).load()


def _open_older(path: Path) -> dict:
    """PyTorch's format before 1.6: three pickles of constants, the content, the storages' keys, then each one's count and bytes."""
    places: dict[str, tuple[int, int]] = {}

    def bytes_of(record: str) -> Tensor:
        first, size = places[record]
        out = torch.empty(size, dtype=torch.uint8, device="cpu")
        with open(path, "rb") as file:
            file.seek(first)
            _fill(out, file)
        return out

    kept = functools.cache(bytes_of)  # tied weights share a storage
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
        out = torch.empty(end - begin, dtype=torch.uint8, device="cpu")
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
