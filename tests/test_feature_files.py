"""Stored features of clips: their clock, both formats, and what is said of files that can't be used."""
import json

import numpy as np
import pytest
import torch
from moment_site import RATE, make_mq, make_nlq

from egokit import tasks
from egokit.config.build import ConfigError
from egokit.config.resolve import resolve
from egokit.jobs import run_job
from egokit.model import weights
from egokit.runs.run_folder import Run
from egokit.tasks.feature_files import Clip, FeatureError, FeatureFiles, Grid
from egokit.train.loop import Trainer, TrainingError, train

CPU = torch.device("cpu")
CLIP = Clip("c", "v", 100.0, 110.0)


def folder_of(path, suffix=".npy", manifest=None, **arrays):
    """A folder of features, name -> array; with a manifest of own features if one is given."""
    path.mkdir(exist_ok=True)
    for name, array in arrays.items():
        if suffix == ".npy":
            np.save(path / f"{name}.npy", array)
        else:
            torch.save(torch.from_numpy(np.asarray(array)), path / f"{name}.pt")
    if manifest is not None:
        entries = [{"clip_uid": uid, "split": "val", "start": start, "stop": stop} for uid, start, stop in manifest]
        (path / "manifest.json").write_text(json.dumps(
            {"format": suffix[1:], "features_per_second": 2.0, "clips": entries}))
    return path


def rows(N, E=4):
    """Features of which each holds its number."""
    return np.repeat(np.arange(N, dtype=np.float32)[:, None], E, axis=1)


def test_seconds_become_positions_and_seconds_again():
    grid = Grid(1.875, 0.3)
    seconds = np.array([[0.0, 1.7], [3.3, 900.0]])
    assert grid.positions(seconds)[0] == pytest.approx([-0.3 * 1.875, 1.4 * 1.875])
    assert grid.seconds(grid.positions(seconds)) == pytest.approx(seconds, abs=1e-9)


@pytest.mark.parametrize("suffix", [".npy", ".pt"])
def test_own_features_share_the_clip(tmp_path, suffix):
    """19 windows of a clip of 10 s: feature i covers 10 / 19 s from i · 10 / 19 on, whatever the rate says."""
    files = FeatureFiles(folder_of(tmp_path / "features", suffix, [("c", 100.0, 110.0)], c=rows(19)).parent)
    feature = files.read(CLIP)
    assert feature.dtype == np.float32 and feature.shape == (19, 4) and (files.dimension, files.rate) == (4, 2.0)
    grid = files.grid(CLIP, 19)
    assert grid.seconds([0, 18]) == pytest.approx([5 / 19, 10 - 5 / 19])
    assert grid.positions([0.0, 10.0]) == pytest.approx([-0.5, 18.5])


def test_features_of_others_by_rate_and_window(tmp_path):
    """ActionFormer's clock: a feature each 16 frames at 30 a second, of 32 frames: second t is t · 30 / 16 - 1."""
    files = FeatureFiles(folder_of(tmp_path, c=rows(18)), rate=30 / 16, window=32 / 30)
    assert files.grid(CLIP, 18).positions([0.0, 4.0]) == pytest.approx([-1.0, 6.5])
    end_to_end = FeatureFiles(tmp_path, rate=30 / 16)
    assert end_to_end.grid(CLIP, 18).positions([0.0, 4.0]) == pytest.approx([-0.5, 7.0])
    assert (files.origin, files.manifest) == (str(tmp_path), {})


