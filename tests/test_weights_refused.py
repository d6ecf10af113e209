"""Files that are no checkpoints, are damaged or would execute code are refused by name, and foreign objects dropped."""
import pickle
import sys

import pytest
import torch
from conftest import MODEL

import egokit
from egokit.data.plain_data import Dropped
from egokit.model import checkpoints, weights
from egokit.model.checkpoints import WeightsError


@pytest.fixture
def model(resolve):
    return weights.initial_model(resolve(overrides=MODEL))


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"", b"PK\x03\x04 cut"])
def test_files_that_are_no_checkpoints(tmp_path, content):
    path = tmp_path / "EgoVLPv2.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"EgoVLPv2\.pth.*not a checkpoint"):
        egokit.load(path)


def test_a_folder_a_missing_file_and_another_model(tmp_path):
    with pytest.raises(WeightsError, match="holds no checkpoint"):
        egokit.load(tmp_path)
    with pytest.raises(WeightsError, match="does not exist"):
        egokit.load(tmp_path / "none.pth")
    torch.save({"state_dict": {"layer1.conv.weight": torch.zeros(3)}}, tmp_path / "resnet.pth")
    with pytest.raises(WeightsError, match=r"resnet\.pth is not an EgoVLPv2 checkpoint.*layer1"):
        egokit.load(tmp_path / "resnet.pth")


class Evil:
    def __reduce__(self):
        return (exec, ("open('made', 'w')",))


def test_a_pickle_that_executes_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"w": torch.zeros(1)}, "config": Evil()}, "evil.pth")
    (tmp_path / "legacy.pth").write_bytes(pickle.dumps({"config": Evil()}))
    for name in ("evil.pth", "legacy.pth"):
        with pytest.raises(WeightsError, match=name):
            egokit.load(tmp_path / name)
    assert not (tmp_path / "made").exists()


class Settings(dict):
    """A foreign class like easydict's or yacs's: a dict with items, state and attributes."""


class Steps(list):
    """A foreign class like omegaconf's lists."""


def test_foreign_objects_are_dropped_unread(model, tmp_path, monkeypatch):
    import argparse
    import collections
    import datetime
    import logging
    import pathlib
    import types

    import numpy as np
    foreign = types.ModuleType("parse_config")
    foreign.Settings, foreign.Steps = Settings, Steps
    monkeypatch.setattr(Settings, "__module__", "parse_config")
    monkeypatch.setattr(Steps, "__module__", "parse_config")
    monkeypatch.setitem(sys.modules, "parse_config", foreign)
    settings = Settings(lr=1.0)
    settings.path = pathlib.Path("x")
    extra = {"config": settings, "args": argparse.Namespace(lr=1), "best": np.float64(3), "array": np.arange(3),
             "when": datetime.datetime(2023, 1, 1), "seen": {1, 2}, "log": logging.getLogger("run"),
             "steps": Steps([1, 2]), "losses": collections.deque([0.5]), "by": collections.defaultdict(list, a=[1])}
    state = {f"module.{weights.rename(key, 'released')}": value for key, value in model.state_dict().items()}
    for new, protocol in ((True, 2), (False, 2), (True, 4), (False, 4)):
        torch.save({"state_dict": state, **extra}, tmp_path / "a.pth", pickle_protocol=protocol,
                   _use_new_zipfile_serialization=new)
        monkeypatch.delitem(sys.modules, "parse_config")
        content = checkpoints.read(tmp_path / "a.pth")
        config = content["config"]
        assert type(config) is Dropped and config.name == "parse_config.Settings"
        assert "parse_config" not in sys.modules and content["state_dict"].keys() == state.keys()
        monkeypatch.setitem(sys.modules, "parse_config", foreign)


@pytest.mark.parametrize("function", [
    "os.system", "builtins.eval", "torch.hub.load", "numpy.testing.run_module_suite", "subprocess.Popen",
    "importlib.import_module", "shutil.rmtree", "torch._utils._rebuild_device_tensor_from_numpy"])
