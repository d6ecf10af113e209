"""EgoMQ and EgoNLQ on stored features: heads learn what is there and nothing else, and every figure is made again."""
import json
import shutil

import numpy as np
import pytest
import torch
from moment_site import make_mq, make_nlq

from egokit import tasks
from egokit.config.build import ConfigError
from egokit.config.resolve import resolve
from egokit.jobs import launch, run_job
from egokit.jobs.preflight import expect_ready
from egokit.model import checkpoints, feature_model
from egokit.model.checkpoints import WeightsError
from egokit.runs import ledger, ledger_table
from egokit.runs.files import write_text
from egokit.runs.run_folder import Run
from egokit.tasks.moments.score import score_mq, score_nlq
from egokit.train.loop import train

CPU = torch.device("cpu")
MQ = "train.epochs=8 train.evaluate_epochs=8"
NLQ = ("optim.lr=4e-3 optim.warmup_epochs=1 train.epochs=12 train.batch_size=8 train.evaluate_epochs=12 task.dim=32 "
       "task.levels=4 task.dropout=0")
COST = {"seconds", "evaluation_seconds"}  # and the counts of a training, which an evaluation has not
OF_TRAINING = COST | {"step", "steps", "skipped_steps", "bad_samples", "best_validation_step"}


def settings(recipe, root, features, overrides=""):
    rate = "" if (features / "features").exists() else "task.stored_rate=1.875"
    return resolve(recipe, "toy", f"init= site.root={root} task.features={features} {rate} train.log_steps=1000 "
                                  f"{overrides}")


def trained(config, folder, section):
    """Train; return (task, run, the training's result)."""
    torch.manual_seed(0)
    task, run = tasks.make(config), Run(folder)
    return task, run, train(config, task, run, section, CPU)


def evaluated(config, folder, section="scored"):
    task = tasks.make(config)
    return task, run_job.evaluate(config, task, Run(folder), section, CPU)


def assert_scores_again(result, again):
    """An evaluation of the trained head gives the training's last figures."""
    kept = {key: value for key, value in result.items() if key not in OF_TRAINING and "_of_best" not in key}
    assert kept == {key: value for key, value in again.items() if key not in COST}


