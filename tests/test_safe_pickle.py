"""Pickles of others become plain data or one error: nothing is imported or called, and no file ends the process."""
import collections
import io
import pathlib
import pickle
import resource
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import egokit
from egokit.data import relevancy
from egokit.data.plain_data import Dropped, Refused
from egokit.data.safe_pickle import SafeUnpickler
from egokit.model.checkpoints import WeightsError

NEST = b"N" + b"\x85" * 2_000_000
SHARED = b"(K\x01t" + b"q\x00h\x00\x86" * 60  # each level holds the one below twice: 2 to the power of 60 values
PAIRS = b"\x80\x02](" + b"K\x01K\x02\x86" * 20_000 + b"eq\x000ccollections\nOrderedDict\nq\x010"
PLAIN = [None, True, False, 0, 255, -1, 1 << 40, -(1 << 200), 0.5, "text\n'\"ü\ud800", b"bytes\n\x00", (), (1,), (1, 2),
         (1, 2, 3), (1, 2, 3, 4), [], [1, [2]], {}, {"a": {"b": 1}, 3: None, ("y", "x"): 2}, {1, 2}, frozenset("ab"),
         "x" * 300, b"y" * 70_000, list(range(2000)), {str(i): i for i in range(2000)}, bytearray(b"z")]


def load(content: bytes):
    return SafeUnpickler(io.BytesIO(content), len(content)).load()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", PLAIN, ids=map(str, range(len(PLAIN))))
def test_plain_data_is_read_as_python_reads_it(value, protocol):
    content = pickle.dumps([value, value], protocol)
    if any(name in content for name in (b"builtin", b"_codecs")):  # older protocols have no sets or bytes
        with pytest.raises(Refused, match="it names"):
            load(content)
    else:
        assert load(content) == [value, value] and type(load(content)[0]) is type(value)


BOMBS = {
    "a key that is nested": b"\x80\x02}" + NEST + b"K\x01s.",
    "a member that is nested": b"\x80\x04\x8f(" + NEST + b"\x90.",
    "a nested frozenset": b"\x80\x04(" + NEST + b"\x91.",
    "nested lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "shared tuples": b"\x80\x02" + SHARED + b".",
    "a key of shared tuples": b"\x80\x02}" + SHARED + b"K\x01s.",
    "calls that copy": PAIRS + b"h\x01h\x00\x85R0" * 3000 + b"N.",
    "encodings that copy": b"\x80\x02X\x00\x00\x10\x00" + b"x" * (1 << 20) + b"q\x000c_codecs\nencode\nq\x010"
                           + b"h\x01h\x00X\x06\x00\x00\x00latin1\x86R" * 3000 + b".",
    "a memo of 2 GB": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "a text of 2 GB": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "bytes of 2^63": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fabc.",
    "a frame of 2^63": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f]",
    "many sets": b"\x80\x04" + b"\x8f" * 2_000_000 + b".",
    "many numbers": b"\x80\x04N" + b"\x94" * 3_000_000 + b".",
    "an endless stack": b"\x80\x02" + b"N" * 6_000_000 + b".",
    "a number of many digits": b"L" + b"9" * 10_000 + b"L\n.",
    "nothing": b"",
    "no end": b"\x80\x02N",
    "an empty stack": b"\x80\x02.",
    "a mark": b"\x80\x02(.",
    "no mark": b"\x80\x02Nt.",
    "no such number": b"\x80\x02h\x05.",
    "a key without a value": b"\x80\x02}(K\x01u.",
    "a list as a key": b"\x80\x02}]K\x01s.",
    "the extension registry": b"\x80\x02\x82\x01.",
    "a buffer outside": b"\x80\x05\x97.",
    "a reference": b"\x80\x02K\x01Q.",
    "append to a dict": b"\x80\x02}K\x01a.",
    "state for a list": b"\x80\x02]}b.",
    "a call of a text": b"\x80\x02X\x01\x00\x00\x00a)R.",
    "a name in a text": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    "a name": b"cos\nsystem\n.",
    "an instance": b"(ios\nsystem\n.",
    "a name that is a number": b"\x80\x04K\x01K\x02\x93.",
    "unknown": b"\x80\x02\xff.",
}


