"""Names in others' files that become paths: each reader refuses hostile ones, by file and row, before it writes."""
import contextlib
import json
import os
import re
import sys
import time
import unicodedata

import pytest
from annotation_files import (
    CLIPS,
    EGOCLIP,
    EGOMCQ,
    METADATA,
    MOMENTS,
    TRAIN_CLIPS,
    VIDEOS,
    change,
    edited,
    refused,
    user,
)
from search_folder import searching, video

from egokit import cli, prep, tasks, viz
from egokit.config import names
from egokit.data import egoclip_table
from egokit.data.annotation_json import read_manifest
from egokit.data.site_checks import find_near
from egokit.data.video import clips
from egokit.jobs import status
from egokit.jobs.runs_table import JobRow, NotebookHandle, format_table
from egokit.prep.source import Unusable, list_videos
from egokit.runs.run_folder import Run
from egokit.search import index_task
from egokit.tasks import clip_features

OUTSIDE = ["/etc/passwd", "../other", "..", ".", "a/../../b", "a\\b", "./a", "a/"]
HOSTILE = [*OUTSIDE, "", " ", ".hidden", "a\0b", "a\nb", "a\rb", "\x1b[2Ja", "a\x9bb", "a\u202eb", "a\u2066b",
           "a\u2028b", "a\ud800b", "a ", " a", "x" * 161, "ü" * 81]
REAL = ["9c59e912-2340-4400-b2df-7db3d4066723", "P01_101", "P01", "46GP8EGO", "ABC12EGO", "vidéo b", "ビデオ", "007",
        "GX010042 (1)", "a[1]*?", "50%", "a:b", "x" * 160, "ü" * 80, "a..b", "سلام\u200cها",
        "-abc123XYZ_0", "\u200eWhatsApp\u200f", "sanft\u00ad", "a\u200bb"]
TABLES = [(CLIPS, "participant_id"), (CLIPS, "video_id"), (TRAIN_CLIPS, "video_id"), (VIDEOS, "id"), (METADATA, "id")]


@pytest.fixture
def use(resolve, copied):
    return user(resolve, copied)


def sees(message: str) -> bool:
    """Whether nothing in a message can steer a terminal."""
    return names.printable(message) == message


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_hostile_name_is_none(name):
    with pytest.raises(ValueError, match="expected text that can name a file"):
        names.check_name(name)


@pytest.mark.parametrize("name", REAL, ids=ascii)
def test_a_real_name_is_one(name, tmp_path):
    assert names.check_name(name) == name
    (tmp_path / f"{name}.json").write_text("{}")
    assert os.listdir(tmp_path) == [f"{name}.json"]


@pytest.mark.parametrize("file, column", TABLES)
@pytest.mark.parametrize("name", ["../other", "/etc/passwd", "a\x1b]0;b", "", ".a", "x" * 300], ids=ascii)
def test_a_table_names_the_line(use, file, column, name):
    do, root = use
    edited(root / file, 2, "\t" if file == METADATA else ",", **{column: name})
    message = refused(lambda: do(file), root / file, "line 4", f"{column} is {name!r:.20}", "expected text")
    assert sees(message) and len(message) < 500


@pytest.mark.parametrize("name", [name for name in HOSTILE if name and not {*name} & {*"\r\n"}], ids=ascii)
def test_egoclip_names_the_row(use, name):
    do, root = use
    path, raw = root / EGOCLIP, name.encode(errors="surrogatepass")
    lines = path.read_bytes().split(b"\n")
    lines[3] = b"\t".join([*lines[3].split(b"\t")[:1], raw, *lines[3].split(b"\t")[2:]])
    path.write_bytes(b"\n".join(lines))
    if "\ud800" in name:  # not UTF-8: the row is malformed
        assert not any("a" in uid and "b" in uid and len(uid) < 5 for uid in do(EGOCLIP).table.videos)
    else:
        message = refused(lambda: do(EGOCLIP), path, "row 2", repr(name)[:40], "expected text")
        assert sees(message)


