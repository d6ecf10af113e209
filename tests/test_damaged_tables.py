"""An annotation file that is damaged as a whole is named by tasks, doctor and preparation; harmless oddities work."""
import io
import os
import zlib

import numpy as np
import pyarrow as pa
import pytest
from annotation_files import (
    CHARADES,
    CLASSES,
    EGOCLIP,
    EGOMCQ,
    EK,
    FILES,
    RELEVANCY,
    SENTENCES,
    SHORT,
    TRAIN_CLIPS,
    VIDEOS,
    edited,
    refused,
    user,
)

from egokit import prep
from egokit.data import egoclip_table
from egokit.prep import doctor


@pytest.fixture
def use(resolve, copied):
    return user(resolve, copied)


def halved(data: bytes) -> bytes:
    """Return a file that is cut off in the middle of a row."""
    at = len(data) // 2
    return data[:at - 3] if data[at - 4:at - 2].strip() else data[:at]


WHOLE_FILE = {
    "empty": lambda data: b"",
    "binary": lambda data: np.random.default_rng(0).bytes(5000),
    "zeros": lambda data: bytes(len(data)),
    "UTF-16": lambda data: data.decode("latin-1").encode("utf-16"),
    "page": lambda data: b"<!DOCTYPE html>\n<html><head><title>404, Not Found</title></head>\n<body></body></html>\n",
    "header only": lambda data: data.split(b"\n")[0] + b"\n",
    "cut": halved,
    "latin-1": lambda data: data[:-30] + b"\xe9" + data[-30:],
    "list": lambda data: b"[]",
    "number": lambda data: b"7",
    "brackets": lambda data: b"[" * 100_000,
}
# malformed rows of EgoClip are counted; a list of sentences that is cut off is valid, only the relevancy's size tells
HARMLESS = {("cut", EGOCLIP), ("latin-1", EGOCLIP), ("cut", CLASSES), ("header only", CLASSES), ("cut", SENTENCES),
            ("header only", EGOMCQ), ("latin-1", RELEVANCY)}


@pytest.mark.parametrize("damage", ["missing", *WHOLE_FILE])
@pytest.mark.parametrize("name", FILES, ids=SHORT)
def test_a_damaged_file_is_named(use, name, damage):
    do, root = use
    path = root / name
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(WHOLE_FILE[damage](data))
    if (damage, name) not in HARMLESS:
        refused(lambda: do(name), path)
    elif (damage, name) == ("cut", SENTENCES):
        refused(lambda: do(name), root, "but EPIC_100_retrieval_*.csv have 9 clips and", "if those are whole")


@pytest.mark.parametrize("name", FILES, ids=SHORT)
def test_the_doctor_names_a_damaged_file(resolve, copied, name):
    on_copy, root = copied
    config, path = on_copy(resolve()), root / name
    data = path.read_bytes()
    for damage, change in WHOLE_FILE.items():
        path.write_bytes(change(data))
        findings = doctor.examine(config, 1, ("egoclip", "egomcq", "ek100", "charades", "mq"))
        messages = [f"{finding.what}: {finding.message}" for finding in findings
                    if finding.state in ("wrong", "missing")]
        if (damage, name) not in HARMLESS:
            assert any(path.name in message for message in messages), (damage, messages)


@pytest.mark.parametrize("name", [name for name in FILES if name != RELEVANCY],
                         ids=lambda name: name.rsplit("/", 1)[-1])
def test_line_ends_of_windows_and_a_byte_order_mark_just_work(use, name):
    do, root = use
    path = root / name
    before = do(name)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    after = do(name)
    assert len(before) == len(after) and len(after) > 0
    if name in (VIDEOS, CLASSES):
        assert before.task.ids == after.task.ids and before.task.classes == after.task.classes
        assert np.array_equal(before.task.targets_VK, after.task.targets_VK)


def test_where_the_locale_is_not_utf_8(use, monkeypatch):
    """Tables are read as UTF-8 on every machine."""
    do, root = use
    path = root / CLASSES
    text = path.read_text(encoding="utf-8").replace("picking up the cup", "picking up the café's cup")
    path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(io, "text_encoding", lambda encoding, stacklevel=2: encoding or "ascii")
    assert any("café" in sentence for sentence in do(CLASSES).task.classes.values())