@pytest.mark.slow
def test_what_would_end_or_fill_the_process_is_refused_at_once(tmp_path):
    """In a process of its own, with room for some hundred MB and some seconds for each."""
    constants = b"".join(pickle.dumps(constant, 2) for constant in (0x1950a86a20f9469cfc6c, 1001, {}))
    for name, content in BOMBS.items():
        (tmp_path / f"{name}.pkl").write_bytes(content)
        if name.startswith("encodings"):
            continue  # a checkpoint leaves what is encoded out
        (tmp_path / f"{name}.older.pt").write_bytes(constants + content)
        for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            with zipfile.ZipFile(tmp_path / f"{name}.{kind}.pt", "w", kind) as archive:
                archive.writestr("archive/data.pkl", content)
    code = """
import pathlib, resource, sys, time
from egokit.data import relevancy
from egokit.model import checkpoints
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (600 << 20),) * 2)
before = set(sys.modules)
for path in sorted(pathlib.Path().iterdir()):
    print("reading", path, flush=True)
    began = time.process_time()
    try:
        (checkpoints.read if path.suffix == ".pt" else relevancy.read)(path)
        print("was read")
    except ValueError as error:
        assert path.name in str(error) and len(str(error)) < 500 and "\\n" not in str(error), error
    assert time.process_time() - began < 15, path
imported = [name for name in set(sys.modules) - before if name.partition(".")[0] not in sys.stdlib_module_names]
print("imported", imported)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-200:] + done.stderr
    assert "was read" not in done.stdout and done.stdout.endswith("imported []\n")
    assert done.stdout.count("reading") == 4 * len(BOMBS) - 3


@pytest.mark.parametrize("name", [
    "numpy.f2py.__main__.ndarray", "numpy.testing.ndarray", "numpy.core.multiarray.scalar",
    "numpy._core.numeric.ndarray", "os.system", "numpy.ndarray.tofile", "_codecs.decode"])
@pytest.mark.parametrize("how", ["c{}\n{}\n.", "(i{}\n{}\n."])
def test_a_relevancy_file_imports_nothing(tmp_path, name, how):
    module, _, attribute = name.rpartition(".")
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02" + how.format(module, attribute).encode())
    before = set(sys.modules)
    with pytest.raises(ValueError, match=rf"a\.pkl: not a relevancy file \(it names {name}"):
        relevancy.read(tmp_path / "a.pkl")
    assert set(sys.modules) == before


def array_pickle(code: str, state: bytes = b"", content: bytes = b"\x00" * 16) -> bytes:
    """A pickle of an array (2, 2) of a data type, which may have a state."""
    return (b"\x80\x03cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01K\x02K\x02\x86"
            b"cnumpy\ndtype\n" + pickle.dumps(code, 2)[2:-1] + b"K\x00K\x01\x87R" + state + b"\x89C"
            + bytes([len(content)]) + content + b"tb.")


@pytest.mark.parametrize(("code", "state", "content", "why"), [
    ("f4", b"", bytes(16), ""), ("f4", b"", bytes(12), "ValueError"), ("O", b"", bytes(32), "no numbers"),
    ("O8", b"", bytes(32), "no numbers"), ("V8", b"", bytes(32), "no numbers"), ("f4,O", b"", bytes(32), "no numbers"),
    ("M8[s]", b"", bytes(32), "no numbers"), ("U1", b"", bytes(16), "no numbers"),
    # a state that would make it a structure of objects
    ("f4", pickle.dumps((3, "|", None, ("a",), {"a": ("O", 0)}, 8, 8, 63), 2)[2:-1] + b"b", bytes(16),
     "more than a byte order")])
def test_a_relevancy_file_holds_numbers(tmp_path, code, state, content, why):
    path = tmp_path / "a.pkl"
    path.write_bytes(array_pickle(code, state, content))
    if not why:
        assert relevancy.read(path).array().tolist() == [[0, 0], [0, 0]]
        return
    with pytest.raises(ValueError, match=rf"a\.pkl: not a relevancy file.*{why}"):
        relevancy.read(path)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "f2", "f8", "u1", "i8"])
def test_arrays_of_all_protocols_and_orders(tmp_path, protocol, dtype):
    wide = (np.random.default_rng(0).random((7, 10)) * 2).astype(dtype)
    for array in (wide, np.asfortranarray(wide), wide[:, ::2], wide[:1]):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(array, protocol))
        codes = relevancy.read(tmp_path / "a.pkl").codes
        assert codes.dtype == array.dtype and np.array_equal(codes, array)


def test_a_relevancy_of_gigabytes_needs_its_size_once(tmp_path):
    array = np.random.default_rng(0).random((4000, 10_000), dtype=np.float32)  # 160 MB
    with open(tmp_path / "a.pkl", "wb") as file:
        pickle.dump(array, file, protocol=4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert np.array_equal(relevancy.read(tmp_path / "a.pkl").codes, array)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1.5 * array.nbytes / 1024


def test_dicts_of_other_kinds_keep_their_content():
    ordered = collections.OrderedDict(a=1, b=[2])
    ordered.note = "dropped"
    from egokit.model.tensor_file import TensorUnpickler
    for protocol in range(6):
        content = pickle.dumps({"ordered": ordered, "set": {1}, "frozen": frozenset([2])}, protocol)
        loaded = TensorUnpickler(io.BytesIO(content), len(content), None).load()
        assert loaded == {"ordered": {"a": 1, "b": [2]}, "set": {1}, "frozen": {2}}


def test_what_can_not_be_kept_is_left_out():
    """Python keeps these, and nothing here uses them: foreign keys, and containers that hold themselves."""
    assert load(b"\x80\x02]q\x00(h\x00K\x01e.")[1] == 1
    root = load(b"\x80\x02}q\x00(K\x01}K\x02h\x00sK\x07K\x08u.")
    assert type(root.pop(1)) is Dropped and root == {7: 8}
    from egokit.model.tensor_file import TensorUnpickler
    for value in ({np.int64(3): 1, "b": 2}, {pathlib.Path("x"): 1, "b": 2}, {(1, (2, "x")): 1, "b": 2}):
        content = pickle.dumps(value, 2)
        assert TensorUnpickler(io.BytesIO(content), len(content), None).load() == {"b": 2}


def test_keys_of_equal_hashes_take_no_time():
    content = pickle.dumps({i * (2**61 - 1): i for i in range(300)}, 2)
    assert load(content) == {0: 0}


def test_names_that_differ_by_case_alone_are_refused(tmp_path):
    import torch
    torch.save({"state_dict": {"w": torch.zeros(1)}}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt", "a") as archive:
        archive.writestr("a/DATA.PKL", b"N.")
    with pytest.raises(WeightsError, match=r"a\.pt.*two records of one name"):
        egokit.load(tmp_path / "a.pt")


@pytest.mark.parametrize("shape", [[2] * 20_000, [2.0], [True], "ab", [-1], [2**70]])
def test_shapes_of_safetensors_are_few_whole_numbers(tmp_path, shape):
    import json
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(WeightsError, match=r"a\.safetensors"):
        egokit.load(tmp_path / "a.safetensors")


def test_a_checkpoint_whose_tensors_need_far_more_memory_than_it_has(tmp_path):
    import torch
    torch.save({"state_dict": {"w": torch.zeros(1).expand(100_000, 100_000)}}, tmp_path / "wide.pt")
    with pytest.raises(WeightsError, match=r"wide\.pt.*times as large as the file"):
        egokit.load(tmp_path / "wide.pt")