def test_pickles_that_name_anything_else_are_refused(tmp_path, function):
    module, _, name = function.rpartition(".")
    code = b"\x80\x02" + f"c{module}\n{name}\n(S'made'\ntR.".encode()
    (tmp_path / "legacy.pth").write_bytes(code)
    import zipfile
    with zipfile.ZipFile(tmp_path / "new.pth", "w") as archive:
        archive.writestr("archive/data.pkl", code)
    for file in ("legacy.pth", "new.pth"):
        with pytest.raises(WeightsError, match=rf"{file}.*(names {function}|which a checkpoint has no use)"):
            egokit.load(tmp_path / file)


MAGIC = b"".join(pickle.dumps(constant, 2) for constant in (0x1950a86a20f9469cfc6c, 1001, {"little_endian": True}))


@pytest.mark.parametrize("code", [
    # older PyTorch compares a module's source with a file of its name, which it may also write
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(}X\x0c\x00\x00\x00dump_patches\x88s}X\x08\x00\x00\x00__name__"
    b"X\x03\x00\x00\x00pwns\x86b.",
    b"\x80\x02(X\x06\x00\x00\x00modulectorch._utils\n_rebuild_tensor_v2\nX\x01\x00\x00\x00aX\x01\x00\x00\x00btQ.",
    # state for the function that builds tensors would change it in the whole process
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x0c\x00\x00\x00__qualname__X\x01\x00\x00\x00zsb.",
    b"\x80\x02cegokit.model.tensor_file\nStored\n."])
def test_pickles_that_change_what_they_are_given_are_refused(tmp_path, monkeypatch, code):
    import zipfile
    monkeypatch.chdir(tmp_path)
    before = {name: dict(vars(getattr(torch._utils, name))) for name in ("_rebuild_tensor_v2", "_rebuild_parameter")}
    (tmp_path / "older.pth").write_bytes(MAGIC + code + pickle.dumps([], 2))
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as archive:
        archive.writestr("archive/data.pkl", code)
    for name in ("older.pth", "zip.pth"):
        with pytest.raises(WeightsError, match=name):
            egokit.load(name)
    assert before == {name: dict(vars(getattr(torch._utils, name))) for name in before}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["older.pth", "zip.pth"]
    torch.save({"a": torch.zeros(1)}, "still.pth")


def stored(dtype: str, size: int = 3) -> bytes:
    """A pickle of a state dict with one tensor."""
    return (b"\x80\x02}X\x0a\x00\x00\x00state_dict}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n("
            b"(X\x07\x00\x00\x00storage" + f"ctorch\n{dtype}\n".encode() +
            b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x03tQK\x00K" + bytes([size]) + b"\x85K\x01\x85\x89}tRss.")


@pytest.mark.parametrize(("dtype", "size", "compression", "why"), [
    ("FloatStorage", 3, 0, "is not an EgoVLPv2 checkpoint, .*: its keys begin with w"),  # what is whole
    ("FloatStorage", 4, 0, "out of bounds"), ("FloatStorage", 3, 8, "compressed or overlap"),
    ("ComplexFloatStorage", 1, 0, "complex and quantised"), ("complex64", 1, 0, "no storage of its own")])
def test_tensors_that_are_not_in_their_file_are_refused(tmp_path, dtype, size, compression, why):
    import zipfile
    with zipfile.ZipFile(tmp_path / "a.pth", "w", compression) as archive:
        archive.writestr("archive/data.pkl", stored(dtype, size))
        archive.writestr("archive/data/0", bytes(12))
        archive.writestr("archive/data/1", bytes(100_000 if compression else 1))
    with pytest.raises(WeightsError, match=rf"a\.pth.*{why}"):
        egokit.load(tmp_path / "a.pth")


