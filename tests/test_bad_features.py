"""What EgoMQ and EgoNLQ do with features and annotations that can't be used: nothing is dropped without a word."""
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
from egokit.tasks.feature_files import FeatureError
from egokit.train.loop import Trainer, TrainingError, train

CPU = torch.device("cpu")


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
    with pytest.raises(FeatureError, match=r"1 of 8 clips have no features.*\n.*train-2\.pt is missing"):
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


def test_questions_without_words_are_unanswered_and_counted(tmp_path, capsys):
    """Words are only known to be bad when they are read: at a question, not at the start."""
    run = make_nlq(tmp_path, (6, 5))
    settings = f"init= site.root={tmp_path} task.features={run} task.dim=16 task.levels=3 task.predict_test=false"

    def evaluated(overrides):
        config = resolve("toy/egonlq", "toy", f"{settings} {overrides}")
        return run_job.evaluate(config, tasks.make(config), Run(tmp_path / "scored"), "grounding_scored", CPU)
    config = resolve("toy/egonlq", "toy", settings)
    weights.save(Trainer(config, tasks.make(config), Run(tmp_path / "fresh"), "x", CPU).model, tmp_path / "fresh.pt")
    nan(run / "questions/val-2.npy")
    with pytest.raises(FeatureError, match=r"questions/val-2\.npy, question 0: 32 NaN"):
        evaluated(f"task.head_init={tmp_path}/fresh.pt")
    result = evaluated(f"task.head_init={tmp_path}/fresh.pt data.max_bad_fraction=0.2")
    assert (result["questions"], result["unanswered"], result["failed"], result["clips_without_features"]) == (
        20, 4, 4, 1)
    assert capsys.readouterr().out.count("nothing is found in clip val-2") == 4


def test_fused_features_and_words_have_one_list_of_questions(tmp_path):
    """Features that are fused with questions in another order than the words' would be another question's."""
    run = make_nlq(tmp_path, (3, 2))
    other = tmp_path / "other/features"
    other.mkdir(parents=True)
    manifest = json.loads((run / "features/manifest.json").read_text()) | {"kind": "fused"}
    for path in (run / "features").glob("*.npy"):
        np.save(other / path.name, np.stack([np.load(path)] * 4))
    (other / "manifest.json").write_text(json.dumps(manifest))
    settings = f"init= site.root={tmp_path} task.features={other.parent} task.words={run}"
    assert tasks.make(resolve("toy/egonlq", "toy", settings)).dataset("train")[0, 1]["words"].shape == (2, 16)
    manifest["clips"][0]["questions"].reverse()
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FeatureError, match=r"question \('train-0', 'a-train-0', 0\) has another place.*annotations"):
        tasks.make(resolve("toy/egonlq", "toy", settings)).dataset("train")


def test_a_head_of_as_many_other_classes_is_refused(tmp_path):
    features = make_mq(tmp_path, (6, 3))
    scored(tmp_path, features)
    for split in ("train", "val"):
        rewrite(tmp_path / f"moments_{split}.json", lambda labels: [
            label.update(label="another") for label in labels if label["label"] == "class_3"])
    with pytest.raises(weights.WeightsError, match=r"other classes than moments_train\.json.*annotations"):
        scored_again(tmp_path, features)


@pytest.mark.parametrize("made, reason", [
    (lambda x: {"features": x}, "holds a dict, expected one tensor"), (lambda x: x.bfloat16(), "tensor of bfloat16"),
    (lambda x: x.T.contiguous().T, "its tensor is not in one piece")], ids=["dict", "bfloat16", "transposed"])
def test_files_of_others_in_another_form_are_not_to_be_deleted(tmp_path, made, reason):
    features = make_mq(tmp_path, (6, 2))
    for path in features.glob("*.npy"):
        torch.save(made(torch.from_numpy(np.load(path))), path.with_suffix(".pt"))
        path.unlink()
    with pytest.raises(FeatureError, match=f"none of 10 files.*{reason}.*if egokit extracted it.*else save one"):
        mq_task(tmp_path, features)[1].dataset("train")


def test_an_error_of_many_files_begins_with_their_number(tmp_path):
    features = make_mq(tmp_path, (20, 2))
    for number in range(15):
        (features / f"train-{number}.npy").unlink()
    with pytest.raises(FeatureError, match=r"^15 of 20 clips have no features") as caught:
        mq_task(tmp_path, features)[1].dataset("train")
    assert len(str(caught.value).splitlines()) == 11
