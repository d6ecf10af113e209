"""Narrations as questions: what becomes of each row of egoclip.csv, no leak, and a head that is pre-trained on them."""
import itertools
import json
from pathlib import Path

import pytest
import torch
from moment_site import make_nlq

import egokit
from egokit import cli, tasks
from egokit.config.build import ConfigError
from egokit.config.names import check_name
from egokit.data.annotation_json import list_names
from egokit.data.egoclip_table import COLUMNS
from egokit.model import checkpoints
from egokit.model.own_modules import attach, saved_state, split_own
from egokit.prep import narrations
from egokit.prep.narrations import nlq_narrations
from egokit.runs import ledger
from egokit.runs.run_folder import Run
from egokit.tasks.moments import nlq_annotations

BOTH = "task.feature_clips=nlq_*.json,nlq_narrations.json"


def row(video, text, start, stop, seconds="100.0", verbs="[1]"):
    """Return a line of egoclip.csv."""
    return "\t".join(["0", video, str(seconds), "narration_pass_1", "0", str(start), str(start), str(stop), text, verbs,
                      "[2]"])


def write_table(root, *lines):
    root.mkdir(exist_ok=True)
    (root / "egoclip.csv").write_text("".join(f"{line}\n" for line in ("\t".join(COLUMNS), *lines)))


def write_evaluated(root, split, *videos):
    clip = {"video_start_sec": 0, "video_end_sec": 9}
    (root / f"nlq_{split}.json").write_text(json.dumps({"videos": [
        {"video_uid": uid, "clips": [clip | {"clip_uid": f"clip of {uid}"}]} for uid in videos]}))


@pytest.fixture
def config(resolve, copied):
    """config() of an own root, with a table of the given lines."""
    on_copy, root = copied
    for path in root.glob("nlq_*.json"):
        path.unlink()

    def make(*lines):
        write_table(root, *lines)
        return on_copy(resolve())
    return make


def clips_of(config):
    return {clip.clip_uid: clip
            for clip in nlq_annotations.read_clips(f"{config.site.root}/nlq_narrations.json")}


@pytest.mark.parametrize("text, expected", [
    ("#C C picks up the cup", "picks up the cup"), ("#c c Picks up", "Picks up"), ("#C picks", "picks"),
    ("#O A man X walks.", "A man X walks"), ("#C C holds the #unsure", "holds the"), ("#Unsure", ""), ("#C C", ""),
    ("#C C #unsure .", ""), ("# C C  cuts   an onion ", "cuts an onion"), ("#C Cuts", "Cuts"), ("#C C schneidet Brot",
    "schneidet Brot"), ("#cuts", "#cuts"), ("C C cuts", "C C cuts"), ("#C C 切る", "切る"), ("...", "")])
def test_tags_are_taken_off(text, expected):
    assert narrations.clean(text) == expected


def test_every_row_counts_once(config):
    """All that can become of a row, among rows that the table leaves out; the questions are what is expected."""
    made = config(
        row("a", "#C C cuts bread", 1.5, 3.25), row("a", "#O a man X waves", 50, 51.5),
        row("a", "#C C cuts bread", 1.5, 3.25), row("a", "#C C cuts the bread", 1.5, 3.25),          # one repeated
        row("a", "#unsure", 5, 6), row("a", "#C C", 6, 7),                                           # vague
        row("a", "#C C waits", 47, 49), row("a", "#C C sits", 100, 101), row("a", "#C C sits", -2, -1),
        row("a", "#C C stands up", -1, 1), row("a", "#C C leaves", 99, 103),                         # partly in it
        row("a", "#C C blinks", 7, 7), row("a", "#C C blinks", "7.0", "7"), row("a", "#C C winks", 8, 8.00001),
        row("a", "#C C turns", 9, 8), "torn", row("a", "#C C reads", 9, 10, verbs="x"), row("a", "", 9, 10),
        row("unknown", "#C C runs", 1, 2, ""), row("unknown", "#C C runs", 1, 2, "inf"))
    counts = nlq_narrations(made, clip_seconds=48)
    assert counts == {
        "rows": 20, "malformed": 4, "no_length": 3, "in_evaluated_videos": 0, "in_videos_not_taken": 0,
        "without_duration": 2, "outside": 2, "across_clips": 1, "vague": 2, "repeated": 1, "thinned": 0, "questions": 5,
        "evaluated_videos": 0, "videos": 1, "clips": 2}
    assert sum(counts[kind] for kind in narrations.KINDS) == counts["rows"]
    first, last = clips_of(made).values()
    assert (first.video_uid, first.start, first.stop, last.start, last.stop) == ("a", 0, 48, 48, 100)
    assert [(question.query, question.start, question.stop) for question in first.questions] == [
        ("stands up?", 0, 1), ("cuts bread?", 1.5, 3.25), ("cuts the bread?", 1.5, 3.25)]
    assert [(question.query, question.start, question.stop) for question in last.questions] == [
        ("a man x waves?", 2, 3.5), ("leaves?", 51, 52)]
    assert {question.template for question in first.questions} == {"narration"}


