"""EgoTaskQA end to end on tiny files: samples, answers clip by clip, unreadable clips, other vocabularies."""
import json
import re
import sys

import numpy as np
import pytest
import torch
from conftest import MODEL, ROOT, opened
from rank_moments import measure
from taskqa_site import ANSWERS, CLIPS, make_site, number_of
from test_dist import assert_same, ranks

sys.path.insert(0, str(ROOT / "benchmarks"))
import fake_gpu

from egokit import tasks
from egokit.config.registry import TASKS
from egokit.data.loader import build_loader
from egokit.data.video.timeline import VideoError
from egokit.data.video.transforms import normalise
from egokit.model import own_modules, weights
from egokit.model.checkpoints import WeightsError
from egokit.model.class_head import ClassHead
from egokit.model.egovlp import EgoVLP
from egokit.runs.run_folder import Run
from egokit.tasks.egotaskqa import EgoTaskQA
from egokit.tasks.taskqa import accuracy, annotations
from egokit.train.evaluate import evaluate
from egokit.train.loop import train

SMALL = (f"{MODEL} model.image_size=32 model.frames=4 model.vocab_size=0 model.dropout=0 init= data.frames=4 "
         "data.eval_frames=4 data.eval_resize=40 data.workers=0 train.precision=fp32 task.head_dropout=0")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data root with questions and clips."""
    return make_site(tmp_path_factory.mktemp("taskqa"))


@pytest.fixture
def made(project, root):
    """A function: overrides -> the task, on small settings."""
    from egokit.config.resolve import resolve

    def make(overrides="", recipe="egotaskqa_direct", own_root=root):
        return tasks.make(resolve(recipe, "tiny", f"{SMALL} site.root={own_root} {overrides}"))
    return make


def model_of(task):
    """A model with random weights, open gates and the task's head."""
    torch.manual_seed(0)
    model = opened(task.config)
    own_modules.attach(model, task)
    return model.eval()


def replaced(root, folder, edit):
    """Copy the questions of a root to a folder, edited, beside a link to the clips."""
    (folder / "EgoTaskQA").mkdir(parents=True)
    (folder / "EgoTaskQA/qa_videos").symlink_to(root / "EgoTaskQA/qa_videos")
    for path in (root / "EgoTaskQA/qa").rglob("*.*"):
        new = folder / path.relative_to(root)
        new.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(json.dumps(edit(json.loads(path.read_text()))) if path.suffix == ".json" else path.read_text())
    return folder


def test_training_samples_are_random_in_their_frames_alone(made):
    task = made()
    train = task.dataset("train")
    assert len(train) == 11 and train[0, 0]["text"] == "what is done with the cup?"
    videos = [train[epoch, 1]["video"] for epoch in range(6)]
    numbers = np.array([number_of(video.permute(0, 2, 3, 1).numpy()) for video in videos])
    assert len(np.unique(numbers, axis=0)) > 1
    low = 48 + 18 * np.arange(4)  # clip 1 is frames 48 to 119, in four parts
    assert (numbers >= low - 1).all() and (numbers <= low + 18).all()
    assert torch.equal(train[0, 1]["video"], videos[0])
    pixels = task.files.read(CLIPS[1], 4, np.random.default_rng((task.config.seed, 3, 1)))
    assert torch.equal(task.transform(pixels, None), videos[3])
    batch = task.collate([train[0, number] for number in (0, 3)])
    assert batch["answer"].tolist() == [ANSWERS.index("open"), ANSWERS.index("cup")]
    assert batch["tokens"]["input_ids"].shape[0] == 2 and not made("data.limit=4").dataset("train")[0, 3]["index"] - 3
    assert len(made("data.limit=4").dataset("train")) == 4 and made("data.limit=4").num_rows() == 4


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_each_clip_is_encoded_once_and_all_its_questions_are_answered(made, monkeypatch, batch_size):
    task = made(f"evaluate.batch_size={batch_size}")
    model, trunks, pairs = model_of(task), [], []
    trunk, fused = EgoVLP.fusion_trunk, EgoVLP.fused_video
    monkeypatch.setattr(EgoVLP, "fusion_trunk", lambda self, frames: trunks.append(len(frames)) or trunk(self, frames))
    monkeypatch.setattr(EgoVLP, "fused_video", lambda self, states, tokens, frames:
                        pairs.append(len(states)) or fused(self, states, tokens, frames))
    metrics, rows, _ = evaluate(model, task)
    assert sum(trunks) == len(CLIPS) == len(task.about)
    assert max(pairs) <= batch_size and sum(pairs) == 11 == task.num_rows()
    monkeypatch.undo()
    assert rows["index"].tolist() == list(range(11)) and rows["classes"].shape == rows["chances"].shape == (11, 5)
    expected = []
    for question in task.questions_of("test"):  # one by one, with their own passes
        frames = normalise(task.transform(task.read_clip(question.clip), None))[None]
        tokens = model.tokens([question.question.strip().lower()])
        with torch.no_grad():
            state = model.fused_video(model.fusion_trunk(frames), tokens, 4)
            expected.append(model.head(state)[0].softmax(0))
    expected = torch.stack(expected)
    best = expected.topk(5)
    assert np.allclose(rows["chances"], best.values, atol=1e-5)
    assert rows["classes"].tolist() == best.indices.tolist() and len(set(rows["classes"][:, 0])) > 1
    report = accuracy.report(rows["classes"][:, 0], task.questions_of("test"), ANSWERS, "direct")
    assert report.items() <= metrics.items() and metrics["samples"] == 11 and metrics["failed"] == 0
    assert not any("unreadable" in name for name in metrics)


