"""Read files of tensors: PyTorch's zip format, its older one, and safetensors; nothing in a file is executed.

Tensors are read one by one, each into memory of its own, and only those that are asked for: an optimizer's stay in the
file. A file that changes later changes no tensor that was read.

A pickle may hold tensors and plain containers. A foreign package's object (released files hold one of
`parse_config.ConfigParser`) becomes an inert placeholder; a pickle that names anything else is refused.

Why not `torch.load(weights_only=True)`: even with stand-ins for foreign names it refuses foreign dicts and lists, and
pickles of protocol 4; it compares no checksums; and its stand-ins are in a list of the whole process. Here no name
gives an object of Python, PyTorch or this package: whatever a pickle calls or changes is made for it.
"""
import collections
import functools
import json
import pickle
import re
import sys
import zipfile

import numpy as np
import torch
from torch import Tensor

BLOCK = 1 << 20  # bytes that are read at once
OLDER = 0x1950a86a20f9469cfc6c  # the first pickle of files before PyTorch 1.6


class Inert:
    """An object of a foreign class: it accepts any content and state, keeps none, does nothing."""

    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)

    def ignore(self, *args, **kwargs):
        """Accept what a pickle gives."""

    __init__ = __setstate__ = __setitem__ = append = extend = add = ignore


class Stored(collections.namedtuple("Stored", "storage offset size stride requires_grad hooks metadata",
                                    defaults=(False, None, None))):
    """A tensor that is still in its file; `copy.deepcopy` of what holds it reads it.

    It is made from what torch._utils._rebuild_tensor_v2 takes, of which the last three are ignored.
    """
    __slots__ = ()

    def __setstate__(*_):
        raise pickle.UnpicklingError("it changes a tensor's description")

    def __deepcopy__(self, memo) -> Tensor:
        stored = self.storage.read()
        # for `checkpoints._read_state`; not an attribute of the tensor, as that would be saved with it
        memo["finite"] = stored.finite and self.storage.dtype == torch.float32
        return stored.view(self.storage.dtype).as_strided(self.size, self.stride, self.offset)


class _Dict(dict):
    """A dict in place of OrderedDict; drops the notes that a state dict has in an attribute."""
    __setstate__ = Inert.ignore


class _Tensor:
    """Stands for functions that make a parameter, or a foreign kind of tensor: gives the tensor."""

    def __new__(cls, first, *rest):
        return first if isinstance(first, Stored) else first(*rest[1])
    __setstate__ = Inert.ignore


# a storage that a pickle refers to: a function that reads its bytes, and its data type
_Storage = collections.namedtuple("_Storage", "read dtype")

DTYPES = {"FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
          "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32,
          "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
          "BoolStorage": torch.bool, "UntypedStorage": torch.uint8}

# What stands for each name. A pickle can't change a class that has __setstate__ or is Python's own.
ADMITTED = {
    "collections.OrderedDict": _Dict, "builtins.set": set, "builtins.frozenset": frozenset, "torch.Size": tuple,
    "torch._utils._rebuild_tensor": Stored, "torch._utils._rebuild_tensor_v2": Stored,
    "torch._utils._rebuild_parameter": _Tensor, "torch._utils._rebuild_parameter_with_state": _Tensor,
    "torch._tensor._rebuild_from_type_v2": _Tensor,
    **{f"{module}.{name}": dtype for name, dtype in DTYPES.items() for module in ("torch", "torch.storage")},
    **{f"torch.{name}": dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}}

# plain data that training scripts leave in a checkpoint beside the tensors: dropped like foreign objects
DROPPED = re.compile(
    r"(pathlib|argparse|datetime|logging|enum)\.[\w.]*|collections\.(defaultdict|Counter|deque)|_codecs\.encode|torch\.device|"
    r"builtins\.(x?range|slice|complex|bytearray|bytes|int|float|bool|str|list|tuple|dict|object)|copyreg\._reconstructor|"
    r"numpy(\._?core)?(\.multiarray)?\.(scalar|dtype|ndarray|_reconstruct)|numpy\.random\._pickle\..*|numpy\.dtypes\..*")


class SafeUnpickler(pickle.Unpickler):
    """An unpickler of plain containers and tensors, which become `Stored`."""

    def __init__(self, file, read):
        """Unpickle a file.

        Args:
            read: function of a record's name that returns the bytes of its storage, a uint8 tensor.
        """
        super().__init__(file)
        self.read = read
        self.itemsizes: dict[str, int] = {}  # bytes an element, by the name of each record that the pickle refers to

    def find_class(self, module: str, name: str):
        """Return what stands for module.name.

        Raises:
            pickle.UnpicklingError: a checkpoint has no use for that name.
        """
        module = "builtins" if module == "__builtin__" else module
        full = f"{module}.{name}"
        if full in ADMITTED:
            return ADMITTED[full]
        known = module.split(".")[0] in sys.stdlib_module_names | {"torch", "numpy", "egokit"}
        if known and not DROPPED.fullmatch(full):
            hint = ": complex and quantised numbers are not supported" if name.endswith("Storage") else ""
            raise pickle.UnpicklingError(f"it names {full}, which a checkpoint has no use for{hint}")
        return type(name, (Inert,), {"__module__": f"egokit.dropped.{module}"})

    def persistent_load(self, saved):
        """Return a storage for ("storage", type, record, device, count), as all files have it.

        Raises:
            pickle.UnpicklingError: it is something else.
        """
        kind, dtype, record, _, _, *views = saved
        if kind != "storage" or dtype not in DTYPES.values() or any(views):
            raise pickle.UnpicklingError("it refers to something that is no storage of its own")
        self.itemsizes[str(record)] = dtype.itemsize
        return _Storage(functools.partial(self.read, str(record)), dtype)