def test_a_cache_of_others_is_no_way_around(use, monkeypatch):
    do, root = use
    with monkeypatch.context() as patch:
        patch.setattr(egoclip_table.EgoClipTable, "_check_names", lambda self: None)
        text = (root / EGOCLIP).read_text().split("\n")
        text[3] = text[3].replace(text[3].split("\t")[1], "../outside")
        (root / EGOCLIP).write_text("\n".join(text))
        egoclip_table.EgoClipTable(root / EGOCLIP, warn=False)
    assert (root / f".{EGOCLIP}.cache").exists()
    refused(lambda: do(EGOCLIP), root / EGOCLIP, "'../outside'")


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_questions_and_clips_are_named(use, name):
    do, root = use
    document = json.loads((root / EGOMCQ).read_text())
    change(document["3"], "choices.2.video_uid", name)
    (root / EGOMCQ).write_text(json.dumps(document))
    assert sees(refused(lambda: do(EGOMCQ), root / EGOMCQ, "question '3', choice 2", "'video_uid'", repr(name)[:40]))
    whole = json.loads((root / MOMENTS).read_text())
    for field in ("video_uid", "clip_uid"):
        document = json.loads(json.dumps(whole))
        owner = document["videos"][1]
        change(owner if field == "video_uid" else owner["clips"][0], field, name)
        (root / MOMENTS).write_text(json.dumps(document))
        place = "video 1" if field == "video_uid" else f"video {owner['video_uid']}, clip {name!r:.40}"
        assert sees(refused(lambda: do(MOMENTS), root / MOMENTS, place, f"{field!r}", repr(name)[:40]))
    (root / MOMENTS).write_text(json.dumps({"videos": [{"video_uid": name, "duration_sec": 3}]}))
    refused(lambda: do(MOMENTS), root / MOMENTS, "video 0", repr(name)[:40])


def test_a_clip_is_not_called_like_the_manifest(use):
    do, root = use
    document = json.loads((root / MOMENTS).read_text())
    document["videos"][0]["clips"][0]["clip_uid"] = "manifest"
    (root / MOMENTS).write_text(json.dumps(document))
    refused(lambda: do(MOMENTS), root / MOMENTS, "'manifest'", "clip_uid")


def test_nothing_is_written_of_a_list_that_leads_outside(use, resolve, copied, tmp_path):
    on_copy, root = copied
    document = json.loads((root / "moments_val.json").read_text())
    video = document["videos"][0]
    video["clips"] = [video["clips"][0] | {"clip_uid": uid} for uid in (f"{tmp_path}/planted/a", "../../planted/b")]
    (root / "moments_val.json").write_text(json.dumps(document))
    task = tasks.make(on_copy(resolve("toy/egomq", run="random")))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"clip_uid.* can name a file") as caught:
        task.extract(None, Run(tmp_path))
    assert str(root / "moments_val.json") in str(caught.value) and sorted(tmp_path.rglob("*")) == before


def test_links_within_the_data_root_are_the_users_own(use, tmp_path):
    do, root = use
    (root / "CharadesEgo").rename(tmp_path / "elsewhere")
    (root / "CharadesEgo").symlink_to(tmp_path / "elsewhere")
    assert len(do(VIDEOS)) > 0 and do(METADATA)[0, 0]["video"].ndim == 4


def test_a_source_that_can_not_be_named_fails_alone(tmp_path):
    video(tmp_path / "full/good.mp4", 2)
    own = ("-abc123XYZ_0", "a\x1b[2J", "\u200eWhatsApp \u202eb", "sanft\u00ad", " a ", "raw\udcff", "映" * 55)
    for name in (*own, "x" * 245):
        os.link(tmp_path / "full/good.mp4", tmp_path / f"full/{name}.mp4")
    listed = list_videos(tmp_path / "full")
    assert [entry.uid for entry in listed if type(entry) is Unusable] == ["x" * 245]
    manifest = prep.ego4d(tmp_path / "root", 64, 2, source=tmp_path / "full", workers=1, progress=False)
    assert manifest["videos"] == 8 and len(manifest["failed"]) == 1 and "too long" in manifest["failed"][0], manifest
    assert sorted(os.listdir(tmp_path / "root/Ego4D_256")) == sorted(f"{name}.mp4" for name in ("good", *own))
    lines = read_manifest(tmp_path / "root/prepared.json")
    assert sorted(line["status"] for line in lines) == ["failed"] + ["ok"] * 8


