"""Heads on EgoTaskQA's stored vectors: what they learn and answer; what is damaged, stale or not given is named."""
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import opened
from rank_moments import measure
from taskqa_site import ANSWERS, CLIPS
from test_dist import assert_same, ranks
from test_egotaskqa import SMALL, replaced
from vector_site import CPU, extracted_site

import egokit
from egokit import tasks
from egokit.config.build import ConfigError
from egokit.data.video.transforms import normalise
from egokit.jobs import run_job
from egokit.model import weights
from egokit.model.checkpoints import WeightsError
from egokit.runs.run_folder import Run
from egokit.tasks.feature_files import FeatureError
from egokit.tasks.taskqa.vectors import VectorFiles
from egokit.train.loop import train

LEARNS = "train.epochs=30 train.batch_size=4 optim.lr=0.05 train.evaluate_epochs=15 train.log_steps=1000"


@pytest.fixture(scope="module")
def site(project, tmp_path_factory):
    return extracted_site(tmp_path_factory.mktemp("heads"))


@pytest.fixture
def copied(site, tmp_path):
    """A copy of the extracted run, to damage."""
    shutil.copytree(site.vectors, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def trained(site):
    """(task, run, result) of a head that was trained on the stored vectors."""
    torch.manual_seed(0)
    config, run = site.config(LEARNS), Run(site.folder / "trained")
    task = tasks.make(config)
    return task, run, train(config, task, run, "headtune", CPU)


def coded(site, folder, shuffled=False):
    """Vectors that say which question is asked, which in this site decides its answer; or others' vectors."""
    codes, numbers = {}, np.random.default_rng(0)
    (folder / "vectors").mkdir(parents=True)
    (folder / "vectors/manifest.json").write_text(json.dumps(site.manifest))
    texts = [text for clip in site.manifest["clips"] for text in clip["questions"]]
    told = iter(numbers.permutation(texts).tolist() if shuffled else texts)
    for clip in site.manifest["clips"]:
        rows = [codes.setdefault(next(told), numbers.normal(size=site.manifest["dimension"]))
                for _ in clip["questions"]]
        np.save(folder / f"vectors/{clip['clip_uid']}.npy", np.array(rows, np.float32))
    return folder


def test_a_head_learns_and_reads_no_video(site, tmp_path):
    """Vectors that say the answer teach all of it, those of other questions do not; the head is scored again."""
    results = {}
    for shuffled in (False, True):
        config = site.config(f"{LEARNS} task.vectors={coded(site, tmp_path / f'vectors-{shuffled}', shuffled)}")
        torch.manual_seed(0)
        results[shuffled] = train(config, tasks.make(config), Run(tmp_path / f"run-{shuffled}"), "headtune", CPU)
    result = results[False]
    assert result["direct_all"] == 100 and results[True]["direct_all"] < 80 and result["samples"] == 11
    assert {"val_direct_all", "direct_open", "direct_binary", "direct_as_published"} <= result.keys()
    moved = tmp_path / "questions only"
    (moved / "EgoTaskQA").mkdir(parents=True)
    (moved / "EgoTaskQA/qa").symlink_to(site.root / "EgoTaskQA/qa")
    config = site.config(f"task.head_init={tmp_path / 'run-False'} task.vectors={tmp_path / 'vectors-False'}")
    config = dataclasses.replace(config, site=dataclasses.replace(config.site, root=str(moved)))
    again = run_job.evaluate(config, tasks.make(config), Run(tmp_path / "again"), "head", CPU)
    same = {key for key in again if key.startswith(("direct_", "accuracy/", "questions"))}
    assert len(same) > 5 and {key: again[key] for key in same} == {key: result[key] for key in same}


def test_the_model_with_the_head_answers_as_the_evaluation(site, trained):
    """egokit.load gives the head to the model that made the vectors."""
    task, run, _ = trained
    model = egokit.load(site.init, frames=4, head=run.path)
    rows, _ = run.read_rows("headtune")
    for number, question in enumerate(task.asked):
        frames = normalise(task.transform(task.read_clip(question.clip), None))[None]
        (answers,) = model.answer(frames, question.question, k=5)
        words, chances = zip(*answers, strict=True)
        assert np.allclose(chances, rows["chances"][number], atol=1e-4)
        if np.diff(rows["chances"][number]).max() < -1e-4:  # without ties
            assert words == tuple(ANSWERS[place] for place in rows["classes"][number])
    with pytest.raises(WeightsError, match=r"own modules alone.*head="):
        egokit.load(run.path)


def test_ranks_micro_batches_and_batch_sizes_change_nothing(site, tmp_path):
    shared = ("egotaskqa_head", f"{SMALL} site.root={site.root} task.vectors={site.vectors} train.batch_size=7")
    one = measure(*shared, tmp_path, "tiny")
    assert one["terms"].keys() == {"cross_entropy"} and one["metrics"]["samples"] == 11
    assert set(one["gradients"]) == {"head.fc2.weight", "head.fc2.bias"}
    assert_same(measure(shared[0], f"{shared[1]} train.micro_batch=2 evaluate.batch_size=3", tmp_path, "tiny"), one,
                "micro-batches")
    ranks("rank_moments.py", 3, tmp_path, json.dumps([(*shared, "tiny")]))
    (three,) = torch.load(tmp_path / "results.pt")
    assert_same(three, one, "ranks")
    assert np.allclose(three["rows"]["chances"], one["rows"]["chances"], atol=1e-6)


def damage(path, how):
    vectors = np.load(path)
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif how == "absent":
        path.unlink()
    elif how == "text":
        path.write_text("no array")
    else:
        np.save(path, {"of another dimension": vectors[:, :-1], "of fewer questions": vectors[:-1],
                       "half": vectors.astype(np.float16), "nan": vectors * np.nan}[how])


@pytest.mark.parametrize("how, message", [
    ("cut", "may be cut off"), ("absent", "is missing: extract the vectors again"), ("text", "no .npy file"),
    ("of another dimension", "expected float32 of"), ("of fewer questions", "expected float32 of"),
    ("half", "float16 of shape"), ("nan", "NaN")])
def test_damaged_vectors_are_named(site, copied, how, message):
    path = copied / f"vectors/{CLIPS[0]}.npy"
    damage(path, how)
    task = tasks.make(site.config(f"task.vectors={copied}"))
    with pytest.raises(FeatureError) as raised:
        samples = task.dataset("train")
        assert how == "nan", "the file's head is looked at before training"
        for index in range(len(samples)):
            samples[0, index]
    assert message in str(raised.value) and str(path) in str(raised.value)


@pytest.mark.parametrize("edit, message", [
    (lambda manifest: manifest.pop("frames"), "'frames' is missing"),
    (lambda manifest: manifest.update(dimension=0), "'dimension' is 0"),
    (lambda manifest: manifest["clips"][0].update(clip_uid="../../room-1|P1|0|48"), "clip '../../room-1"),
    (lambda manifest: manifest["clips"][0].update(questions=[]), "with one question or more"),
    (lambda manifest: manifest["clips"].append(manifest["clips"][0]), "expected it once"),
    (lambda manifest: manifest["clips"][0]["questions"].append(3), "is 3, expected text")])
def test_a_damaged_manifest_is_named(copied, edit, message):
    path = copied / "vectors/manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError) as raised:
        VectorFiles(copied)
    assert str(path) in str(raised.value) and message in str(raised.value) and "delete it" in str(raised.value)


def test_vectors_of_something_else_are_named_before_training(site, tmp_path):
    weights.save(opened(site.config("init= seed=3")), tmp_path / "other.pt")
    with pytest.raises(FeatureError, match=r"vectors of .*base\.pt .*, but init is .*other\.pt .*extract them again"):
        tasks.make(site.config(f"init={tmp_path / 'other.pt'}")).dataset("train")
    tasks.make(site.config("init=away.pt")).dataset("train")  # which isn't here: nothing to compare with
    with pytest.raises(FeatureError, match=r"vectors of 4 frames, but data\.eval_frames is 2"):
        tasks.make(site.config("data.eval_frames=2")).dataset("train")
    root = replaced(site.root, tmp_path / "root", lambda entries: [
        entry | {"question": "Who is it?"} if number == 1 else entry for number, entry in enumerate(entries)])
    with pytest.raises(FeatureError, match=r"lists no vector of 2 questions, such as 'who is it\?' about clip room-1"):
        tasks.make(site.config(root=root)).dataset("train")


def test_what_is_not_given_is_named(site, tmp_path):
    with pytest.raises(ConfigError, match=r"task\.vectors is empty: name the run that extracts them"):
        tasks.make(site.config("task.vectors=")).dataset("train")
    with pytest.raises(FileNotFoundError, match=r"task\.vectors names the run"):
        tasks.make(site.config(f"task.vectors={tmp_path / 'none'}")).dataset("train")
    with pytest.raises(WeightsError, match=r"task\.head_init is empty"):
        tasks.make(site.config()).initial_model("evaluate")


def test_a_head_of_other_answers_is_refused(site, trained, tmp_path):
    _, run, _ = trained
    root = replaced(site.root, tmp_path / "root", lambda entries: entries)
    for path in root.rglob("answer_set.txt"):
        path.write_text(path.read_text().replace("red", "blue"))
    config = site.config(f"task.head_init={run.path}", root)
    with pytest.raises(WeightsError, match=r"'red'.*'blue'"):
        run_job.evaluate(config, tasks.make(config), Run(tmp_path / "run"), "head", CPU)


def test_a_head_belongs_to_the_model_of_its_vectors(site, trained, copied, tmp_path):
    """Not to its file: the same weights in another file are that model, others of the same shape are not."""
    _, run, _ = trained
    model = egokit.load(site.init)
    weights.export(model, tmp_path / "same.pth")
    assert egokit.load(tmp_path / "same.pth", frames=8, head=run.path).head.model_id == site.manifest["model_id"]
    with torch.no_grad():
        model.fusion_norm.weight += 1
    weights.save(model, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"the vectors of another model \(\w{12}, but this one is \w{12}\)"):
        egokit.load(tmp_path / "other.pt", head=run.path)
    (copied / "vectors/manifest.json").write_text(json.dumps(site.manifest | {"model_id": "0" * 12}))
    config = site.config(f"task.head_init={run.path} task.vectors={copied}")
    with pytest.raises(WeightsError, match=r"vectors of another model \(\w{12}\) than those in .*\(000000000000\)"):
        run_job.evaluate(config, tasks.make(config), Run(tmp_path / "run"), "head", CPU)
