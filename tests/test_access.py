"""Rights: what is written honours the umask, and what may not be read is never called missing."""
import contextlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

import numpy as np
import pytest

from egokit import cli, tasks
from egokit.config.access import exists
from egokit.config.resolve import read_yaml
from egokit.data import annotation_json, annotation_tables, relevancy
from egokit.data.egoclip_table import EgoClipTable
from egokit.model import checkpoints
from egokit.model.text_encoder import Tokenizer
from egokit.runs import files
from egokit.tasks.moments import mq_annotations, mq_results, nlq_annotations, nlq_results


@contextlib.contextmanager
def someone_else():
    """Act as a user without special rights; root may read everything."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.fixture
def shared():
    """A folder that everybody may enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp(prefix="egokit-shared-"))
    folder.chmod(0o755)
    yield folder
    for path in (folder, folder / "data", *folder.rglob("*")):
        if path.exists():
            path.chmod(0o755)
    shutil.rmtree(folder)


def test_everything_that_is_made_honours_the_umask(project, checkpoint):
    umask = os.umask(0)
    os.umask(umask)
    EgoClipTable(project / "outputs/toy/egoclip.csv", warn=False)  # makes its cache
    made = [path for path in (project / "outputs").rglob("*") if path.is_file() and not path.is_symlink()]
    suffixes = {path.suffix for path in made}
    assert {".safetensors", ".mp4", ".csv", ".json", ".pt", ".cache"} <= suffixes
    private = [str(path) for path in made if stat.S_IMODE(path.stat().st_mode) & 0o666 != 0o666 & ~umask]
    assert not private


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_a_library_that_writes_privately_does_not_decide(tmp_path, umask):
    before = os.umask(umask)
    try:
        with files.atomic_path(tmp_path / "file") as temporary:
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
        with files.atomic_folder(tmp_path / "folder") as temporary:
            os.close(os.open(temporary / "inner", os.O_CREAT | os.O_WRONLY, 0o600))
        from safetensors.numpy import save_file
        with files.atomic_path(tmp_path / "x.safetensors") as temporary:
            save_file({"a": np.zeros(2)}, temporary)
    finally:
        os.umask(before)
    for name in ("file", "folder/inner", "x.safetensors"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask, name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "x.safetensors"]


READERS = {
    "relevancy.safetensors": relevancy.read, "relevancy.pkl": relevancy.load_relevancy, "relevancy.npy": relevancy.read,
    "checked.safetensors": lambda path: relevancy.check(path, (2, 2)), "model.pth": checkpoints.find,
    "read.safetensors": checkpoints.read, "egomcq.json": annotation_json.read_egomcq,
    "moments_val.json": annotation_json.read_moments, "prepared.json": annotation_json.read_manifest,
    "moments_train.json": mq_annotations.read_clips, "nlq_val.json": nlq_annotations.read_clips,
    "detections.json": mq_results.read_results, "answers.json": nlq_results.read_predictions,
    "egoclip.csv": EgoClipTable, "classes.txt": annotation_tables.charades_classes,
    "metadata_train.csv": annotation_tables.read_metadata,
    "recipe.yaml": lambda path: read_yaml(str(path), path, "recipe"),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("closed", ["file", "folder"])
def test_a_file_that_may_not_be_read_is_not_missing(shared, name, closed):
    path = shared / "data" / name
    path.parent.mkdir()
    path.write_text("x")
    target = path if closed == "file" else path.parent
    target.chmod(0)
    with someone_else(), pytest.raises(PermissionError) as raised:
        READERS[name](path)
    message = str(raised.value)
    command = f"chmod a+r{'x' * target.is_dir()} {target}"
    assert str(path) in message and "mode 0000, owner " in message and command in message
    assert "missing" not in message and "download" not in message


def test_a_tokenizer_and_a_required_file_that_may_not_be_read(shared, project, resolve):
    shutil.copytree(project / "outputs/toy/tokenizer", shared / "tokenizer")
    Tokenizer(str(shared / "tokenizer"))  # what is imported at the first use may lie in a folder of this user's own
    (shared / "tokenizer/vocab.json").chmod(0)
    with someone_else(), pytest.raises(PermissionError, match=r"vocab\.json may not be read"):
        Tokenizer(str(shared / "tokenizer"))
    task = tasks.find("egomcq")(resolve("toy/egomcq"))
    task.root = shared
    (shared / "egomcq.json").write_text("{}")
    (shared / "egomcq.json").chmod(0o200)
    with someone_else(), pytest.raises(PermissionError, match=r"egomcq\.json may not be read by this user \(mode 0200"):
        task.tables()


def test_what_is_there_and_what_is_not(shared):
    (shared / "file").write_text("")
    (shared / "dangling").symlink_to(shared / "nothing")
    with someone_else():
        assert exists(shared) and exists(shared / "file")
        assert not any(exists(shared / name) for name in ("nothing", "file/below", "dangling"))
    (shared / "file").chmod(0o300)
    with someone_else(), pytest.raises(PermissionError, match="mode 0300"):
        exists(shared / "file")


def test_a_command_says_whose_a_file_is(shared, project, monkeypatch, capsys):
    (shared / "metrics.json").write_text("{}")
    monkeypatch.setattr(cli.commands, "runs", lambda arguments: (shared / "metrics.json").read_text())
    cli.main(["runs"])
    (shared / "metrics.json").chmod(0)
    with someone_else(), pytest.raises(SystemExit, match="2"):
        cli.main(["runs"])
    assert "metrics.json may not be read by this user (mode 0000, owner " in capsys.readouterr().err