def open_lazily(file):
    """Return the content of an open file, its tensors as `Stored`: `copy.deepcopy` reads them.

    Raises:
        Exception: a bad file raises many kinds, ValueError and pickle.UnpicklingError among them.
    """
    beginning = file.read(512)
    if zipfile.is_zipfile(file):
        return _open_zip(file)
    file.seek(0)
    if beginning[8:9] == b"{":
        return _open_safetensors(file)
    if beginning.startswith(b"\x80"):
        return _open_older(file)
    text = beginning.decode(errors="replace").lstrip("\ufeff \t\r\n")
    hints = {"PK": ": its end is missing", "<": ": it is a web page", "{": ": the file itself was not fetched",
             "version https://git-lfs": ": the file itself was not fetched"}
    hint = next((hint for start, hint in hints.items() if text.startswith(start)), "")
    raise ValueError(f"it is no file of tensors, beginning with {text[:32]!r}{hint}")


def _open_zip(file):
    """Open PyTorch's format since 1.6: a zip of one pickle and a record for each storage.

    The checksums of what is read are verified.
    """
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    folder = names[0].partition("/")[0] if names else ""  # PyTorch takes the first name's folder, too
    if sum(info.file_size for info in archive.infolist()) > file.seek(0, 2):
        raise ValueError("it has records that are larger than the file: they are compressed or overlap")
    if f"{folder}/byteorder" in names and archive.read(f"{folder}/byteorder") != b"little":
        raise ValueError("it was written on a big-endian machine")

    @functools.cache  # tied weights share a storage, and keep sharing it
    def read(record: str) -> Tensor:
        info = archive.getinfo(f"{folder}/data/{record}")
        with archive.open(info) as stream:
            return _bytes(stream, info.file_size)

    with archive.open(f"{folder}/data.pkl") as stream:
        return SafeUnpickler(stream, read).load()


def _open_older(file):
    """Open PyTorch's format before 1.6.

    It has three pickles of constants, the content, the names of records, then their bytes.
    """
    places: dict[str, tuple[int, int]] = {}  # (offset, size) in bytes

    @functools.cache  # tied weights share a storage
    def read(record: str) -> Tensor:
        offset, size = places[record]
        file.seek(offset)
        return _bytes(file, size)

    constants = [SafeUnpickler(file, read).load() for _ in range(3)]
    if constants[0] != OLDER:
        raise ValueError("it is no file of tensors")
    unpickler = SafeUnpickler(file, read)
    content = unpickler.load()
    for record in map(str, SafeUnpickler(file, read).load()):
        size = int.from_bytes(file.read(8), "little") * unpickler.itemsizes[record]
        places[record] = file.tell(), size
        file.seek(size, 1)
    if file.tell() > file.seek(0, 2):
        raise ValueError("it ends too early")
    return content


SAFETENSORS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
               "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
               "BOOL": torch.bool}


def _open_safetensors(file) -> dict:
    """Open safetensors' format: a JSON header, then bytes.

    Its own reader maps the file, which a copy would double.
    """
    start = 8 + int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(start - 8))
    metadata = header.pop("__metadata__", {})
    if sum(end - begin for begin, end in (entry["data_offsets"] for entry in header.values())) > file.seek(0, 2):
        raise ValueError("it has tensors that are larger than the file: they overlap")

    def read(key: str) -> Tensor:
        begin, end = header[key]["data_offsets"]
        file.seek(start + begin)
        return _bytes(file, end - begin)

    state = {}
    for key, entry in header.items():
        storage = _Storage(functools.partial(read, key), SAFETENSORS[entry["dtype"]])
        dense = torch.empty(entry["shape"], device="meta")
        state[key] = Stored(storage, 0, dense.shape, dense.stride())
    return {"state_dict": state} | json.loads(metadata.get("egokit", "{}"))


def _bytes(file, size: int) -> Tensor:
    """The next `size` bytes of a file; ValueError if it ends.

    The tensor's attribute `finite` says whether its bytes are finite numbers, if they are float32: it costs least to
    look at a block while the processor's cache holds it.
    """
    content = torch.empty(size, dtype=torch.uint8, device="cpu")
    array, content.finite, count = content.numpy(), size % 4 == 0, 0
    for start in range(0, size, BLOCK):
        block = array[start:start + BLOCK]
        count += file.readinto(memoryview(block))
        if content.finite:
            numbers = block.view(np.float32)
            content.finite = bool(numbers.max() < np.inf) and bool(numbers.min() > -np.inf)  # NaN if one number is
    if count < size:
        raise ValueError("it ends too early")
    file.read(1)  # at the end of a zip's record its checksum is compared
    return content