def test_a_folder_or_an_unreadable_file_in_a_tables_place(use):
    do, root = use
    for name in FILES:
        path = root / name
        data = path.read_bytes()
        path.unlink()
        path.mkdir()
        with pytest.raises((OSError, ValueError), match=path.name):
            do(name)
        path.rmdir()
        path.write_bytes(data)
    if os.geteuid():  # root may read any file
        (root / EGOMCQ).chmod(0)
        with pytest.raises(PermissionError, match=r"egomcq\.json"):
            do(EGOMCQ)


@pytest.mark.parametrize("name, action", [(f"{CHARADES}/CharadesEgo_v1_train_only1st.csv", prep.charades),
                                          (CLASSES, prep.charades), (TRAIN_CLIPS, prep.ek100), (SENTENCES, prep.ek100)],
                         ids=lambda value: str(getattr(value, "__name__", value))[-20:])
def test_preparation_names_a_damaged_table_and_leaves_no_part(copied, name, action):
    _, root = copied
    for path in root.glob(f"{EK}/relevancy/*"):
        path.unlink()
    path = root / name
    data = path.read_bytes()
    for damage, change in WHOLE_FILE.items():
        path.write_bytes(change(data))
        if (damage, name) not in HARMLESS:
            refused(lambda: action(root), path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        action(root)
    assert not [path for path in root.rglob("*") if ".part" in path.name]


def test_sentences_of_another_table(copied):
    _, root = copied
    for path in root.glob(f"{EK}/relevancy/*"):
        path.unlink()
    edited(root / SENTENCES, 2, narration_id="P99_99_0")
    refused(lambda: prep.ek100(root), root / SENTENCES, "P99_99_0", "are not in")


def _column(number):
    """Return a change of a column of references: each is this number."""
    return lambda column: pa.DictionaryArray.from_buffers(
        column.type, len(column), [None, pa.array([number] * len(column), pa.int32()).buffers()[1]], column.dictionary)


def _lists(number):
    """Return a change of a column of lists: each holds this number."""
    return lambda column: pa.DictionaryArray.from_arrays(
        column.indices, pa.array([[number]] * len(column.dictionary), column.type.value_type))


def _places(values):
    """Return a change of a column of lists: one of so many zeros, whose end is then moved away in the file."""
    return lambda column: pa.DictionaryArray.from_arrays(
        column.indices, pa.array([[0] * values], column.type.value_type))


FORGED = [("scene", _column(1 << 30)), ("video_uid", _column(-1)), ("tag_noun", _lists(30_000)),
          ("tag_verb", _lists(-5)), ("scene", _lists(-1)), ("scene", _lists(1 << 30)),
          ("tag_verb", _places(77)), ("scene", _places(77)),
          ("narration_time", lambda column: column.cast(pa.float32())),
          ("clip_end", lambda column: pa.nulls(len(column), pa.float64()))]


@pytest.mark.parametrize("name, forge", FORGED)
def test_a_forged_cache_with_places_outside_of_it_is_built_anew(tmp_path, name, forge):
    path = tmp_path / EGOCLIP
    path.write_text("\t".join(egoclip_table.COLUMNS) + "\n" + "\t".join(
        ["7", "a", "90", "x", "0", "12", "11", "13", "#C C cuts", "[3]", "[17]"]) + "\n")
    stamp = {"format": egoclip_table.FORMAT, "csv_bytes": path.stat().st_size, "csv_mtime_ns": path.stat().st_mtime_ns}
    built = egoclip_table._build_cache(path, stamp)
    columns = {key: column.chunk(0) for key, column in zip(built.column_names, built.columns, strict=True)}
    forged = pa.table({**columns, name: forge(columns[name])}).replace_schema_metadata(built.schema.metadata)
    place = tmp_path / f".{EGOCLIP}.cache"
    with pa.OSFile(str(place), "wb") as file, pa.ipc.new_file(file, forged.schema) as writer:
        writer.write_table(forged)
    data = place.read_bytes().replace(np.int32([0, 77]).tobytes(), np.int32([0, 1 << 30]).tobytes())
    place.write_bytes(data + zlib.crc32(data).to_bytes(4, "little"))
    assert egoclip_table._map_cache(place, stamp) is None
    row = egoclip_table.EgoClipTable(path).row(0)
    assert row["verbs"].tolist() == [3] and row["video_uid"] == "a" and egoclip_table._map_cache(place, stamp)