@pytest.mark.parametrize("seconds, bounds", [
    (1000, [0, 480, 1000]), (1020, [0, 480, 960, 1020]), (1019.9, [0, 480, 1019.9]), (30, [0, 30]), (480, [0, 480]),
    (500.5, [0, 500.5])])
def test_a_short_rest_joins_the_clip_before_it(seconds, bounds):
    video = narrations.Video("a", seconds, 480.0, 1)
    assert [video.bounds(number) for number in range(video.count)] == list(itertools.pairwise(bounds))


def test_no_video_of_the_evaluation_leaks(config, capsys):
    lines = [row(uid, f"#C C cuts {place}", place, place + 1) for uid in "abcd" for place in range(5)]
    made = config(*lines)
    nlq_narrations(made)
    assert {clip.video_uid for clip in clips_of(made).values()} == set("abcd")
    said, root = capsys.readouterr().out, Path(made.site.root)
    assert all(f"nlq_{split}.json: not under" in said for split in ("val", "test_unannotated"))
    write_evaluated(root, "val", "b", "elsewhere")
    write_evaluated(root, "test_unannotated", "d", "b")
    counts = nlq_narrations(made)
    assert {clip.video_uid for clip in clips_of(made).values()} == {"a", "c"} and not capsys.readouterr().out
    assert (counts["in_evaluated_videos"], counts["evaluated_videos"], counts["questions"]) == (10, 2, 10)
    assert sum(counts[kind] for kind in narrations.KINDS) == counts["rows"] == 20
    # if nothing is left, or a list is damaged, the earlier file stays
    before = clips_of(made)
    write_evaluated(root, "val", *"abcd")
    with pytest.raises(ValueError, match="none of its 20 rows becomes a question"):
        nlq_narrations(made)
    (root / "nlq_val.json").write_text('{"videos": [')
    with pytest.raises(ValueError, match=r"nlq_val\.json: not JSON"):
        nlq_narrations(made)
    assert clips_of(made) == before and not list(root.glob("*.part*"))


def test_fewer_narrations_and_videos(config):
    lines = [row(f"v{number}", f"#C C cuts {place}", place, place + 1) for number in range(6) for place in range(9)]
    made = config(*lines)
    counts = nlq_narrations(made, every=4, videos=3)
    assert (counts["videos"], counts["questions"], counts["thinned"], counts["in_videos_not_taken"]) == (3, 9, 18, 27)
    assert {clip.video_uid for clip in clips_of(made).values()} == {"v0", "v2", "v4"}
    assert [question.query for question in clips_of(made)["narrated-v0-0"].questions] == [
        "cuts 0?", "cuts 4?", "cuts 8?"]


def test_the_duration_is_that_of_most_rows(config):
    made = config(*(row("a", f"#C C cuts {place}", place, place + 1, seconds)
                    for place, seconds in enumerate(("100.0", "9", "100.0", "-5", "1e999", "100.0"))))
    nlq_narrations(made)
    assert [clip.stop for clip in clips_of(made).values()] == [100]


def test_a_video_in_a_folder_and_one_with_a_long_name(config):
    names = ["x/y", "x-y", "é" * 80]
    made = config(*(row(name, "#C C cuts", 1, 2) for name in names))
    nlq_narrations(made)
    assert [clip.video_uid for clip in clips_of(made).values()] == names and all(map(check_name, clips_of(made)))


def test_the_command_on_the_toys_own_table(copied, capsys):
    _, root = copied
    table = ["prep", "nlq-narrations", "--site", "tiny", "--root", str(root)]
    cli.main([*table, "--clip-seconds", "24", "--every", "2"])
    counts = json.loads(capsys.readouterr().out)
    assert sum(counts[kind] for kind in narrations.KINDS) == counts["rows"]
    assert counts["malformed"] == 5 and counts["thinned"] + counts["videos"] >= counts["questions"] > 0
    asked = nlq_annotations.read_questions(root / "nlq_narrations.json")
    assert len(asked) == counts["questions"] and all(question.stop > question.start for question in asked)
    for arguments, message in ((["prep", "ek100", "--every", "2"], "--every and --videos are for narrations only"),
                               ([*table[:2], "--shard", "1/2"], "--shard and --array are for Ego4D only")):
        with pytest.raises(SystemExit) as caught:
            cli.main([*arguments, "--site", "tiny"])
        assert caught.value.code == 2 and message in capsys.readouterr().err
    (root / "egoclip.csv").unlink()
    with pytest.raises(SystemExit):
        cli.main(table)
    assert f"{root}/egoclip.csv is missing" in capsys.readouterr().err