def test_a_gpu_sees_few_shapes_and_gives_the_same_answers(made):
    """The device is pretended; what is computed is the CPU's."""
    task, shapes = made("evaluate.batch_size=2"), set()
    plain = evaluate(model_of(task), task)[1]
    model = model_of(task)
    with fake_gpu.on_the_cpu():
        model = model.to(fake_gpu.GPU)
        model.text.layers[0].register_forward_hook(lambda layer, inputs, output: shapes.add(tuple(inputs[0].shape[:2])))
        rows = evaluate(model, task)[1]
    assert all(number % 8 == 0 and length in (8, 16, 24, 30) for number, length in shapes) and len(shapes) <= 2
    assert rows["index"].tolist() == plain["index"].tolist()
    assert np.allclose(rows["chances"], plain["chances"], atol=1e-5)
    assert task.questions_at_once(16, fake_gpu.GPU) == 2 and task.questions_at_once(4, fake_gpu.GPU) == 8


def test_other_answers_give_other_accuracies(made, root, tmp_path):
    """The answers of the file decide, and with them every label's accuracy."""
    task = made()
    model = model_of(task)
    right = evaluate(model, task)[1]["classes"][:, 0]

    def answered(classes):
        def edit(entries):
            if len(entries) == 11 and entries[1]["question_id"] == 8 and entries[0]["answer"] == "open" and \
                    entries[2]["answer"] == "cup":
                for entry, label in zip(entries, classes, strict=True):
                    entry["answer_encode"] = int(label)
            return entries
        return edit
    told = made(own_root=replaced(root, tmp_path / "right", answered(right)))
    metrics = evaluate(model, told)[0]
    assert metrics["direct_all"] == metrics["direct_open"] == metrics["direct_binary"] == 100
    assert all(value == 100 for name, value in metrics.items() if name.startswith("accuracy/"))
    shuffled = made(own_root=replaced(root, tmp_path / "wrong", answered((right + 1) % len(ANSWERS))))
    assert evaluate(model, shuffled)[0]["direct_all"] == 0


@pytest.mark.parametrize("split", ["direct", "indirect"])
def test_metrics_of_both_splits(made, split, capsys):
    task = made(recipe=f"egotaskqa_{split}")
    assert task.best == f"{split}_all" and task.validation().best == task.best
    metrics = evaluate(model_of(task), task.validation())[0]
    assert {f"{split}_{name}" for name in ("all", "open", "binary", "as_published")} <= metrics.keys()
    assert metrics["questions_open"] + metrics["questions_binary"] == metrics["samples"] == 6
    assert metrics["questions/multi-agent"] == 3 and "accuracy/multi-agent" in metrics
    assert metrics["unknown_answers"] == 2 and "2 of 6 questions have an answer that is not" in capsys.readouterr().out
    assert task.validation().tables()[0].name == annotations.file_of("val")
    assert task.held_out().config.task.scored_on == "test" and task.validation().held_out() is None
    assert made("task.scored_on=val").held_out() is None
    chance = task.chance()
    # test: 4 of 11 answers are "open", as is the most frequent open answer of train; 3 of 5 binary ones are "yes"
    assert chance[f"{split}_open"] == pytest.approx(100 * 3 / 6) and chance[f"{split}_binary"] == pytest.approx(60)


