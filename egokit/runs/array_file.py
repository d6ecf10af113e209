"""NumPy's files, read with bounds: a damaged or hostile one is an error that names it, and runs nothing."""
import math
import zipfile
from collections.abc import Callable
from pathlib import Path

from egokit.config.access import file_exists
from egokit.config.names import printable

LONGEST_HEADER = 10_000  # bytes; NumPy's own bound


def is_plain(dtype) -> bool:
    """Return whether an array's type is that of numbers or texts."""
    return dtype.kind in "biufSU"


def read_array(path: Path, fix: str, expected: Callable = is_plain):
    """Return the array of a .npy file, memory-mapped and read-only.

    Args:
        path: the file.
        fix: what to do about a damaged file, for the message.
        expected: says whether a dtype is the expected one.

    Raises:
        ValueError: the file is damaged or no array of that type; the message names it, and ends with `fix`.
        OSError: it can't be opened.
    """
    import numpy as np
    file_exists(path)
    try:
        with open(path, "rb") as file:
            shape, order, found = _header(file, path.stat().st_size, expected)
            start = file.tell()
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {fix}") from None
    if not math.prod(shape):  # no memory can be mapped then
        return np.empty(shape, found, order)
    return np.memmap(path, found, "r", start, shape, order)


def read_arrays(path: Path, fix: str) -> dict:
    """Return the arrays of a .npz file, by name.

    Raises:
        ValueError, OSError: as `read_array`.
    """
    file_exists(path)
    with open(path, "rb") as file:
        try:
            return _members(file, path.stat().st_size)
        except Exception as error:  # zipfile raises errors of a dozen kinds, OSError for a wrong place among them
            reason = printable(str(error)[:200])
            raise ValueError(f"{path}: no whole .npz file ({reason}); {fix}") from None


def _members(file, size: int) -> dict:
    """Return the arrays of a .npz file of `size` bytes, by name."""
    import numpy as np
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size
               for member in members) or sum(member.file_size for member in members) > size:
            raise ValueError("expected arrays that are not compressed, nor larger than the file")
        for member in members:
            with archive.open(member) as part:
                shape, order, dtype = _header(part, member.file_size)
                data = part.read()  # to the end, where the checksum is compared
                flat = np.frombuffer(data, dtype, math.prod(shape))
                arrays[member.filename.removesuffix(".npy")] = flat.reshape(shape, order=order)
    return arrays


def _header(file, size: int, expected: Callable = is_plain) -> tuple[tuple, str, object]:
    """Return (shape, order "C" or "F", dtype) from the header of a .npy file of `size` bytes; `file` is left behind it.

    Raises:
        ValueError: it is no .npy file, its data are cut off, or are not of the expected type.
    """
    import numpy as np
    try:
        major, _ = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(file, max_header_size=LONGEST_HEADER)
    except Exception:  # Python's parser, which NumPy asks, raises errors of a dozen kinds
        raise ValueError("no .npy file, or its header is damaged: expected shape, type and order") from None
    if not expected(dtype):
        raise ValueError(f"an array of {str(dtype)[:60]}, which is not what is expected here")
    are_sides = all(type(side) is int and side >= 0 for side in shape)
    if not are_sides or math.prod(shape) * dtype.itemsize > size - file.tell():
        raise ValueError(f"an array of shape {str(shape)[:60]} is larger than the file, which may be cut off")
    return shape, "F" if is_fortran else "C", dtype
