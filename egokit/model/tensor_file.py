"""Read files of tensors: PyTorch's zip format, its older one, and safetensors; nothing in a file is executed.

Tensors are read one by one, each into memory of its own, and only those that are asked for: an optimizer's stay in the
file. A file that changes later changes no tensor that was read. What a file states is compared with its size before
memory is taken: records lie within it and are not compressed, tensors lie within their records, and all tensors
together are at most EXPANSION times as large as the file.

A pickle may hold tensors and plain containers. A foreign package's object (released files hold one of
`parse_config.ConfigParser`) becomes an inert placeholder; a pickle that names anything else is refused.

Why not `torch.load(weights_only=True)`: even with stand-ins for foreign names it refuses foreign dicts and lists, and
pickles of protocol 4; it compares no checksums; and its stand-ins are in a list of the whole process. Here no name
gives an object of Python, PyTorch or this package: whatever a pickle calls or changes is made for it.
"""
import collections
import functools
import io
import json
import math
import re
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from egokit.data.plain_data import Dropped, Maker, Refused, make_dict, make_set
from egokit.data.safe_pickle import SafeUnpickler

BLOCK = 1 << 20  # bytes that are read at once
OLDER = 0x1950a86a20f9469cfc6c  # the first pickle of files before PyTorch 1.6
EXPANSION, SMALL = 4, 256 << 20  # tied and expanded weights may need more memory than the file has, and small ones any


class Stored(collections.namedtuple("Stored", "storage offset size stride")):
    """A tensor that is still in its file; `copy.deepcopy` of what holds it reads it."""
    __slots__ = ()

    def __deepcopy__(self, memo) -> Tensor:
        stored = self.storage.read()
        # for `checkpoints._read_state`; not an attribute of the tensor, as that would be saved with it
        memo["finite"] = stored.finite and self.storage.dtype == torch.float32
        return stored.view(self.storage.dtype).as_strided(self.size, self.stride, self.offset)

    def __reduce__(self):
        # for `checkpoints.read_by`: other processes get what isn't read without the way to the file
        return Stored, (_Storage(None, self.storage.dtype), self.offset, self.size, self.stride)

    @property
    def bytes(self) -> int:
        """Size of the tensor in memory of its own."""
        return math.prod(self.size) * self.storage.dtype.itemsize


# a storage: functions that read its bytes and that return its offset in the file, and its data type
_Storage = collections.namedtuple("_Storage", "read dtype place", defaults=(None,))


def make_stored(storage, offset, size, stride, *_) -> Stored:
    """Return a tensor by what torch._utils._rebuild_tensor_v2 takes, of which the rest is ignored.

    Raises:
        Refused: it is not described by whole numbers.
    """
    numbers = [offset, *size, *stride]
    if not isinstance(storage, _Storage) or len(size) != len(stride) or len(size) > 64 or not all(
            type(number) is int and 0 <= number < 1 << 62 for number in numbers):
        raise Refused("it has a tensor whose place or shape is wrong")
    return Stored(storage, offset, tuple(size), tuple(stride))


def make_parameter(first, *rest):
    """Return the tensor of a parameter, or of a foreign kind of tensor, which names a function and its arguments."""
    return first if isinstance(first, Stored | Dropped) else first.make(*rest[1])


DTYPES = {"FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
          "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32,
          "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
          "BoolStorage": torch.bool, "UntypedStorage": torch.uint8}

# what stands for each name
ADMITTED = {
    "collections.OrderedDict": Maker(make_dict), "builtins.set": Maker(make_set), "torch.Size": Maker(tuple),
    "builtins.frozenset": Maker(lambda values=(): frozenset(make_set(values))),
    **dict.fromkeys(("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"), Maker(make_stored)),
    **dict.fromkeys(("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state",
                     "torch._tensor._rebuild_from_type_v2"), Maker(make_parameter)),
    **{f"{module}.{name}": dtype for name, dtype in DTYPES.items() for module in ("torch", "torch.storage")},
    **{f"torch.{name}": dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}}