@pytest.mark.slow
def test_two_ranks_and_micro_batches_give_one_result(project, root, tmp_path):
    """Shares of a batch are uneven (4 and 3 questions), as those of the evaluation (3 and 2 clips)."""
    overrides = f"{SMALL} site.root={root}"
    first = measure("egotaskqa_direct", f"{overrides} evaluate.batch_size=8", tmp_path / "one", "tiny")
    assert first["terms"].keys() == {"cross_entropy"} and {"head.fc1.weight", "head.fc2.bias"} <= \
        first["gradients"].keys()
    assert all(gradient.norm() > 0 for name, gradient in first["gradients"].items() if "key.bias" not in name)
    parts = measure("egotaskqa_direct", f"{overrides} train.micro_batch=2", tmp_path / "parts", "tiny")
    asked = [f"{overrides} evaluate.batch_size=1 train.micro_batch={size}" for size in (0, 3)]
    ranks("rank_moments.py", 2, tmp_path, json.dumps([("egotaskqa_direct", each, "tiny") for each in asked]))
    for what, other in zip(("parts", "ranks", "both"), [parts, *torch.load(tmp_path / "results.pt")], strict=True):
        assert_same(other, first, what)
        assert other["metrics"] == pytest.approx(first["metrics"], abs=1e-4), what
        assert all(torch.allclose(other["rows"][name].double(), value.double(), atol=1e-4)
                   for name, value in first["rows"].items()), what


@pytest.mark.parametrize("recipe", ["egotaskqa_direct", "egotaskqa_indirect train.only_head=true task.head=linear"])
def test_training_is_chosen_on_val_and_scored_once_on_test(made, monkeypatch, tmp_path, recipe):
    recipe, _, overrides = recipe.partition(" ")
    task = made(f"train.epochs=2 train.batch_size=5 train.log_steps=1 {overrides}", recipe)
    scored, metrics = [], EgoTaskQA.metrics
    monkeypatch.setattr(EgoTaskQA, "metrics", lambda self, *rows: scored.append(self.config.task.scored_on)
                        or metrics(self, *rows))
    run = Run(tmp_path / "run")
    result = train(task.config, task, run, "finetune", torch.device("cpu"))
    split = task.config.task.split
    assert scored == ["val", "val", "val", "test"]  # before, after each epoch, and the best model
    assert result["samples"] == 11 and result["val_samples"] == 6 and f"val_{split}_all" in result
    model = weights.load(run.checkpoints / "best.pt", task=task)
    again = evaluate(model, task)[0]
    assert {key: result[key] for key in again if key != "seconds"} == {
        key: value for key, value in again.items() if key != "seconds"}
    losses = [event["cross_entropy"] for event in run.read_log() if event["kind"] == "step"]
    assert len(losses) == 4 and all(np.isfinite(losses))