@pytest.fixture(scope="module")
def mq(tmp_path_factory):
    """(root, folder of features, task, run, result) of a head that has learnt to detect."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("mq")
    vectors = make_mq(root)
    return root, vectors, *trained(settings("toy/egomq", root, vectors, MQ), root / "outputs/06/run", "detection")


@pytest.fixture(scope="module")
def nlq_site(tmp_path_factory):
    root = tmp_path_factory.mktemp("nlq")
    return root, make_nlq(root, (60, 16), objects=4, positions=(48, 64))


@pytest.fixture(scope="module")
def nlq(nlq_site):
    """(root, run of features, task, run, result) of a head that has learnt to answer."""
    torch.set_num_threads(1)
    root, features = nlq_site
    return root, features, *trained(settings("toy/egonlq", root, features, NLQ), root / "trained", "grounding")


def test_detections_are_learnt(mq):
    _, _, task, _, result = mq
    chance = task.chance()
    assert result["mAP"] >= 50 and result["mAP"] > 5 * chance["mAP"]
    assert result["recall_1x_0.5"] > 2 * chance["recall_1x_0.5"]
    assert (result["clips"], result["classes"], result["failed"], result["untrained_classes"]) == (16, 4, 0, 0)
    for numbers in (result, chance):
        assert {type(value) for value in numbers.values()} <= {float, int}, "numbers of NumPy leak into metrics.json"


def test_random_features_teach_nothing(mq, tmp_path):
    """The same annotations, with features that have no moments in them."""
    root, vectors, task, _, _ = mq
    random = np.random.default_rng(5)
    for path in vectors.glob("*.npy"):
        np.save(tmp_path / path.name, random.normal(size=np.load(path).shape).astype(np.float32))
    _, _, result = trained(settings("toy/egomq", root, tmp_path, MQ), tmp_path / "run", "detection")
    assert result["mAP"] < 3 * task.chance()["mAP"] < 25


def test_a_detection_is_evaluated_again(mq, tmp_path):
    root, vectors, _, run, result = mq
    config = settings("toy/egomq", root, vectors, f"{MQ} task.head_init={run.path}")
    assert_scores_again(result, evaluated(config, tmp_path / "again")[1])
    original = evaluated(settings("toy/egomq", root, vectors, f"{MQ} task.head_init={run.path} "
                                  "task.postprocess=original"), tmp_path / "original")[1]
    assert original["mAP"] >= 50 and original["mAP"] != result["mAP"]
    with pytest.raises(Exception, match=r"task\.head_init.*06_egomq_features"):
        evaluated(settings("toy/egomq", root, vectors), tmp_path / "none")


def test_the_files_of_a_detection_score_as_its_metrics_say(mq):
    root, _, _, run, result = mq
    truth = root / "moments_val.json"
    detected, retrieved, both = (score_mq(run.path / name, truth) for name in (
        "detections_postNMS.json", "retreival_postNMS.json", "submission_val.json"))
    assert result["mAP"] == pytest.approx(detected["detections"]["average_map"], abs=1e-9)
    for tiou, value in detected["detections"]["map"].items():
        assert result[f"mAP_{tiou}"] == pytest.approx(value, abs=1e-9)
    for tiou, row in retrieved["retrievals"]["recall"].items():
        for name, value in row.items():
            assert result[f"recall_{name[2:]}_{tiou}"] == pytest.approx(value, abs=1e-9)
    assert (both["detections"], both["retrievals"]) == (detected["detections"], retrieved["retrievals"])
    truth = json.loads((run.path / "ground_truth.json").read_text())
    assert truth["task"] == "mq" and sum(len(clip["moments"]) for clip in truth["clips"].values()) == result["moments"]
    test = json.loads((run.path / "submission.json").read_text())
    assert {*test["detect_results"]} == {*test["retrieve_results"]} == {"test_unannotated-0", "test_unannotated-1"}
    assert all(test["detect_results"].values())


def test_answers_are_learnt_from_the_words(nlq, tmp_path):
    """With the words of other questions about other things, the same head finds no more than any of the things."""
    root, features, task, run, result = nlq
    assert result["R@5_0.3"] >= 80 and result["R@1_0.3"] >= 70 > 3 * task.chance()["R@1_0.3"]
    assert {type(value) for value in (result | task.chance()).values()} <= {float, int}
    shutil.copytree(features, tmp_path / "run")
    for path in (tmp_path / "run/questions").glob("*.npy"):
        words = np.load(path)
        np.save(path, np.roll(words, 2, axis=0))  # two tokens a question: each has the next one's
    config = settings("toy/egonlq", root, tmp_path / "run", f"{NLQ} task.head_init={run.path}")
    assert evaluated(config, tmp_path / "shuffled")[1]["R@1_0.3"] < task.chance()["R@1_0.3"] + 10


def test_answers_are_evaluated_again_and_their_file_scores_the_same(nlq, tmp_path):
    root, features, _, run, result = nlq
    config = settings("toy/egonlq", root, features, f"{NLQ} task.head_init={run.path}")
    assert_scores_again(result, evaluated(config, tmp_path / "again")[1])
    scored = score_nlq(run.path / "nlq_predictions.json", root / "nlq_val.json")
    for prefix, way in (("", scored), ("original_", scored["original"])):
        assert result[f"{prefix}mean_iou"] == pytest.approx(way["mean_iou"], abs=1e-9)
        for iou in ("0.3", "0.5"):
            for name, value in way["recall"][iou].items():
                assert result[f"{prefix}{name}_{iou}"] == pytest.approx(value, abs=1e-9)
    assert (scored["questions"], scored["unanswered"]) == (result["questions"], result["unanswered"])
    truth = json.loads((run.path / "ground_truth.json").read_text())
    assert truth["task"] == "nlq" and len(truth["questions"]) == result["questions"]
    asked = {(entry["clip_uid"], entry["query_idx"]) for entry in
             json.loads((run.path / "submission.json").read_text())["results"]}
    assert asked == {(f"test_unannotated-{clip}", place) for clip in range(2) for place in range(4)}


@pytest.mark.slow
def test_the_span_head_learns_from_the_words(nlq_site, tmp_path):
    root, features = nlq_site
    span = "task.head=span task.span_dropout=0 task.positions=64 optim.weight_decay=0 optim.lr=2e-3 train.epochs=10"
    run, result = trained(settings("toy/egonlq", root, features, span), tmp_path / "span", "grounding")[1:]
    assert result["R@1_0.3"] >= 70
    again = settings("toy/egonlq", root, features, f"{span} task.head_init={run.path}")
    assert_scores_again(result, evaluated(again, tmp_path / "again")[1])
    assert score_nlq(run.path / "nlq_predictions.json", root / "nlq_val.json")["recall"]["0.3"]["R@1"] == \
        pytest.approx(result["R@1_0.3"])


@pytest.mark.parametrize("recipe, overrides, earlier", [
    ("toy/egomq", "", False), ("toy/egonlq", "task.head=span task.positions=48", False), ("toy/egomq", "", True)])
def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path, recipe, overrides, earlier):
    """Earlier versions had the head and its running mean under own.head."""
    make = make_mq if recipe == "toy/egomq" else make_nlq
    features = make(tmp_path, (6, 2), positions=(48, 64))
    config = settings(recipe, tmp_path, features, f"task.levels=3 task.dim=16 train.epochs=3 train.checkpoint_steps=1 "
                                                  f"optim.warmup_epochs=1 task.crop=40 train.batch_size=4 {overrides}")
    whole, cut = (trained(config, tmp_path / name, "x")[1] for name in ("whole", "cut"))
    steps = sorted(cut.checkpoints.glob("step-*.pt"))
    assert len(steps) == 2
    for path in (steps[1], cut.checkpoints / "best.pt"):
        path.unlink()
    if earlier:
        content = checkpoints.read(steps[0])
        for part in ("state_dict", "ema"):
            content[part] = {f"own.{key}" if key.startswith("head.") else key: value
                             for key, value in content[part].items()}
        checkpoints.write(steps[0], content)
    trained(config, cut.path, "x")
    first, second = (feature_model.load(each.checkpoints / f"{steps[1].name}").state_dict() for each in (whole, cut))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    if recipe == "toy/egomq":
        assert 0 < first["head.positives"] < 99
    best = [feature_model.load(each.path).state_dict() for each in (whole, cut)]
    assert all(torch.equal(best[0][key], best[1][key]) for key in best[0])


def test_workers_read_what_one_process_reads(mq):
    """The task goes to the workers with its files; a loader process reads on while another batch is scored."""
    root, vectors, _, run, result = mq
    config = settings("toy/egomq", root, vectors, f"task.head_init={run.path} data.workers=2 task.predict_test=false")
    again = evaluated(config, root / "workers")[1]
    assert (again["mAP"], again["samples"]) == (result["mAP"], 16)


def test_a_finished_detection_stands_in_the_ledger(mq, tmp_path):
    _, vectors, task, _, result = mq
    spec = {"action": "train", "init_sha256": "", "version": "0", "task_sha256": ""}
    entry = run_job.provenance(task, spec, 1)
    assert entry["init"] == str(vectors) and entry["data"].keys() == {
        "moments_train.json", "moments_val.json", "moments_test_unannotated.json"}
    out = Run(tmp_path / "06_egomq_features" / "mine")
    out.write_metrics("detection", result | entry)
    scored = run_job.provenance(task, spec | {"action": "evaluate"}, 1)
    out.write_metrics("detection_scored", result | scored | {"init": "EgoVLPv2.pth"})
    read = ledger.read(tmp_path)
    assert read.left_out == []
    names = [entry.result.name for entry in read.entries]
    assert len(set(names)) == len(names) - 5, "each number once for either section"
    assert {"EgoMQ mean mAP (EgoVLPv2, VSGN)", "EgoMQ mAP at tIoU 0.5 (EgoVLPv2, VSGN)"} <= {*names}
    of_training, of_evaluation = read.entries[0].recipe, read.entries[-1].recipe
    assert f"a head trained here on features of {vectors.parent.name}/vectors" in of_training
    assert not any("best of" in line or "task.features" in line for line in of_training)
    assert not any("fine-tuned" in line for line in of_evaluation)
    assert "EgoVLPv2, VSGN" in ledger_table.format_ledger(read)


def test_features_that_changed_since_are_no_result_of_the_same_run(tmp_path, monkeypatch):
    """What a head was trained on, and started from, is part of its job, as `init` is of others'."""
    monkeypatch.setattr(launch, "start_work", lambda folder, spec, *more: write_text(
        folder / "spec.json", json.dumps(spec)))
    folder = make_nlq(tmp_path, clips=(2, 2))
    config, run = settings("toy/egonlq", tmp_path, folder, "launch.gpus_per_task=0"), Run(tmp_path / "outputs/run")
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist.*action 'extract'"):  # before any queue
        launch.submit(settings("toy/egonlq", tmp_path, tmp_path / "nowhere"), run, "train", "grounding")
    launch.submit(config, run, "train", "grounding")
    run.write_metrics("grounding", {"finished": True, "R@1_mean": 1.0})
    assert launch.submit(config, run, "train", "grounding").metrics()["R@1_mean"] == 1.0
    manifest = folder / "features/manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(ConfigError, match=r"manifest\.json itself: \w{12} -> \w{12}.*another run name"):
        launch.submit(config, run, "train", "grounding")