def test_several_lists_of_clips():
    assert list_names("nlq_*.json, nlq_narrations.json") == {
        split: f"nlq_{split}.json" for split in ("train", "val", "test_unannotated", "narrations")
        if split != "narrations"} | {"nlq_narrations": "nlq_narrations.json"}
    with pytest.raises(ConfigError, match=r"moments_train\.json and nlq_train\.json both list .* split 'train'"):
        list_names("moments_*.json,nlq_*.json")
    with pytest.raises(ConfigError, match=r"task\.feature_clips is ','"):
        list_names(",")


def test_extraction_covers_both_lists(checkpoint, resolve, copied):
    on_copy, _ = copied
    made = on_copy(resolve("toy/egonlq_narrations", "data.limit=0", run="random"))
    task = tasks.make(made)
    with pytest.raises(FileNotFoundError, match=r"run 'egokit prep nlq-narrations --site tiny'"):
        task.clips()
    nlq_narrations(made, clip_seconds=24)
    own, listed = set(tasks.make(on_copy(resolve("toy/egonlq", run="random"))).lists()), tasks.make(made).clips()
    assert own == {"train", "val", "test_unannotated"}
    assert {clip["split"] for clip in listed} == own | {"nlq_narrations"}
    narrated = [clip for clip in listed if clip["split"] == "nlq_narrations"]
    assert len(narrated) == len(clips_of(made)) and all(clip["questions"] for clip in narrated)


@pytest.fixture
def site(resolve, tmp_path):
    """(overrides, run) -> config on stored features, where every other clip of train is a narration's, too."""
    torch.set_num_threads(1)
    root = tmp_path / "site"
    folder = make_nlq(root, clips=(12, 4))
    document = json.loads((root / "nlq_train.json").read_text())
    (root / "nlq_narrations.json").write_text(json.dumps({"videos": document["videos"][::2]}))

    def config(overrides="", recipe="toy/egonlq"):
        given = f"data.limit=0 site.root={root} task.features={folder} train.evaluate_epochs=1"
        return resolve(recipe, f"{given} {overrides}")
    return config


def test_what_is_trained_on(site):
    sizes = {lists: len(tasks.make(site(f"{BOTH} task.train_lists={lists}")).dataset("train"))
             for lists in ("train", "nlq_narrations", "train,nlq_narrations")}
    assert sizes == {"train": 48, "nlq_narrations": 24, "train,nlq_narrations": 72}
    assert len(tasks.make(site(recipe="toy/egonlq_narrations")).dataset("train")) == 24
    with pytest.raises(ConfigError, match=r"task.train_lists: 'nlq_narrations' is none of .*'nlq_\*\.json'"):
        tasks.make(site("task.train_lists=nlq_narrations")).dataset("train")


def test_a_head_goes_on_from_narrations_and_the_ledger_says_so(site, project):
    """The ledger names the head that a run started from, and no folder of features."""
    runs = [project / "outputs/08_egonlq" / name for name in ("narr", "tuned")]
    egokit.submit(site("", "toy/egonlq_narrations"), Run(runs[0]), "train", "grounding").wait()
    tuned = site("task.head_init=run:08_egonlq/narr")
    egokit.submit(tuned, Run(runs[1]), "train", "grounding").wait()
    task, best = tasks.make(tuned), runs[0] / "checkpoints/best.pt"
    start, (_, stored) = task.initial_model("train"), split_own(checkpoints.state_dict(checkpoints.read(best), best))
    assert attach(start, task) == [] and stored
    given = saved_state(start)
    assert all(torch.equal(value, given[key]) for key, value in stored.items())
    said = {entry.run: entry.recipe for entry in ledger.read(project / "outputs").entries}
    narr, tuned = said["08_egonlq/narr"], said["08_egonlq/tuned"]
    assert "head started from 08_egonlq/narr" in tuned and not any("head started" in phrase for phrase in narr)
    assert "task.train_lists nlq_narrations, by default train" in narr
    assert not any("train_lists" in phrase for phrase in tuned)
    for phrase in (*narr, *tuned):
        assert not phrase.startswith(("task.features ", "task.head_init", "task.words")), phrase