def test_a_record_that_the_older_format_does_not_hold_is_refused(tmp_path):
    whole = stored("FloatStorage") + pickle.dumps(["0"], 2) + (3).to_bytes(8, "little") + bytes(12)
    (tmp_path / "whole.pth").write_bytes(MAGIC + whole)
    assert checkpoints.read(tmp_path / "whole.pth")["state_dict"]["w"].tolist() == [0, 0, 0]
    (tmp_path / "none.pth").write_bytes(MAGIC + stored("FloatStorage") + pickle.dumps([], 2))
    (tmp_path / "cut.pth").write_bytes(MAGIC + whole[:-1])
    (tmp_path / "long.pth").write_bytes(MAGIC + whole.replace((3).to_bytes(8, "little"), b"\xff" * 8))
    for name in ("none", "cut", "long"):
        with pytest.raises(WeightsError, match=rf"{name}\.pth"):
            checkpoints.read(tmp_path / f"{name}.pth")


def test_safetensors_that_overlap_are_refused(tmp_path):
    import json
    entry = {"dtype": "F32", "shape": [100], "data_offsets": [0, 400]}
    header = json.dumps({str(i): entry for i in range(20)}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(400))
    with pytest.raises(WeightsError, match=r"a\.safetensors.*overlap"):
        egokit.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(("content", "why"), [
    (b"<!DOCTYPE html><html>", "is a web page"), (b"version https://git-lfs.github.com/spec/v1", "was not fetched"),
    (b'{"error": "404"}', "was not fetched"), (b"PK\x03\x04 cut", "its end is missing")])
def test_what_came_in_place_of_a_checkpoint_is_named(tmp_path, content, why):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=rf"a\.pth.*{why}"):
        egokit.load(tmp_path / "a.pth")


def test_a_big_endian_file_is_refused(tmp_path):
    import zipfile
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("archive/data.pkl", stored("FloatStorage"))
        archive.writestr("archive/byteorder", "big")
        archive.writestr("archive/data/0", bytes(12))
    with pytest.raises(WeightsError, match=r"a\.pth.*big-endian"):
        egokit.load(tmp_path / "a.pth")


def test_a_tar_is_not_opened(tmp_path):
    import tarfile
    with tarfile.open(tmp_path / "a.pth", "w") as archive:
        member = tarfile.TarInfo("storages")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(member)
    with pytest.raises(WeightsError, match=r"a\.pth.*no file of tensors"):
        egokit.load(tmp_path / "a.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files_are_named(model, tmp_path, suffix):
    weights.save(model, tmp_path / f"whole{suffix}")
    data = (tmp_path / f"whole{suffix}").read_bytes()
    for share in (0.001, 0.3, 0.99):
        (tmp_path / f"cut{suffix}").write_bytes(data[:int(len(data) * share)])
        with pytest.raises(WeightsError, match=rf"cut{suffix}.*is not a checkpoint that can be read.*download"):
            egokit.load(tmp_path / f"cut{suffix}")
    if suffix == ".pth":  # PyTorch's format has checksums
        middle = len(data) // 2
        (tmp_path / "flipped.pth").write_bytes(data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1:])
        with pytest.raises(WeightsError, match=r"flipped\.pth.*CRC"):
            egokit.load(tmp_path / "flipped.pth")


def test_a_pipe_is_no_checkpoint(tmp_path):
    import os
    os.mkfifo(tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"a\.pt is not a checkpoint.*no regular file"):
        checkpoints.read(tmp_path / "a.pt")


def test_keys_in_messages_are_short_and_hide_nothing(tmp_path):
    torch.save({"state_dict": {"x" * 1_000_000: torch.zeros(1), "a\nb\x1b[31m": torch.zeros(1)}}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"its keys begin with a\\nb\\x1b\[31m, x") as caught:
        egokit.load(tmp_path / "a.pt")
    assert len(str(caught.value)) < 1000
