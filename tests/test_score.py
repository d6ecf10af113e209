"""`egokit score`: the numbers of anybody's file, what does not count, mistakes in one line, a quick start."""
import json
import subprocess
import sys

import pytest
from conftest import ROOT

from egokit import cli
from egokit.tasks.moments import mq_results, nlq_results


def label(start: float, stop: float, name: str) -> dict:
    return {"start_time": start, "end_time": stop, "label": name, "primary": True}


def asked(query: str | None, start: float, stop: float) -> dict:
    return {"query": query, "clip_start_sec": start, "clip_end_sec": stop}


@pytest.fixture
def root(tmp_path):
    """A folder with the annotations of two clips for each task; a moment and an answer have length 0."""
    def video(clips: list) -> str:
        return json.dumps({"videos": [{"video_uid": "v", "split": "val", "clips": [
            {"clip_uid": f"clip-{number}", "video_start_sec": 0, "video_end_sec": 100, "annotations": annotations}
            for number, annotations in enumerate(clips)]}]})
    (tmp_path / "moments_val.json").write_text(video([
        [{"labels": [label(0, 10, "a"), label(20, 30, "b"), label(50, 60, "a")]}], [{"labels": [label(1, 2.5, "b")]}]]))
    (tmp_path / "nlq_val.json").write_text(video([
        [{"annotation_uid": "x", "language_queries": [asked("Where?", 0, 10), asked(None, 0, 1), asked("Who?", 5, 5)]}],
        [{"annotation_uid": "y", "language_queries": [asked("What?", 30, 40), asked("Why?", 3, 4)]}]]))
    return tmp_path


def row(start: float, stop: float, name: str, score: float) -> dict:
    return {"label": name, "score": score, "segment": [start, stop]}


TRUTH = {"clip-0": [row(0, 10, "a", 0.9), row(20, 30, "b", 0.8), row(50, 60, "a", 0.7)],
         "clip-1": [row(1, 2.5, "b", 0.6)]}


@pytest.fixture
def score(root, capsys):
    """A function: task, document, further arguments -> what the command prints."""
    def printed(task, document, *more, name="mine.json"):
        (root / name).write_text(json.dumps(document))
        cli.main(["score", task, str(root / name), "--root", str(root), *more])
        return capsys.readouterr().out
    return printed


def numbers(text: str, name: str) -> list[list[float]]:
    """The numbers of every line that begins with a name."""
    return [[float(part) for part in line.removeprefix(name).split()] for line in text.splitlines()
            if line.startswith(f"{name} ")]


def test_the_ground_truth_scores_exactly_100(score):
    text = score("mq", mq_results.submission({"results": TRUTH}, {"results": TRUTH}))
    assert numbers(text, "mAP") == [[100] * 6]
    assert [numbers(text, f"R@{k}x") for k in range(1, 6)] == [[[100] * 3]] * 5
    assert "4 moments" in text.splitlines()[0] and "count" not in text
    whole = json.loads(score("mq", mq_results.submission({"results": TRUTH}, {"results": TRUTH}), "--json"))
    assert whole["detections"]["ap"] == {"a": [100] * 5, "b": [100] * 5}
    assert whole["retrievals"]["recall"]["0.5"]["R@1x"] == 100 and whole["detections"]["average_map"] == 100


def test_what_does_not_count_is_said(score, root):
    annotations = json.loads((root / "moments_val.json").read_text())
    clips = annotations["videos"][0]["clips"]
    clips[0]["annotations"][0]["labels"].append(label(70, 70, "a"))
    clips.append(clips[0] | {"clip_uid": "bare", "annotations": []})
    (root / "moments_val.json").write_text(json.dumps(annotations))
    results = {"clip-0": [*TRUTH["clip-0"], row(1, 2, "c", 1.0)], "bare": [], "elsewhere": []}
    text = score("mq", {"results": results})
    assert numbers(text, "mAP") == [[pytest.approx((200 / 3 + 50) / 2, abs=0.01)] * 6] and "R@1x" not in text
    for note in ("1 moments of length 0 can never be found", "1 of 2 clips have no detections, and find nothing",
                 "1 clips with detections are not in the annotations", "1 clips with detections have no moments",
                 "1 of 4 detections are of classes that the split does not have"):
        assert note in text
    text = score("mq", {"results": results}, name="retreival_postNMS.json")
    assert numbers(text, "R@1x") == [[60] * 3] and not numbers(text, "mAP")
    assert "1 of 2 clips have no retrievals" in text and "the file has no detections, and so no mAP" in text
    text = score("mq", mq_results.submission({"results": TRUTH}, {"results": {}}))  # a half that was left empty
    assert "the file has no retrievals, and so no recall" in text and numbers(text, "mAP") == [[83.33] * 6]  # not 70–70


