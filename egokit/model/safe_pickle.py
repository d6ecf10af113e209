"""Unpickling a checkpoint's content without executing anything in it. Where the bytes of tensors lie is tensor_file.py's.

A pickle may hold tensors and plain containers. A foreign package's object (released files hold one of
`parse_config.ConfigParser`) becomes an inert placeholder; a pickle that names anything else is refused.
"""
from __future__ import annotations

import collections
import pickle
import re
import sys

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
    DROPPED = re.compile(r"(pathlib|argparse|datetime|logging|enum)\.[\w.]*|collections\.(defaultdict|Counter|deque)|_codecs\.encode|"
                         r"torch\.device|builtins\.(range|slice|complex|bytearray|bytes|int|float|bool|str|list|tuple|dict|object)|"
                         r"copyreg\._reconstructor|"
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
