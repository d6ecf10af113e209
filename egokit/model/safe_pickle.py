"""Unpickle a checkpoint's content without executing anything in it.

A pickle may hold tensors and plain containers. A foreign package's object (released files hold one of
`parse_config.ConfigParser`) becomes an inert placeholder; a pickle that names anything else is refused. tensor_file.py
reads the bytes of tensors.
"""
from __future__ import annotations

import collections
import pickle
import re
import sys

import torch
from torch import Tensor


def _inert(module: str, name: str):
    """Make a class in place of a foreign one: it accepts any state, keeps none, does nothing."""
    def ignore(self, *args, **kwargs):
        return None
    methods = dict.fromkeys(("__init__", "__setstate__", "__setitem__", "append", "extend", "add"), ignore)
    return type(name, (), {"__module__": f"egokit.dropped.{module}", **methods,
                           "__new__": lambda cls, *args, **kwargs: object.__new__(cls)})


class Stored:
    """A tensor that is still in its file: a view of a storage, read by `bytes_of(record)`."""
    __slots__ = ("bytes_of", "dtype", "offset", "record", "size", "stride")

    def __init__(self, bytes_of, record: str, dtype: torch.dtype, offset: int, size: tuple[int, ...],
                 stride: tuple[int, ...]):
        self.bytes_of, self.record, self.dtype = bytes_of, record, dtype
        self.offset, self.size, self.stride = offset, size, stride

    def __setstate__(self, state):
        raise pickle.UnpicklingError("it changes a tensor's description")

    def tensor(self) -> Tensor:
        """Read the tensor from its file."""
        return self.bytes_of(self.record).view(self.dtype).as_strided(self.size, self.stride, self.offset)


class _Build:
    """A callable in place of a function by which PyTorch rebuilds tensors.

    Unlike a function, no pickle can change it.
    """
    __slots__ = ("function",)

    def __init__(self, function):
        self.function = function

    def __call__(self, *args):
        return self.function(*args)

    def __setstate__(self, state):
        raise pickle.UnpicklingError("it changes what builds a tensor")


class _Dict(dict):
    """A dict in place of OrderedDict; drops the notes that a state dict has in an attribute."""
    __slots__ = ()

    def __setstate__(self, state):
        pass


class _Storage(collections.namedtuple("_Storage", "record dtype")):
    """A storage of a pickle: the name of its record in the file, and its data type."""
    __slots__ = ()


STORAGES = {"FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
            "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32,
            "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
            "BoolStorage": torch.bool, "UntypedStorage": torch.uint8}


class SafeUnpickler(pickle.Unpickler):
    """An unpickler of tensors and plain containers alone.

    Tensors become `Stored`; classes of foreign packages become inert ones; the rest is refused.

    No name gives an object of Python, PyTorch or this package: whatever a pickle calls or changes is made for it.
    """

    # plain data that training scripts leave in a checkpoint beside the tensors: dropped as well
    DROPPED = re.compile(
        r"(pathlib|argparse|datetime|logging|enum)\.[\w.]*|collections\.(defaultdict|Counter|deque)|_codecs\.encode|torch\.device|"
        r"builtins\.(range|slice|complex|bytearray|bytes|int|float|bool|str|list|tuple|dict|object)|copyreg\._reconstructor|"
        r"numpy(\._?core)?(\.multiarray)?\.(scalar|dtype|ndarray|_reconstruct)|numpy\.random\._pickle\..*|numpy\.dtypes\..*")

    def __init__(self, file, bytes_of, **options):
        """Unpickle a file.

        Args:
            bytes_of: function of a record's name that returns the bytes of its storage, a uint8 tensor.
        """
        super().__init__(file, **options)
        self.itemsizes: dict[str, int] = {}  # bytes an element, by the name of each record that the pickle refers to

        def tensor(storage, offset, size, stride, *_):
            if not isinstance(storage, _Storage):
                raise pickle.UnpicklingError("a tensor without a storage")
            return Stored(bytes_of, storage.record, storage.dtype, int(offset), tuple(size), tuple(stride))
        parameter = _Build(lambda stored, *_: stored)
        self.admitted = {
            ("collections", "OrderedDict"): _Build(lambda *items: _Dict(*items)),
            ("builtins", "set"): _Build(lambda *items: set(*items)),
            ("builtins", "frozenset"): _Build(lambda *items: frozenset(*items)),
            ("torch", "Size"): _Build(lambda *items: tuple(*items)),
            ("torch._utils", "_rebuild_tensor_v2"): _Build(tensor), ("torch._utils", "_rebuild_tensor"): _Build(tensor),
            ("torch._utils", "_rebuild_parameter"): parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): parameter,
            ("torch._tensor", "_rebuild_from_type_v2"): _Build(lambda build, kind, given, state: build(*given))}

    def find_class(self, module: str, name: str):
        """Return what stands for module.name.

        Raises:
            pickle.UnpicklingError: a checkpoint has no use for that name.
        """
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
        """Return a storage for ("storage", type, record, device, count), as all files have it.

        Raises:
            pickle.UnpicklingError: it is something else.
        """
        if (not isinstance(saved, tuple) or len(saved) < 5 or saved[0] != "storage"
                or not isinstance(saved[1], torch.dtype)):
            raise pickle.UnpicklingError("it refers to something that is no storage")
        if len(saved) > 5 and saved[5] is not None:
            raise pickle.UnpicklingError("it has views of storages, which PyTorch no longer writes")
        record = str(saved[2])
        self.itemsizes[record] = saved[1].itemsize
        return _Storage(record, saved[1])