@pytest.mark.parametrize("start, first, middle", [(100.0, 200, 0.25), (100.2, 200, 0.05), (100.3, 201, 0.45)])
def test_a_clip_is_cut_out_of_its_videos_features(tmp_path, start, first, middle):
    """Two features a second, so that the middle of feature i is 0.25 + i / 2; a clip may begin between two."""
    files = FeatureFiles(folder_of(tmp_path, v=rows(300)), "video", rate=2.0)
    clip = Clip("c", "v", start, 110.0)
    feature = files.read(clip)
    assert (feature[0, 0], feature[-1, 0]) == (first, 219)
    grid = files.grid(clip, len(feature))
    assert grid.seconds([0]) == pytest.approx([middle])
    assert grid.seconds([len(feature) - 1]) == pytest.approx([219 / 2 + 0.25 - start])
    with pytest.raises(FeatureError, match=r"v\.npy is shorter than its clip c: 300 features.*task\.stored_rate"):
        files.read(clip._replace(stop=160.0))


def test_fused_features_have_one_row_of_features_a_question(tmp_path):
    features = make_nlq(tmp_path, (3, 2)) / "features"
    manifest = json.loads((features / "manifest.json").read_text())
    (features / "manifest.json").write_text(json.dumps(manifest | {"kind": "fused"}))
    for path in features.glob("*.npy"):
        np.save(path, np.stack([np.load(path) + place for place in range(4)]).astype(np.float16))
    files = FeatureFiles(features.parent)
    listed = manifest["clips"][0]
    clip = Clip(listed["clip_uid"], listed["video_uid"], listed["start"], listed["stop"])
    assert (files.axes, files.dimension, files.word_dimension) == (3, 16, 16)
    assert np.allclose(files.read(clip, 2) - files.read(clip, 0), 2, atol=0.01)
    assert files.words(clip, 3).tolist() == np.load(features.parent / f"questions/{clip.uid}.npy")[6:8].tolist()
    for question, error, message in ((None, ConfigError, "task.feature_kind=clip"), (4, FeatureError, "4 questions")):
        with pytest.raises(error, match=message):
            files.read(clip, question)
    words = features.parent / "questions" / f"{clip.uid}.npy"
    spoken = np.load(words)
    for array, message in ((spoken[:-1], "expected"), (spoken * np.nan, "NaN"), (spoken[:, :3], "dimension 3")):
        np.save(words, array)
        with pytest.raises(FeatureError, match=rf"{clip.uid}\.npy.*{message}.*extract"):
            FeatureFiles(features.parent).words(clip, 0)
    words.unlink()
    with pytest.raises(FeatureError, match=rf"{clip.uid}\.npy: no words of the clip's question 1.*same annotations"):
        files.words(clip, 1)
    # the single-stage head and the span head see the question's own features
    config = resolve("toy/egonlq", "toy", f"init= site.root={tmp_path} task.features={features.parent} "
                                          "data.max_bad_fraction=0.2")
    samples = tasks.make(config).dataset("test")
    assert np.allclose(samples[0, 1]["video"] - samples[0, 0]["video"], 1, atol=0.01)


@pytest.mark.parametrize("array, message", [
    (None, r"c\.pt is missing: there are no features of clip c; extract.*data\.max_bad_fraction"),
    (b"\x93NUMPY no more", r"c\.npy"),
    (rows(20, 5), r"c\.npy has dimension 5, but others have 4.*keep one model's"),
    (rows(12), r"c\.npy is shorter than its clip, or of another rate: 12 features, expected about 20 .*stored_rate"),
    (rows(40), r"c\.npy is longer than its clip, or of another rate: 40 features, expected about 20 .*stored_rate"),
    (rows(20) * np.nan, r"c\.npy, clip c: 80 NaN and 0 infinite"),
    (np.where(rows(20) > 18, np.inf, rows(20)), r"c\.npy, clip c: 0 NaN and 4 infinite"),
    (rows(20).astype(int), r"c\.npy: int64 of shape \(20, 4\), expected \(features, dimension\) of floats"),
    (rows(20)[None], r"c\.npy: float32 of shape \(1, 20, 4\), expected \(features, dimension\)"),
    (rows(0), r"c\.npy: float32 of shape \(0, 4\), expected"),
])
def test_a_file_that_can_not_be_used_is_named(tmp_path, array, message):
    folder_of(tmp_path, a=rows(20), b=rows(20), d=rows(20))
    if isinstance(array, bytes):
        (tmp_path / "c.npy").write_bytes(array)
    elif array is not None:
        np.save(tmp_path / "c.npy", array)
    files = FeatureFiles(tmp_path, rate=2.0)
    with pytest.raises(FeatureError, match=message):
        files.read(CLIP)
    late = "NaN" in message  # only known when read
    assert [*files.problems([CLIP, Clip("a", "v", 0.0, 10.0)])] == ([] if late else ["c"])