# plain data that training scripts leave in a checkpoint beside the tensors: dropped like foreign objects
DROPPED = re.compile(
    r"(pathlib|argparse|datetime|logging|enum)\.[\w.]*|collections\.(defaultdict|Counter|deque)|_codecs\.encode|torch\.device|"
    r"builtins\.(x?range|slice|complex|bytearray|bytes|int|float|bool|str|list|tuple|dict|object)|copyreg\._reconstructor|"
    r"numpy(\._?core)?(\.multiarray)?\.(scalar|dtype|ndarray|_reconstruct)|numpy\.random\._pickle\..*|numpy\.dtypes\..*")


KNOWN = sys.stdlib_module_names | {"torch", "numpy", "egokit"}


class TensorUnpickler(SafeUnpickler):
    """An unpickler of plain containers and tensors, which become `Stored`."""

    def __init__(self, file, end: int, read, place=None):
        """Unpickle a file.

        Args:
            read: function of a record's name that returns the bytes of its storage, a uint8 tensor.
            place: function of a record's name that returns where it begins in the file.
        """
        super().__init__(file, end)
        self.read, self.place = read, place
        self.itemsizes: dict[str, int] = {}  # bytes an element, by the name of each record that the pickle refers to

    def find(self, name: str):
        """Return what stands for a name; refuse one that a checkpoint has no use for."""
        if name in ADMITTED:
            return ADMITTED[name]
        known = name.split(".")[0] in KNOWN
        if known and not DROPPED.fullmatch(name):
            hint = ": complex and quantised numbers are not supported" if name.endswith("Storage") else ""
            raise Refused(f"it names {name}, which a checkpoint has no use for{hint}")
        return Dropped(name)

    def refer(self, saved) -> _Storage:
        """Return a storage for ("storage", type, record, device, count), as all files have it."""
        kind, dtype, record, _, _, *views = saved
        if kind != "storage" or dtype not in DTYPES.values() or any(views):
            raise Refused("it refers to something that is no storage of its own")
        self.itemsizes[str(record)] = dtype.itemsize
        return _Storage(functools.partial(self.read, str(record)), dtype,
                        self.place and functools.partial(self.place, str(record)))


def open_lazily(file):
    """Return the content of an open file, its tensors as `Stored`: `copy.deepcopy` reads them.

    Raises:
        Exception: a bad file raises many kinds, ValueError and pickle.UnpicklingError among them.
    """
    beginning, is_zip, end = file.read(512), zipfile.is_zipfile(file), file.seek(0, 2)
    file.seek(0)
    if is_zip:
        return _open_zip(file, end)
    if beginning[8:9] == b"{":
        return _open_safetensors(file, end)
    if beginning.startswith(b"\x80"):
        return _open_older(file, end)
    text = beginning.decode(errors="replace").lstrip("\ufeff \t\r\n")
    hints = {"PK": ": its end is missing", "<": ": it is a web page", "{": ": the file itself was not fetched",
             "version https://git-lfs": ": the file itself was not fetched"}
    hint = next((hint for start, hint in hints.items() if text.startswith(start)), "")
    raise ValueError(f"it is no file of tensors, beginning with {text[:32]!r}{hint}")


def map_tensor(path: Path) -> np.ndarray:
    """Return the one tensor of a file in PyTorch's zip format, memory-mapped; its checksum is not compared.

    Raises:
        Exception: as of `open_lazily`.
    """
    with open(path, "rb") as file:
        tensor = open_lazily(file)
        if not isinstance(tensor, Stored) or tensor.storage.dtype == torch.bfloat16:
            kind = "a tensor of bfloat16" if isinstance(tensor, Stored) else f"a {type(tensor).__name__}"
            raise Refused(f"it holds {kind}, expected one tensor of a type that NumPy has")
        begins = tensor.storage.place() + tensor.offset * tensor.storage.dtype.itemsize
        is_dense = tensor.stride == torch.empty(tensor.size, device="meta").stride()
        if not is_dense or begins + tensor.bytes > file.seek(0, 2):
            raise Refused("its tensor is not in one piece, or not in the file")
    dtype = torch.empty(0, dtype=tensor.storage.dtype).numpy().dtype
    return np.memmap(path, dtype, "r", begins, tensor.size) if tensor.bytes else np.empty(tensor.size, dtype)


