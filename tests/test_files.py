"""Files that are written whole: what kills and power cuts leave, and equal bytes for equal content."""
import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from egokit.config.build import ConfigError
from egokit.runs import files

KILLED = """
import os, signal, sys
from pathlib import Path
from egokit.runs import files
path, kind = Path(sys.argv[1]), sys.argv[2]
with {"file": lambda: files.atomic_path(path), "folder": lambda: files.atomic_folder(path),
      "temporary": files.temporary_folder}[kind]() as part:
    if kind != "file":
        (part / "inside").mkdir()
    (part if kind == "file" else part / "inside/key").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(path, kind, **environment):
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), kind], env=os.environ | environment)
    assert done.returncode == -signal.SIGKILL


def hidden(folder):
    return [path.name for path in Path(folder).iterdir() if path.name.startswith(".")]


def test_the_next_write_removes_what_a_killed_one_left(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "QUICK", 60)  # a slow look into a folder would put the next one off
    path = tmp_path / "new" / "a[1]*.txt"
    killed(path, "file")
    killed(path, "folder")
    assert len(hidden(path.parent)) == 1  # the second one has removed the first one's
    foreign = path.parent / f".a.elsewhere-{os.getpid()}-0123abcd.part.txt"
    mine = files.temporary_path(path)  # of a process that lives
    theirs = path.parent / f".notes.{socket.gethostname()}-draft-1.part"  # no name of ours
    for other in (foreign, mine, theirs):
        other.write_text("x")
    files.write_text(path, "whole")
    assert path.read_text() == "whole" and {*hidden(path.parent)} == {foreign.name, mine.name, theirs.name}
    os.utime(foreign, (0, 0))
    killed(path, "folder")
    with files.atomic_folder(path.parent / "b") as part:
        (part / "c").write_text("d")
    assert {*hidden(path.parent)} == {mine.name, theirs.name}


def test_temporary_folders_of_killed_processes_are_removed(tmp_path, monkeypatch):
    killed(tmp_path, "temporary", TMPDIR=str(tmp_path))
    assert len(hidden(tmp_path)) == 1
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with files.temporary_folder() as folder:
        assert hidden(tmp_path) == [folder.name] and folder.stat().st_mode & 0o077 == 0
    assert not hidden(tmp_path)


def test_a_notebooks_key_lies_in_its_temporary_folder(tmp_path, monkeypatch, project):
    import papermill

    from egokit.notebook import headless
    seen = []

    def execute(*arguments, config, **options):
        seen.append(config["KernelManager"])
        Path(arguments[1]).touch()
    monkeypatch.setattr(papermill, "execute_notebook", execute)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    headless._execute(tmp_path / "a.ipynb", tmp_path, {}, None)
    key, sockets = Path(seen[0]["connection_file"]), Path(seen[0]["ip"])
    assert key.parent == sockets.parent and key.parent.parent == tmp_path and not key.parent.exists()


def test_a_power_cut_leaves_the_old_or_the_new(tmp_path, monkeypatch):
    """What is renamed is flushed first, then the names: the folder, and folders above it that are new."""
    events, fsync, replace, rename = [], os.fsync, os.replace, os.rename

    def name(path):
        path = Path(path)
        return "part" if ".part" in path.name else str(path.relative_to(tmp_path))
    monkeypatch.setattr(os, "fsync", lambda file: (events.append(name(os.readlink(f"/proc/self/fd/{file}"))),
                                                   fsync(file)))
    for rename_name, function in (("replace", replace), ("rename", rename)):
        def renamed(old, new, function=function):
            function(old, new)
            events.append(f"-> {name(new)}")
        monkeypatch.setattr(os, rename_name, renamed)
    files.write_text(tmp_path / "a/b/c.txt", "x")
    assert events == ["a", ".", "part", "-> a/b/c.txt", "a/b"]
    events.clear()
    with files.atomic_folder(tmp_path / "d") as part:
        (part / "e").write_text("x")
    assert events[1:] == ["part", "-> d", "."] and events[0].endswith("e")


@pytest.mark.parametrize("refused", [errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES])
def test_file_systems_that_flush_no_folders(tmp_path, monkeypatch, refused):
    fsync = os.fsync

    def only_files(file):
        if os.path.isdir(f"/proc/self/fd/{file}"):
            raise OSError(refused, "no")
        fsync(file)
    monkeypatch.setattr(os, "fsync", only_files)
    files.write_text(tmp_path / "a/b", "x")
    assert (tmp_path / "a/b").read_text() == "x"
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(errno.EIO, "disk")))
    with pytest.raises(OSError, match="disk"):
        files.write_text(tmp_path / "a/b", "y")
    assert (tmp_path / "a/b").read_text() == "x"


def test_a_part_of_another_container_or_user_is_left_for_a_day(tmp_path, monkeypatch):
    """Containers may share a host's name, and see none of the others' processes."""
    part = files.temporary_path(tmp_path / "a.txt")
    other = part.with_name(part.name.replace(files.processes(), f"{socket.gethostname()}+1").replace(
        f"-{os.getpid()}-", f"-{2**22 + 1}-"))
    gone = part.with_name(part.name.replace(f"-{os.getpid()}-", f"-{2**22 + 1}-"))
    for path in (other, gone):
        path.write_text("x")
    monkeypatch.setattr(os, "geteuid", lambda: gone.stat().st_uid + 1)
    files.remove_abandoned(tmp_path)
    assert other.exists() and gone.exists()
    monkeypatch.undo()
    files.remove_abandoned(tmp_path)
    assert other.exists() and not gone.exists()


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_lock_that_is_something_else_is_neither_emptied_nor_waited_for(tmp_path, kind):
    (tmp_path / "precious").write_text("whole")
    if kind == "link":
        (tmp_path / "lock").symlink_to(tmp_path / "precious")
        with pytest.raises(ConfigError, match="lock is a link"), files.locked(tmp_path):
            pass
    else:
        os.mkfifo(tmp_path / "lock")
        with files.locked(tmp_path):
            pass
    assert (tmp_path / "precious").read_text() == "whole"


def test_a_large_file_is_read_once_until_it_is_written_again(tmp_path, monkeypatch):
    read, sha256 = [], files.file_sha256
    monkeypatch.setattr(files, "REMEMBERED", 5)
    monkeypatch.setattr(files, "file_sha256", lambda path: (read.append(Path(path).name), sha256(path))[1])
    for name, text in (("large", "12345"), ("small", "1234")):
        files.write_text(tmp_path / name, text)
        for _ in range(3):
            assert files.large_file_sha256(tmp_path / name) == sha256(tmp_path / name)
    assert read == ["large", "small", "small", "small"]
    files.write_text(tmp_path / "large", "54321")
    assert files.large_file_sha256(tmp_path / "large") == sha256(tmp_path / "large")