def test_the_first_file_is_not_taken_for_the_others(tmp_path):
    """A damaged, unlike or unfinished file that comes first says nothing of the folder's dimension."""
    folder_of(tmp_path, c=rows(20), d=rows(20), aa=rows(20, 7))
    (tmp_path / "a.npy").write_bytes(b"")
    (tmp_path / ".a.part.npy").write_bytes(b"")
    files = FeatureFiles(tmp_path, rate=2.0)
    assert files.dimension == 4 and len(files.read(CLIP)) == 20 and ".a.part" not in files.paths
    for name in ("c", "d", "aa"):
        (tmp_path / f"{name}.npy").unlink()
    with pytest.raises(FeatureError, match=r"none of 1 files.*a\.npy"):
        FeatureFiles(tmp_path, rate=2.0)


def test_a_folder_that_can_not_be_used_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent does not exist: task\.features.*'extract'"):
        FeatureFiles(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match=r"file is no folder: task\.features"):
        FeatureFiles(tmp_path / "file", rate=2.0)
    empty = folder_of(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"empty holds no features: expected <video>"):
        FeatureFiles(empty, "video", rate=2.0)
    with pytest.raises(ConfigError, match=r"no manifest\.json.*task\.stored_rate"):
        FeatureFiles(folder_of(tmp_path / "none", c=rows(20)))
    folder_of(tmp_path / "none", ".pt", c=rows(20))
    with pytest.raises(ConfigError, match=r"holds c twice, as \.npy and \.pt: delete"):
        FeatureFiles(tmp_path / "none", rate=2.0)
    with pytest.raises(ConfigError, match=r"task\.features is empty.*06_egomq_features"):
        tasks.make(resolve("toy/egomq", "toy", "init= task.features=")).files  # noqa: B018


def test_a_manifest_of_other_annotations_is_named(tmp_path):
    files = FeatureFiles(folder_of(tmp_path, manifest=[("c", 100.0, 110.0), ("e", 0.0, 9.0)], c=rows(20), b=rows(20)))
    assert len(files.read(CLIP)) == 20
    with pytest.raises(FeatureError, match=r"c\.npy is of 100 to 110 s of the video, but .* say 90 to 100 s"):
        files.read(CLIP._replace(start=90.0, stop=100.0))
    with pytest.raises(FeatureError, match=r"b\.npy is not listed in .*manifest\.json.*extract"):
        files.read(Clip("b", "v", 0.0, 10.0))
    with pytest.raises(FeatureError, match=r"e\.npy is missing"):
        files.read(Clip("e", "v", 0.0, 9.0))


# what training and evaluation do with them

def mq_task(root, features, overrides=""):
    config = resolve("toy/egomq", "toy", f"init= site.root={root} task.features={features} task.stored_rate={RATE} "
                                         f"train.epochs=1 task.dim=16 task.levels=3 {overrides}")
    return config, tasks.make(config)


def scored(root, features, overrides=""):
    """Evaluate a fresh head; return its metrics and rows."""
    config, _ = mq_task(root, features)
    head = root / "fresh.pt"
    torch.manual_seed(0)
    weights.save(Trainer(config, tasks.make(config), Run(root / "fresh"), "x", CPU).model, head)
    config, task = mq_task(root, features, f"task.head_init={head} {overrides}")
    return task, run_job.evaluate(config, task, Run(root / "scored"), "scored", CPU)


