"""EgoNLQ's features after an error, changed questions, or kill -9: what is kept and what is made again."""
import json
import os
import signal
import time

import numpy as np
import pytest
from mq_features import extracted, same
from nlq_site import FUSED, questions_of, save_nlq, site_with_questions

import egokit
from egokit import tasks
from egokit.data.video import open_video
from egokit.jobs import status
from egokit.runs.run_folder import Run
from egokit.tasks import nlq_features


@pytest.fixture
def nlq(checkpoint, resolve, copied, tmp_path):
    return site_with_questions(resolve, copied, tmp_path)


def times_of(run):
    """Return when each file of features and words was written."""
    return {str(path.relative_to(run)): path.stat().st_mtime_ns for path in run.glob("[fq]*s/[!m]*")}


def all_words(run, manifest):
    """Return the words of all clips, {clip_uid: (sum of L, D)}."""
    return {clip["clip_uid"]: np.concatenate(nlq_features.stored_words(Run(run), clip)) for clip in manifest["clips"]}


def test_clips_whose_questions_have_changed_are_made_again(nlq, tmp_path):
    """One question gets another text, one is added, one clip gets other times; the others' files stay."""
    config, run = nlq.config(FUSED), tmp_path / "run"
    _, manifest = extracted(config, run)
    before, document = times_of(run), nlq.documents["train"]
    reworded, added, moved = [clip for video in document["videos"] for clip in video["clips"]][:3]
    reworded["annotations"][0]["language_queries"][0]["query"] = "Where is the blue plate?"
    added["annotations"] += questions_of(77)[:1]
    moved["video_start_sec"] += 1.5
    save_nlq(nlq.root, "train", document)
    features, manifest = extracted(config, run)
    fresh, expected = extracted(config, tmp_path / "fresh")
    assert same(features, fresh) and manifest == expected and len(features[added["clip_uid"]]) == 5
    assert same(all_words(run, manifest), all_words(tmp_path / "fresh", manifest))
    after, changed = times_of(run), {clip["clip_uid"] for clip in (reworded, added, moved)}
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {
        name for uid in changed for name in (f"features/{uid}.pt", f"questions/{uid}.npy")}
    event, = [event for event in Run(run).read_log() if event["kind"] == "clips"]
    assert event["changed"] == sorted(changed) and event["unlisted"] == []
    # words that are gone are made again, with the features
    (run / f"questions/{reworded['clip_uid']}.npy").unlink()
    again, manifest = extracted(config, run)
    assert same(again, features) and same(all_words(run, manifest), all_words(tmp_path / "fresh", manifest))


def test_one_video_that_cannot_be_read_ends_no_other(nlq, tmp_path):
    config, run = nlq.config(FUSED), tmp_path / "run"
    clips = tasks.make(config).clips()
    broken = nlq.root / "Ego4D_256" / f"{clips[0]['video_uid']}.mp4"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:200])
    lost = {clip["clip_uid"] for clip in clips if clip["video_uid"] == clips[0]["video_uid"]}
    with pytest.raises(open_video.VideoError, match=rf"{len(lost)} of {len(clips)} clips have no features"):
        extracted(config, run)
    written = times_of(run)
    assert {path.stem for path in run.glob("features/*.pt")} == {clip["clip_uid"] for clip in clips} - lost
    assert not (run / "features/manifest.json").exists()
    broken.write_bytes(whole)
    features, _ = extracted(config, run)
    fresh, _ = extracted(config, tmp_path / "fresh")
    assert same(features, fresh)
    kept = {name: at for name, at in times_of(run).items() if not any(uid in name for uid in lost)}
    assert kept == {name: at for name, at in written.items() if not any(uid in name for uid in lost)}


@pytest.mark.slow
def test_killed_and_shared_out_the_files_are_the_same(nlq, tmp_path):
    """Two processes, killed with kill -9, go on and write what one process writes."""
    config = nlq.config(f"{FUSED} evaluate.batch_size=1 launch.tasks_per_node=2 task.feature_format=npy")
    run = Run(tmp_path / "two")
    handle = egokit.submit(config, run, "extract", "extract")
    deadline = time.monotonic() + 120
    while not (before := {file.name: file.stat().st_mtime_ns for file in run.path.glob("features/[!.]*.npy")}):
        assert time.monotonic() < deadline and handle.alive()
        time.sleep(0.001)
    for process in status.processes(handle.folder):
        os.kill(process, signal.SIGKILL)
    while handle.alive():
        time.sleep(0.05)
    listed = tasks.make(config).clips()
    assert len([*run.path.glob("features/[!.]*.npy")]) < len(listed)
    metrics = egokit.submit(config, run, "extract", "extract").wait(progress=False)
    expected, manifest = extracted(config, tmp_path / "one")
    assert json.loads((run.path / "features/manifest.json").read_text()) == manifest
    assert same(expected, {uid: np.load(run.path / f"features/{uid}.npy") for uid in expected})
    assert same(all_words(tmp_path / "one", manifest), all_words(run.path, manifest))
    assert all((run.path / "features" / name).stat().st_mtime_ns == at for name, at in before.items())
    assert {file.name for file in (run.path / "questions").iterdir()} == {f"{uid}.npy" for uid in expected}
    assert metrics["processes"] == 2 and metrics["questions"] == sum(len(clip["questions"]) for clip in listed)