def damaged(root, folder, *clips):
    """A root whose clips are whole but for some: cut off in the middle, or, if marked with !, missing."""
    replaced(root, folder, lambda entries: entries)
    videos = folder / "EgoTaskQA/qa_videos"
    videos.unlink()
    videos.mkdir()
    for path in (root / "EgoTaskQA/qa_videos").iterdir():
        if f"!{path.stem}" not in clips:
            content = path.read_bytes()
            (videos / path.name).write_bytes(content[:len(content) // 2] if path.stem in clips else content)
    return folder


def test_unreadable_clips_are_errors_or_counted(made, root, tmp_path, capsys):
    bad = damaged(root, tmp_path / "bad", CLIPS[1], f"!{CLIPS[3]}")
    model = model_of(made())
    with pytest.raises(FileNotFoundError, match=rf"{re.escape(CLIPS[3])}.mp4 is missing.*task.clips"):
        made(own_root=bad).dataset("test")
    cut = damaged(root, tmp_path / "cut", CLIPS[1])
    with pytest.raises(VideoError, match=re.escape(CLIPS[1])):
        evaluate(model, made(own_root=cut))
    # clips 1 and 3 have two of the eleven questions each
    with pytest.raises(VideoError, match=r"4 of 11 questions are of clips.*data.max_bad_fraction=0.3"):
        evaluate(model, made("data.max_bad_fraction=0.3", own_root=bad))
    capsys.readouterr()
    task = made("data.max_bad_fraction=0.4", own_root=bad)
    metrics, rows, _ = evaluate(model, task)
    lost = [question.clip in (CLIPS[1], CLIPS[3]) for question in task.asked]
    assert rows["unreadable"].tolist() == lost and (rows["classes"][lost] == -1).all()
    assert metrics["failed"] == metrics["unreadable_questions"] == 4 and metrics["samples"] == 11
    right = rows["classes"][:, 0] == [question.answer for question in task.asked]
    assert metrics["direct_all"] == pytest.approx(100 * right.mean())
    out = capsys.readouterr().out
    assert CLIPS[1] in out and CLIPS[3] in out and "count as wrong" in out
    whole = evaluate(model, made())[1]
    assert np.allclose(whole["chances"][~np.array(lost)], rows["chances"][~np.array(lost)], atol=1e-5)
    batches = [[(0, number) for number in range(11)]]
    dataset = task.dataset("train")
    dataset.tolerant = True
    assert len(next(build_loader(dataset, batches, task.collate, 0))["bad"]) >= 4


def test_nan_names_the_question(made):
    task = made()
    model = model_of(task)
    with torch.no_grad():
        model.head.fc2.bias[3] = float("nan")
    with pytest.raises(ValueError, match=r"question \d+, '.+' of clip room.*NaN or Inf.*evaluate.precision fp32.*lr"):
        evaluate(model, task)


def test_a_checkpoint_of_other_answers_is_refused(made, tmp_path):
    task = made()
    model = model_of(task)
    for classes, reason in ((len(ANSWERS) + 2, f"{len(ANSWERS) + 2} answers.*answer_set.txt has {len(ANSWERS)}"),
                            (("x", *ANSWERS[1:]), "'x' as answer 0, but .*answer_set.txt has '<UNK0>'")):
        model.head = ClassHead(32, classes, hidden=classes if isinstance(classes, int) else len(classes))
        weights.save(model, tmp_path / "other.pt")
        for load in (lambda: weights.load(tmp_path / "other.pt"), lambda: model):
            loaded = load()
            if isinstance(classes, tuple) and not getattr(loaded.head, "classes", ()):
                continue  # a checkpoint without words
            with pytest.raises(WeightsError, match=rf"{reason}.*task.split.*checkpoint without one"):
                own_modules.attach(loaded, task)
    model = model_of(task)
    weights.save(model, tmp_path / "own.pt")
    again = weights.load(tmp_path / "own.pt")
    assert not own_modules.attach(again, task)
    assert torch.equal(again.head.fc1.weight, model.head.fc1.weight)
    linear = made("task.head=linear")
    assert linear.head(weights.load(tmp_path / "own.pt")).fc1 is None


def test_few_answers_fill_rows(made):
    task = made()
    rows = task.rows_of(np.array([0, 1]), torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
    assert rows["classes"].tolist() == [[1, 0, -1, -1, -1], [0, 1, -1, -1, -1]]
    assert rows["chances"][:, :2].sum(1) == pytest.approx([1, 1]) and not rows["chances"][:, 2:].any()


def test_registered_with_published_numbers():
    task = tasks.find("egotaskqa")
    assert TASKS["egotaskqa"] == "egokit.tasks.egotaskqa:EgoTaskQA"
    results = [result for result in task.results() if result.published]
    assert len(results) == 12 and all("best test accuracy, on random frames" in result.note for result in results)
    assert {result.published for result in results if "all" in result.name} == {46.26, 42.28}
    for split in ("direct", "indirect"):
        assert task.published_recipe({"task.split": split})[0] == f"egotaskqa_{split}"