def nan(path):
    np.save(path, np.load(path) * np.float32(np.nan))


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), nan], ids=["absent", "NaN"])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_finds_nothing_where_features_are_bad(tmp_path, capsys, spoil, workers):
    """Without data.max_bad_fraction it says so and ends; with it, the clip counts, and it is counted."""
    features = make_mq(tmp_path, (6, 5))
    whole = scored(tmp_path, features)[1]
    spoil(features / "val-1.npy")
    with pytest.raises(FeatureError, match=r"val-1\.(npy|pt)"):
        scored_again(tmp_path, features)
    capsys.readouterr()
    task, result = scored_again(tmp_path, features, f"data.max_bad_fraction=0.3 data.workers={workers}")
    assert (result["clips"], result["failed"], result["clips_without_features"]) == (5, 1, 1)
    assert result["moments"] == whole["moments"] and whole["failed"] == 0
    assert "val-1" in (told := capsys.readouterr().out) or "1 of 7 clips" in told
    found = np.load(tmp_path / "scored/rows-scored.npz")
    bad = [entry.clip.uid for entry in task.dataset("test").entries].index("val-1")
    assert found["unreadable"].tolist() == [place == bad for place in range(7)]
    assert np.isnan(found["detected"][bad]).all() and not np.isnan(found["detected"][bad - 1][0]).any()
    with pytest.raises(FeatureError, match=r"1 of 7 clips.*data\.max_bad_fraction"):
        scored_again(tmp_path, features, "data.max_bad_fraction=0.1")


def scored_again(root, features, overrides=""):
    config, task = mq_task(root, features, f"task.head_init={root / 'fresh.pt'} {overrides}")
    return task, run_job.evaluate(config, task, Run(root / "scored"), "scored", CPU)


def test_training_leaves_out_what_is_absent_and_counts_what_it_can_not_read(tmp_path, capsys):
    features = make_mq(tmp_path, (8, 3))
    (features / "train-2.npy").unlink()
    nan(features / "train-3.npy")
    config, task = mq_task(tmp_path, features, "data.max_bad_fraction=0.3 train.epochs=2")
    run = Run(tmp_path / "run")
    result = train(config, task, run, "detection", CPU)
    assert (result["training_clips_left_out"], result["failed"]) == (1, 0)
    assert "train: 1 of 8 clips have no features that can be used: they are left out" in capsys.readouterr().out
    said = [event["said"] for event in run.read_log() if event["kind"] == "bad"]
    assert len(said) == result["bad_samples"] >= 2  # once an epoch, and where it is drawn in another's place
    assert all("train-3.npy" in message and "NaN" in message for message in said)
    config, task = mq_task(tmp_path, features)
    with pytest.raises(FeatureError, match=r"train-2\.pt is missing.*\n1 of 8 clips have no features"):
        train(config, task, Run(tmp_path / "strict"), "detection", CPU)
    config, task = mq_task(tmp_path, features, "data.max_bad_fraction=0.13")
    with pytest.raises(TrainingError, match=r"data\.max_bad_fraction=0\.13.*train-3\.npy"):
        make_mq(tmp_path, (8, 3))
        nan(features / "train-3.npy")
        nan(features / "train-4.npy")
        train(config, task, Run(tmp_path / "too_many"), "detection", CPU)


def rewrite(path, change):
    document = json.loads(path.read_text())
    change([label for video in document["videos"] for clip in video["clips"]
            for annotation in clip["annotations"] for label in annotation.get("labels", annotation)])
    path.write_text(json.dumps(document))


def test_moments_of_no_length_and_classes_that_training_lacks_are_counted(tmp_path, capsys):
    features = make_mq(tmp_path, (6, 5))

    def shorten(labels):
        labels[0]["end_time"] = labels[0]["start_time"]
        labels[1]["label"] = "never seen"
    for split in ("train", "val"):
        rewrite(tmp_path / f"moments_{split}.json", shorten)
    rewrite(tmp_path / "moments_train.json", lambda labels: labels[1].update(label="class_0"))
    config, task = mq_task(tmp_path, features)
    result = train(config, task, Run(tmp_path / "run"), "detection", CPU)
    assert (result["zero_length_moments"], result["untrained_classes"], result["classes"]) == (1, 1, 5)
    assert "train: 1 moments have length 0" in capsys.readouterr().out