def _open_zip(file, end: int):
    """Open PyTorch's format since 1.6: a zip of one pickle and a record for each storage.

    The checksums of what is read are verified.
    """
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    folder = names[0].partition("/")[0] if names else ""  # PyTorch takes the first name's folder, too
    if len({name.casefold() for name in names}) < len(names):  # PyTorch looks for them regardless of case
        raise ValueError("it has two records of one name")
    if (any(info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size
            for info in archive.infolist())
            or sum(info.file_size for info in archive.infolist()) > end):
        raise ValueError("it has records that are compressed or overlap, which PyTorch does not write")
    if f"{folder}/byteorder" in names and archive.read(f"{folder}/byteorder") != b"little":
        raise ValueError("it was written on a big-endian machine")

    @functools.cache  # tied weights share a storage, and keep sharing it
    def read(record: str) -> Tensor:
        info = archive.getinfo(f"{folder}/data/{record}")
        with archive.open(info) as stream:
            return _bytes(stream, info.file_size)

    def place(record: str) -> int:
        info = archive.getinfo(f"{folder}/data/{record}")
        file.seek(info.header_offset + 26)
        return info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))  # its name and extra field come first

    content = archive.read(f"{folder}/data.pkl")
    unpickler = TensorUnpickler(io.BytesIO(content), len(content), read, place)
    return _bounded(unpickler.load(), unpickler, end)


def _open_older(file, end: int):
    """Open PyTorch's format before 1.6.

    It has three pickles of constants, the content, the names of records, then their bytes.
    """
    places: dict[str, tuple[int, int]] = {}  # (offset, size) in bytes

    @functools.cache  # tied weights share a storage
    def read(record: str) -> Tensor:
        offset, size = places[record]
        file.seek(offset)
        return _bytes(file, size)

    constants = [TensorUnpickler(file, end, read).load() for _ in range(3)]
    if constants[0] != OLDER:
        raise ValueError("it is no file of tensors")
    unpickler = TensorUnpickler(file, end, read)
    content = unpickler.load()
    for record in map(str, SafeUnpickler(file, end).load()):
        size = int.from_bytes(file.read(8), "little") * unpickler.itemsizes[record]
        places[record] = file.tell(), size
        if size > end - file.tell():
            raise ValueError("it ends too early")
        file.seek(size, 1)
    return _bounded(content, unpickler, end)


def _bounded(content, unpickler: TensorUnpickler, end: int):
    """Return the content of a pickle, or raise Refused if its tensors need much more memory than the file has."""
    tensors = [facts.container for facts in unpickler.containers.facts.values()
               if isinstance(facts.container, Stored)]
    if sum(tensor.bytes for tensor in tensors) > EXPANSION * end + SMALL:
        raise Refused(f"its tensors are more than {EXPANSION} times as large as the file")
    return content


HEADER = 16 << 20  # bytes; those of large models have a tenth
SAFETENSORS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
               "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
               "BOOL": torch.bool}


def _open_safetensors(file, end: int) -> dict:
    """Open safetensors' format: a JSON header, then the tensors' bytes, one after the other.

    Its own reader maps the file, which a copy would double.
    """
    start = 8 + int.from_bytes(file.read(8), "little")
    if start > min(end, HEADER):
        raise ValueError("it ends too early, or has a header that is too long")
    header = json.loads(file.read(start - 8))
    metadata, at, state = header.pop("__metadata__", {}), start, {}

    def read(offset: int, size: int) -> Tensor:
        file.seek(offset)
        return _bytes(file, size)

    for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape, (begin, stop) = SAFETENSORS[entry["dtype"]], entry["shape"], entry["data_offsets"]
        make_stored(_Storage(read, dtype), 0, shape, shape)  # numbers, and not too many
        tensor = make_stored(_Storage(functools.partial(read, at, stop - begin), dtype), 0, shape, [
            math.prod(shape[axis + 1:]) for axis in range(len(shape))])
        if start + begin != at or tensor.bytes != stop - begin:
            raise ValueError(f"{key!r} is not where it belongs, or not of its size: the header is damaged, or tensors "
                             "overlap")
        state[key], at = tensor, start + stop
    if at != end:
        raise ValueError("it ends too early, or holds more than its tensors")
    return json.loads(metadata.get("egokit", "{}")) | {"state_dict": {key: state[key] for key in header}}


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