@pytest.mark.parametrize("recipe", ["toy/egomq", "toy/egonlq"])
def test_the_test_splits_list_is_only_for_a_submission(recipe, tmp_path):
    features = (make_mq if recipe == "toy/egomq" else make_nlq)(tmp_path, (6, 2))
    [path] = tmp_path.glob("*_test_unannotated.json")
    path.unlink()

    def config(overrides=""):
        return settings(recipe, tmp_path, features, f"site.toy=false train.epochs=1 task.dim=8 {overrides}")
    with pytest.raises(ConfigError, match=f"{path.name} is missing.*task.predict_test=false"):
        expect_ready(config(), "train")
    without = config("task.predict_test=false")
    expect_ready(without, "train")
    _, run, result = trained(without, tmp_path / "trained", "section")
    assert result["samples"] and not (run.path / "submission.json").exists()
    expect_ready(config(f"task.predict_test=false task.head_init={run.path}"), "evaluate")
    with pytest.raises(ConfigError, match=r"names the lists \w+_train, \w+_val and none of split"):
        split = path.name.replace("test_unannotated", "{}").format
        tasks.make(config(f"task.feature_clips={split('train')},{split('val')}")).entries("test")


def test_a_head_of_other_keys_is_named_by_its_own_checkpoint(mq, tmp_path):
    root, vectors, _, run, _ = mq
    config = settings("toy/egomq", root, vectors, f"task.head_init={run.path} task.dim=32 init={tmp_path}/encoders.pth")
    with pytest.raises(WeightsError, match=f"fit its weights in {run.path}/checkpoints/.*keys of task.*params.yaml"):
        evaluated(config, tmp_path / "again")


@pytest.mark.parametrize("features", ["", "run:06_egomq_features/gone"])
def test_an_extraction_is_of_its_own_model(mq, tmp_path, features):
    """An older recipe names no features; a recipe may name another run's."""
    root = mq[0]
    (tmp_path / "encoders.pth").touch()
    config = resolve("toy/egomq", "toy", f"site.root={root} task.features={features} init={tmp_path}/encoders.pth")
    spec = {"action": "extract", "init_sha256": "", "version": "", "task_sha256": ""}
    assert run_job.provenance(tasks.make(config), spec, 1)["init"] == f"{tmp_path}/encoders.pth"