def test_annotations_without_times_are_named(tmp_path):
    features = make_mq(tmp_path, (4, 2))
    rewrite(tmp_path / "moments_val.json", lambda labels: labels[0].pop("end_time"))
    _, task = mq_task(tmp_path, features)
    with pytest.raises(ValueError, match=r"moments_val\.json, video video-val-0, clip 'val-0': .*label 0: 'end_time'"):
        task.dataset("test")
    run = make_nlq(tmp_path, (4, 2))
    document = json.loads((tmp_path / "nlq_train.json").read_text())
    del document["videos"][0]["clips"][0]["annotations"][0]["language_queries"][1]["clip_start_sec"]
    (tmp_path / "nlq_train.json").write_text(json.dumps(document))
    task = tasks.make(resolve("toy/egonlq", "toy", f"init= site.root={tmp_path} task.features={run}"))
    with pytest.raises(ValueError, match=r"nlq_train\.json, .*clip 'train-0': .*question 1: 'clip_start_sec'"):
        task.dataset("train")


def test_a_clip_that_is_shorter_than_a_feature(tmp_path):
    features = make_mq(tmp_path, (6, 3))
    document = json.loads((tmp_path / "moments_val.json").read_text())
    clip = document["videos"][0]["clips"][0]
    clip["video_end_sec"] = clip["video_start_sec"] + 0.2
    clip["annotations"][0]["labels"] = [{"start_time": 0.0, "end_time": 0.2, "label": "class_1", "primary": True}]
    (tmp_path / "moments_val.json").write_text(json.dumps(document))
    np.save(features / "val-0.npy", np.ones((1, 16), np.float32))
    result = scored(tmp_path, features)[1]
    assert (result["clips"], result["failed"]) == (3, 0)
    found = np.load(tmp_path / "scored/rows-scored.npz")["detected"][0]
    assert np.nanmax(found[:, :2]) <= 0.2 + 1e-9 and not np.isnan(found[0]).any()


def test_stored_questions_of_other_annotations_are_named(tmp_path):
    run = make_nlq(tmp_path, (4, 2))
    settings = f"init= site.root={tmp_path} task.features={run}"
    path, manifest = run / "features/manifest.json", run / "features/manifest.json"
    kept = json.loads(path.read_text())

    def task_of(change, overrides=""):
        document = json.loads(json.dumps(kept))
        change(document["clips"])
        manifest.write_text(json.dumps(document))
        return tasks.make(resolve("toy/egonlq", "toy", f"{settings} {overrides}"))
    other = task_of(lambda clips: clips[0]["questions"][1].update(query="who was it?"))
    with pytest.raises(FeatureError, match=r"manifest\.json: question \('train-0', 'a-train-0', 1\).*another question"):
        other.dataset("train")
    absent = task_of(lambda clips: [clip["questions"].pop() for clip in clips[:4]])
    with pytest.raises(FeatureError, match=r"is not among the stored words, like 3 others: extract.*same annotations"):
        absent.dataset("train")
    wordless = tasks.make(resolve("toy/egonlq", "toy", f"{settings}/features task.stored_rate={RATE}"))
    with pytest.raises(ConfigError, match=r"task\.words.*08_egonlq"):
        wordless.dataset("train")
    task_of(lambda clips: None)
    words = tasks.make(resolve("toy/egonlq", "toy", f"{settings}/features task.stored_rate={RATE} task.words={run}"))
    item = words.dataset("train")[0, 0]
    assert item["words"].shape == (2, 16) and item["video"].shape[1] == 16
