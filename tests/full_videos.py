"""A folder of four full videos for tests of preparation, its command, and the check that all of it is done."""
import json
import shutil
import sys

from egokit.prep import measure, source, video


def four_videos(project, folder):
    """Make a folder with four small full videos, a, b, c and d; return it."""
    folder.mkdir()
    smallest = sorted((project / "outputs/toy/Ego4D").glob("*.mp4"), key=lambda path: path.stat().st_size)[:4]
    for name, path in zip("abcd", smallest, strict=True):
        shutil.copy(path, folder / f"{name}.mp4")
    return folder


def command(root, folder, *more):
    """Return the shell command that prepares the videos of `folder` into `root`."""
    return [sys.executable, "-m", "egokit.cli", "prep", "ego4d", "--site", "tiny", "--root", str(root),
            "--source", str(folder), *more]


def check_complete(root, folder):
    """Check that all of `folder` is prepared, with a true manifest and no unfinished files."""
    manifest = json.loads((root / "prepared.json").read_text())
    videos = source.list_videos(folder)
    assert (manifest["videos"], manifest["failed"], manifest["pending"]) == (len(videos), [], 0)
    receipts = source.read_receipts(videos, video.PrepSettings(root, 72, 30), check_files=True)
    assert [line["status"] for line in receipts] == ["ok"] * len(videos)
    assert not [path for path in root.rglob("*") if ".part" in path.name]
    for line in manifest["lines"]:
        pieces = [measure.scan(root / "Ego4D_Chunked" / line["uid"] / piece["file"]).facts["frames"]
                  for piece in line["pieces"]]
        resized = measure.scan(root / "Ego4D_256" / line["resized"]["file"]).facts["frames"]
        assert sum(pieces) == resized == line["source"]["frames"]