def test_both_ways_to_count_unanswered_questions(score):
    predictions = {("clip-0", "x", 0): [[50, 60], [0, 4]], ("clip-1", "y", 0): [[30, 40]], ("no", "z", 0): [[0, 1]]}
    text = score("nlq", nlq_results.submission(predictions))
    assert numbers(text, "IoU .3") == [[25, 50, 50], [50, 100, 100]]
    assert numbers(text, "IoU .5") == [[25, 25, 25], [50, 50, 50]]
    assert numbers(text, "mean R@1") == [[25], [50]] and numbers(text, "mIoU of the first") == [[25], [50]]
    for note in ("4 questions", "2 questions are unanswered", "1 predictions are for questions that are not in the",
                 "1 answers have length 0", "1 questions of the annotations have no text"):
        assert note in text
    whole = json.loads(score("nlq", nlq_results.submission(predictions), "--json"))
    assert whole["recall"]["0.3"] == {"R@1": 25, "R@3": 50, "R@5": 50} and whole["original"]["mean_r1"] == 50
    assert whole["recall"]["0.01"]["R@1"] == 25 and whole["unanswered"] == 2 and whole["skipped"] == 1


@pytest.mark.parametrize("arguments, message", [
    (["mq", "none.json"], "none.json is missing; name a result file that is there"),
    (["nlq", "."], ". is a folder; name a result file in it"),
    (["mq", "ours.json", "--split", "train"], "moments_train.json is missing; docs/data.md"),
    (["mq", "moments_val.json"], "expected {\"results\""), (["nlq", "ours.json"], "expected {\"results\": [{"),
    (["mq", "other.json"], "none of its 1 clips is in the annotations, such as 'x'"),
    (["nlq", "other_nlq.json"], "nlq_val.json: none of the 1 predictions is for a question")])
def test_mistakes_are_one_line_and_exit_code_2(root, monkeypatch, capsys, arguments, message):
    (root / "ours.json").write_text(json.dumps({"results": TRUTH}))
    (root / "other.json").write_text(json.dumps({"results": {"x": []}}))
    (root / "other_nlq.json").write_text(json.dumps(nlq_results.submission({("x", "y", 0): []})))
    monkeypatch.chdir(root)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["score", *arguments, "--root", str(root)])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and len(error.splitlines()) == 1


def test_a_split_without_moments_is_named(root, score):
    (root / "moments_test_unannotated.json").write_text((root / "moments_val.json").read_text())
    with pytest.raises(SystemExit, match="2"):
        score("mq", {"results": TRUTH}, "--split", "test_unannotated")


def test_the_root_is_a_sites(root, capsys):
    (root / "ours.json").write_text(json.dumps({"results": TRUTH}))
    (root / "here.yaml").write_text(f"site:\n  root: {root}\n")
    cli.main(["score", "mq", str(root / "ours.json"), "--site", str(root / "here.yaml")])
    assert f"against {root / 'moments_val.json'}" in capsys.readouterr().out
    (root / "here.yaml").write_text("site:\n  toy: false\n")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["score", "mq", str(root / "ours.json"), "--site", str(root / "here.yaml")])
    assert "site.root is None; set it to the folder of the data, or give --root" in capsys.readouterr().err


def test_it_starts_at_once(root):
    """Neither torch nor pandas is imported, which take seconds."""
    (root / "ours.json").write_text(json.dumps({"results": TRUTH}))
    code = ("import sys, time; began = time.process_time(); from egokit import cli; cli.main(sys.argv[1:]); "
            "assert time.process_time() - began < 1; heavy = {'torch', 'pandas', 'matplotlib', 'transformers'}; "
            "assert not heavy & set(sys.modules), heavy & set(sys.modules)")
    for site in ([], ["--root", str(root)]):
        (root / "here.yaml").write_text(f"site:\n  root: {root}\n")
        done = subprocess.run([sys.executable, "-c", code, "score", "mq", str(root / "ours.json"), "--site",
                               str(root / "here.yaml"), *site], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and "mAP" in done.stdout, done.stderr
