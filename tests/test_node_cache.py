"""Copies of indexes on a node's own disk: made once, checked, and done without where they can't be made."""
import multiprocessing
import os
import pickle
import resource
from pathlib import Path

import numpy as np
import pytest

from egokit import tasks
from egokit.data import node_cache, relevancy
from egokit.data.egoclip_table import EgoClipTable


@pytest.fixture
def original(tmp_path):
    path = tmp_path / "shared" / ".index.cache"
    path.parent.mkdir()
    path.write_bytes(np.random.default_rng(0).bytes(6_000_000))
    return path


@pytest.fixture
def lines(capsys):
    node_cache._say.cache_clear()
    return lambda: capsys.readouterr().out.splitlines()


def copies(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("egokit-*/*") if path.suffix != ".lock")


def _rank(path, folder, barrier, queue):
    transfer = node_cache._transfer

    def counted(*paths):
        queue.put("copied")
        return transfer(*paths)
    node_cache._transfer = counted
    barrier.wait()
    copy = node_cache.near(path, folder)
    queue.put(copy != path and copy.read_bytes() == path.read_bytes())


@pytest.mark.filterwarnings("ignore:.*fork")
def test_one_of_many_processes_copies(original, tmp_path, lines):
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(4), context.SimpleQueue()
    ranks = [context.Process(target=_rank, args=(original, str(tmp_path / "disk"), barrier, queue)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    answers = [queue.get() for _ in range(5)]
    for rank in ranks:
        rank.join()
    assert sorted(map(str, answers)) == ["True"] * 4 + ["copied"]
    copy, checksum = copies(tmp_path / "disk")
    assert copy.endswith("-index.cache") and checksum == f"{copy}.crc32"
    assert not lines()


def test_a_copy_is_made_again_if_the_original_or_the_copy_changes(original, tmp_path):
    folder = str(tmp_path / "disk")
    first = node_cache.near(original, folder)
    before = first.stat()
    assert node_cache.near(original, folder) == first and first.stat().st_ino == before.st_ino
    first.write_bytes(first.read_bytes()[:-1] + b"?")
    assert node_cache.near(original, folder) == first and first.read_bytes() == original.read_bytes()
    Path(f"{first}.crc32").unlink()  # its process was killed before it wrote the checksum
    assert node_cache.near(original, folder) == first and Path(f"{first}.crc32").exists()
    Path(f"{first}.crc32").write_bytes(b"\xff" * 8)
    assert node_cache.near(original, folder) == first and first.read_bytes() == original.read_bytes()
    mapped = np.memmap(first, mode="r")
    original.write_bytes(b"another content" * 1000)
    second = node_cache.near(original, folder)
    assert second != first and second.read_bytes() == original.read_bytes() and len(copies(tmp_path / "disk")) == 2
    assert mapped[:10].tobytes() != b"another co"  # who has mapped the earlier one keeps it


@pytest.mark.parametrize("in_place", [True, False])
def test_another_content_of_the_same_size_and_time_is_seen(original, tmp_path, in_place):
    """Archives and cp -p give it."""
    node_cache.near(original, str(tmp_path / "disk"))
    facts, other = original.stat(), original.read_bytes()[::-1]
    target = original if in_place else tmp_path / "other"
    target.write_bytes(other)
    os.utime(target, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    os.replace(target, original)
    assert original.stat().st_mtime_ns == facts.st_mtime_ns
    assert node_cache.near(original, str(tmp_path / "disk")).read_bytes() == other


def test_where_no_copy_can_be_made_the_original_is_used(original, tmp_path, lines, monkeypatch):
    def refused(folder) -> str:
        assert node_cache.near(original, str(folder)) == original
        assert node_cache.near(original, str(folder)) == original
        (line,) = lines()
        assert str(original) in line and f"site.node_cache={folder}: " in line
        return line
    assert node_cache.near(original, "") == original
    assert "expected an absolute path" in refused("somewhere")
    assert "expected an absolute path" in refused("$NOT_SET_ANYWHERE/cache")
    (tmp_path / "file").touch()
    assert "Not a directory" in refused(tmp_path / "file")
    (tmp_path / "open").mkdir()
    others = tmp_path / "open" / f"egokit-{os.geteuid()}"
    others.mkdir()
    others.chmod(0o777)
    assert "may be written by others" in refused(tmp_path / "open")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / others.name).symlink_to(tmp_path)
    assert "a link" in refused(tmp_path / "linked")
    with monkeypatch.context() as patch:
        patch.setattr(node_cache, "SPARE", 1 << 60)
        assert "MB are free" in refused(tmp_path / "full")
    monkeypatch.setenv("SOME_DISK", str(tmp_path / "disk"))
    assert node_cache.near(original, "$SOME_DISK/a").is_relative_to(tmp_path / "disk" / "a")


def test_a_disk_that_fills_up_while_it_is_written(original, tmp_path, lines):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, limits[1]))
    try:
        assert node_cache.near(original, str(tmp_path / "disk")) == original
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(lines()) == 1 and not copies(tmp_path / "disk")
    assert node_cache.near(original, str(tmp_path / "disk")) != original


@pytest.mark.filterwarnings("ignore:.*malformed rows")
def test_tables_and_relevancies_are_mapped_from_the_copy(resolve, tmp_path):
    folder = tmp_path / "disk"
    config = resolve(overrides=f"site.node_cache={folder}")
    path = Path(config.site.root) / "egoclip.csv"
    shared, near = EgoClipTable(path), EgoClipTable(path, node_cache=str(folder))
    assert [shared.row(i)["clip_text"] for i in range(80)] == [near.row(i)["clip_text"] for i in range(80)]
    again = pickle.loads(pickle.dumps(near))
    assert again.row(5)["clip_text"] == near.row(5)["clip_text"]
    actions = tasks.make(resolve("toy/ek100_finetune", f"site.node_cache={folder}", run="random")).dataset("train")
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line}
    assert {Path(name).name for name in mapped} == {name for name in copies(folder) if not name.endswith(".crc32")}
    assert [any(part in name for name in mapped) for part in ("egoclip.csv", "retrieval_train")] == [True, True]
    assert "retrieval_annotations" in str(actions.relevancy.path)  # messages name the original
    plain = relevancy.read(actions.relevancy.path)
    assert np.array_equal(actions.relevancy.array(), plain.array())
