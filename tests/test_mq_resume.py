"""EgoMQ features after an error, a changed list of clips, or kill -9: what is kept and what is made again."""
import json
import os
import signal
import time

import numpy as np
import pytest
from mq_features import RECIPE, extracted, same

import egokit
from egokit import tasks
from egokit.data.video import open_video
from egokit.jobs import status
from egokit.runs.files import processes
from egokit.runs.run_folder import Run
from egokit.tasks import clip_features


def test_clips_that_cannot_be_read_are_named_and_the_others_written(checkpoint, resolve, copied, tmp_path):
    """A missing file, a clip that ends after its video, one too short: then repaired."""
    on_copy, root = copied
    config = on_copy(resolve(RECIPE, "data.limit=0", run="random"))
    path = root / "moments_train.json"
    whole = path.read_text()
    document = json.loads(whole)
    late, short = document["videos"][0]["clips"][:2]
    late["video_end_sec"] += 100
    short["video_end_sec"] = short["video_start_sec"] + 0.1
    path.write_text(json.dumps(document))
    lost = root / "Ego4D_256" / f"{json.loads((root / 'moments_val.json').read_text())['videos'][0]['video_uid']}.mp4"
    lost.rename(tmp_path / "away.mp4")
    expected = r"\d of \d+ clips have no features.*the others are written"
    with pytest.raises(open_video.VideoError, match=expected) as raised:
        extracted(config, tmp_path)
    for message in (f"video {lost} is missing", f"clip {late['clip_uid']} ends at ", "but the video ends at ",
                 f"clip {short['clip_uid']} of 0.10 s is too short"):
        assert message in str(raised.value)
    bad = [event["said"] for event in Run(tmp_path).read_log() if event["kind"] == "bad"]
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "features").glob("*.pt")}
    listed = len(tasks.make(config).clips())
    assert len(written) == listed - len(bad) > 0 and not (tmp_path / "features/manifest.json").exists()
    (tmp_path / "away.mp4").rename(lost)
    path.write_text(whole)
    features, _ = extracted(config, tmp_path)
    assert len(features) == listed and all(file.stat().st_mtime_ns == at for file, at in written.items())


def test_features_of_a_clip_that_has_changed_since_are_made_again(checkpoint, resolve, copied, tmp_path):
    """The list is edited after an interruption; features of unchanged clips are kept.

    One clip gets other times, one another video, one is removed, and one is added.
    """
    on_copy, root = copied
    config = on_copy(resolve(RECIPE, "data.limit=0", run="random"))
    path, folder = root / "moments_train.json", tmp_path / "run/features"
    document = json.loads(path.read_text())
    first, second = document["videos"][0], document["videos"][1]
    moved, removed, traded = first["clips"][0], first["clips"][1], second["clips"][0]
    lost = root / "Ego4D_256" / f"{json.loads((root / 'moments_val.json').read_text())['videos'][0]['video_uid']}.mp4"
    lost.rename(tmp_path / "away.mp4")
    with pytest.raises(open_video.VideoError, match=r"clips have no features"):
        extracted(config, tmp_path / "run")
    (tmp_path / "away.mp4").rename(lost)
    before = {file.stem: file.stat().st_mtime_ns for file in folder.glob("*.pt")}
    assert {moved["clip_uid"], removed["clip_uid"], traded["clip_uid"]} < before.keys()
    moved["video_start_sec"] += 1.5
    first["clips"].remove(removed)
    second["clips"].remove(traded)
    first["clips"] += [traded, dict(removed, clip_uid="added")]
    path.write_text(json.dumps(document))
    features, manifest = extracted(config, tmp_path / "run")
    fresh, _ = extracted(config, tmp_path / "fresh")
    assert same(features, fresh) and "added" in features and removed["clip_uid"] not in features
    after = {file.stem: file.stat().st_mtime_ns for file in folder.glob("*.pt")}
    assert {uid for uid in before if after[uid] != before[uid]} == {moved["clip_uid"], traded["clip_uid"]}
    assert manifest["unlisted"] == [removed["clip_uid"]]
    event, = [event for event in Run(tmp_path / "run").read_log() if event["kind"] == "clips"]
    assert event["changed"] == sorted([moved["clip_uid"], traded["clip_uid"]])
    assert event["unlisted"] == [removed["clip_uid"]]
    # listed again, with another end
    removed["video_end_sec"] -= 1.0
    first["clips"] += [removed]
    path.write_text(json.dumps(document))
    again, manifest = extracted(config, tmp_path / "run")
    assert manifest["unlisted"] == [] and len(again[removed["clip_uid"]]) < len(again["added"])
    assert same(features, {uid: again[uid] for uid in features})


@pytest.mark.slow
def test_killed_and_shared_out_the_files_are_the_same(checkpoint, resolve, tmp_path):
    """Two processes, killed with kill -9, go on and write what one process writes."""
    config = resolve(RECIPE, "data.limit=0 evaluate.batch_size=1 launch.tasks_per_node=2 task.features= "
                             "task.feature_clips=moments_train.json,moments_val.json,moments_test_unannotated.json",
                     run="random")  # none of split "val": nothing is scored
    run = Run(tmp_path / "two")
    handle = egokit.submit(config, run, "extract", "features")
    deadline = time.monotonic() + 120
    while not (before := {file.name: file.stat().st_mtime_ns for file in run.path.glob("features/[!.]*.pt")}):
        assert time.monotonic() < deadline and handle.alive()
        time.sleep(0.001)
    for process in status.processes(handle.folder):
        os.kill(process, signal.SIGKILL)
    while handle.alive():
        time.sleep(0.05)
    assert len([*run.path.glob("features/[!.]*.pt")]) < len(tasks.make(config).clips())
    # as if a process had been killed while it wrote a file
    (run.path / "features" / f".left.{processes()}-999999999-00000000.part.pt").touch()
    changed = resolve(RECIPE, "data.limit=0 task.features_per_second=1 task.features= "
                              "task.feature_clips=moments_train.json,moments_val.json,moments_test_unannotated.json",
                      run="random")
    with pytest.raises(egokit.ConfigError, match=r"other parameters \(task.features_per_second"):
        egokit.submit(changed, run, "extract", "features")
    metrics = egokit.submit(config, run, "extract", "features").wait(progress=False)
    expected, manifest = extracted(config, tmp_path / "one")
    features = {uid: np.array(clip_features.stored(run.path / f"features/{uid}.pt")) for uid in expected}
    assert same(expected, features)
    assert json.loads((run.path / "features/manifest.json").read_text()) == manifest
    names = {file.name for file in (run.path / "features").iterdir()}
    assert names == {"manifest.json", *(f"{uid}.pt" for uid in expected)}
    assert all((run.path / "features" / name).stat().st_mtime_ns == at for name, at in before.items())
    assert metrics["samples"] == metrics["expected"] == len(expected)
    assert metrics["frames"] == 4 and metrics["seconds"] > 0
    assert metrics["data"].keys() == {f"moments_{split}.json" for split in ("train", "val", "test_unannotated")}
    assert metrics["processes"] == 2 and metrics["features"] == sum(map(len, expected.values()))
    # steps are clips, of all processes and attempts
    assert handle.progress()["step"] == handle.progress()["steps"] == len(expected)