@pytest.fixture
def index(project, tmp_path):
    """A task of search, and a function that writes the manifest of its index with some fields of a video changed."""
    video(tmp_path / "videos/inner/one.mp4", 1)
    config, path = searching(tmp_path / "videos", tmp_path)[0](), tmp_path / "run/features/manifest.json"
    path.parent.mkdir(parents=True)

    def changed(**fields) -> None:
        line = {"name": "0123456789abcdef01234567", "video": "inner/one.mp4", "bytes": 1, "modified_ns": 1,
                "clips": 1, "start": 0, "seconds": 1} | fields
        path.write_text(json.dumps({"dimension": 16, "videos": [line], "unreadable": []}))
    return config, path, changed


@pytest.mark.parametrize("fields", [
    {"name": "../../secret"}, {"name": "/etc/x"}, {"name": ""}, {"name": 7}, {"name": None}, {"video": "../secret.mp4"},
    {"video": "inner/../../secret.mp4"}, {"video": "/etc/passwd"}, {"video": "a\0b"}, {"video": ""}, {"video": 7},
    {"video": "inner//one.mp4"}, {"video": ".ssh/id"}], ids=ascii)
def test_an_index_leads_nowhere_else(index, fields):
    config, path, changed = index
    changed()
    assert index_task.read_manifest(path.parent)["videos"] and not index_task.is_up_to_date(config, path.parent)
    changed(**fields)
    for action in (lambda: index_task.Search(config).check_settings(path.parent),
                   lambda: index_task.is_up_to_date(config, path.parent)):
        assert sees(refused(action, path, "videos", repr(next(iter(fields.values())))))


@pytest.mark.parametrize("text", ["[]", "7", '{"videos": 7}', '{"videos": [7]}', '{"videos": [{}]}', "{", "[" * 100_000,
                                  '{"unreadable": [[]]}'])
def test_a_damaged_index_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    refused(lambda: index_task.read_manifest(tmp_path), tmp_path / "manifest.json", "the index is made again")


CLIP = {"clip_uid": "a", "split": "val", "start": 0, "stop": 1}
LISTS = [[CLIP | field] for field in ({"clip_uid": "../../x"}, {"clip_uid": 7}, {"stop": "x"}, {"split": 7})]


@pytest.mark.parametrize("document", [{"format": "/../../x.pt", "clips": [CLIP]}, {"clips": [CLIP]}, [], 7, *(
    {"format": "pt", "clips": clips} for clips in (*LISTS, 7, [], [{}], [{"clip_uid": "a", "split": "", "start": 0}]))])
def test_features_of_others_are_read_in_their_folder(tmp_path, document):
    (tmp_path / "features").mkdir()
    path = tmp_path / "features/manifest.json"
    path.write_text(json.dumps(document))
    refused(lambda: clip_features.read_manifest(tmp_path / "features"), path, "delete it and extract")
    refused(lambda: viz.features(Run(tmp_path)), path)


@pytest.mark.parametrize("start", [1e300, 1e12])
def test_a_time_is_no_name_that_is_too_long(tmp_path, start):
    with pytest.raises(FileNotFoundError, match=r"video .*/\d{1,12}\.mp4 is missing"):
        clips.read_chunked(tmp_path, start, start + 1, None, 600)


def test_a_name_is_no_pattern(tmp_path):
    (tmp_path / "videos/inner/a[1]").mkdir(parents=True)
    (tmp_path / "videos/other/a1").mkdir(parents=True)
    assert find_near(tmp_path / "videos", "a[1]") == tmp_path / "videos/inner/a[1]"
    assert find_near(tmp_path / "videos", "*") is None


def test_names_cost_no_time():
    """EgoClip's 3.8 million rows are of 2,927 videos, each of which is checked once."""
    began = time.perf_counter()
    for number in range(2927):
        names.check_name(f"9c59e912-2340-4400-b2df-{number:012}")
    assert time.perf_counter() - began < 0.5


def test_a_job_of_others_names_its_own_files(tmp_path):
    folder = tmp_path / "06_egomq_features/theirs"
    (folder / "batch/submitit").mkdir(parents=True)
    (folder / "batch/submitit/7_0_log.err").write_text("\x1b[2Jown\rlog")
    (tmp_path / "8_0_log.err").write_text("secret")
    job, content = folder / "batch/job.json", {"cluster": "local", "host": "elsewhere"}
    job.write_text(json.dumps(content | {"job_id": "7"}))
    tail = status.log_tail(folder / "batch")
    assert "own\nlog" in tail and sees(tail.replace("\n", ""))
    for number in (f"../{'../' * 3}8", "*"):
        job.write_text(json.dumps(content | {"job_id": number}))
        refused(lambda: status.log_tail(folder / "batch"), job, "expected a job's number")
    (folder / "batch/spec.json").write_text(json.dumps({"before": {"../../outside": {}}}))
    with pytest.raises(ValueError, match="expected a path in the folder"):
        NotebookHandle(Run(folder)).results()
    assert len(format_table([JobRow("a", "b\nc", "d", "new", "\x1b", *[None] * 3, "", None, "", 0.0)]).split("\n")) == 2


def test_hidden_characters_are_those_of_unicode():
    for code in (*range(0x3000), *range(0xD800, 0xE000), *range(0xFE00, 0x11100), *range(0xE0000, 0xE0200)):
        character = chr(code)
        hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and code not in (0x200C, 0x200D)
        assert (names.printable(character) != character) == hidden, hex(code)


@pytest.mark.parametrize("text, shown", [
    ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"), ("a\rb", r"a\rb"), ("\x9b2J", r"\x9b2J"), ("\u202egpj", r"\u202egpj"),
    ("plain – 日本語 🫖 é", "plain – 日本語 🫖 é"), ("bad-\udcff", "bad-\ufffd"), ("a\nb\t", r"a\nb\t")])
def test_printable(text, shown):
    assert names.printable(text) == shown
    assert names.printable(text, "\n\t") == shown.replace(r"\n", "\n").replace(r"\t", "\t")


ATTACK = "\x1b[2J\x1b]0;owned\x07\x9b2J\r\u202eok"


def test_what_the_command_prints_steers_no_terminal(project, capsys, copied, tmp_path):
    _, root = copied
    (root / "Ego4D").mkdir(exist_ok=True)
    (root / f"Ego4D/{ATTACK}.mp4").write_bytes(b"no video")
    (root / f"Ego4D/{ATTACK}.mkv").write_bytes(b"no video")
    for arguments in (["doctor", "--site", "tiny", "--overrides", f"site.root={root}"],
                      ["prep", "ego4d", "--site", "tiny", "--root", str(root)],
                      ["search", str(tmp_path / ATTACK), "x", "--site", "tiny"],
                      ["runs", "--outputs", str(tmp_path / ATTACK)]):
        with contextlib.suppress(SystemExit):
            cli.main(arguments)
        shown = "".join(capsys.readouterr())
        assert not [c for c in shown if names.is_hidden(c) and c not in "\n\r\t"], arguments
        assert arguments[0] == "runs" or "owned" in shown
        assert not re.search(r"[^\n]\r.*ok", shown), arguments
    print("\x1b[2Jlater", file=sys.stderr)  # as a traceback, which is printed after the command
    assert capsys.readouterr().err == "\\x1b[2Jlater\n"


def test_a_progress_bar_is_drawn_as_ever(capsys):
    from tqdm import tqdm
    stream = names.PrintableStream(sys.stdout)
    for _ in tqdm(range(3), file=stream, desc="\x1b[2Jnext\rover", mininterval=0):
        pass
    drawn = capsys.readouterr().out
    assert "\x1b" not in drawn and drawn.count("\r\\x1b[2Jnext\\rover") >= 2 and "3/3" in drawn
