"""Training of heads: what is frozen, what is scored after training, and the worked example of one's own clips."""
import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_own_modules import trainer_of

import egokit
from egokit import tasks
from egokit.config.build import ConfigError
from egokit.config.schema import ModelConfig
from egokit.data.video.open_video import VideoError
from egokit.model import weights
from egokit.model.own_modules import attach
from egokit.runs import ledger
from egokit.runs.recipe_differences import Result
from egokit.runs.run_folder import Run
from egokit.tasks import ClassHead
from egokit.tasks.charades import CharadesEgo
from egokit.train import memory_plan, step
from egokit.train.loop import Trainer
from egokit.train.optim import learning_rate

CPU = torch.device("cpu")
OWN_CLIPS = ROOT / "docs/examples/own_clips"


class Answers(CharadesEgo):
    """A head on the fused state of a video and its sentence; some videos choose the model, others score it."""
    trains, selection_split = "fused_video", "val"

    def __init__(self, config, videos=2):
        super().__init__(config)
        self.ids, self.targets_VK = self.ids[:videos], self.targets_VK[:videos]

    def head(self, model):
        return ClassHead(model.config.width, len(self.classes), hidden=5)

    def loss(self, model, batch, step):
        def states(frames, ids, mask):
            tokens = {"input_ids": ids, "attention_mask": mask}
            return model.fused_video(model.fusion_trunk(tasks.normalise(frames)), tokens, frames.shape[1])
        tokens = batch["tokens"]
        states_bD = self.in_parts(states, batch["video"], tokens["input_ids"], tokens["attention_mask"])
        return {"cross_entropy": self.cross_entropy(model.head(states_bD), batch["index"] % len(self.classes))}

    def held_out(self):
        return type(self)(self.config, videos=3)


@pytest.mark.parametrize("micro_batch", [0, 2])
def test_what_the_loss_does_not_use_is_frozen_and_all_else_has_a_gradient(resolve, checkpoint, tmp_path, micro_batch):
    trainer, batch = trainer_of(Answers, resolve, tmp_path, f"train.micro_batch={micro_batch}")
    trainer.objective.gradient(batch, 0, trainer.scaler)  # its check finds a parameter that is asked for in vain
    without = {name for name, parameter in trainer.model.named_parameters() if parameter.grad is None}
    assert without == trainer.task.unused(trainer.model) and any("itm_head" in name for name in without)
    assert any(name.startswith("head.") for name, p in trainer.model.named_parameters() if p.grad is not None)


def test_only_head_trains_the_head_and_runs_the_rest_without_dropout(resolve, checkpoint, tmp_path):
    trainer, batch = trainer_of(Answers, resolve, tmp_path, "train.only_head=true")
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.objective.training_mode()
    training = {name for name, module in trainer.model.named_modules() if module.training}
    assert training and {name.partition(".")[0] for name in training} <= {"head", "own"}
    first = trainer.objective.gradient(batch, 0, trainer.scaler)["cross_entropy"]
    trainer.update(1e-2)
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"head.{layer}.{kind}" for layer in ("fc1", "fc2") for kind in ("weight", "bias")}
    assert torch.isfinite(first)
    assert {name for group in trainer.optimizer.param_groups for name in map(id, group["params"])} == {
        id(parameter) for parameter in trainer.model.head.parameters()}


def test_only_head_without_a_head_is_refused(resolve, checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.only_head.*no head"):
        trainer_of(CharadesEgo, resolve, tmp_path, "train.only_head=true")


def test_training_mode_of_a_whole_training_is_as_before(resolve, checkpoint, tmp_path):
    trainer, _ = trainer_of(Answers, resolve, tmp_path)
    trainer.model.eval()
    trainer.objective.training_mode()
    assert all(module.training for module in trainer.model.modules())


def test_the_earlier_yes_or_no_is_refused_with_its_new_name():
    with pytest.raises(ConfigError, match=r"uses_fusion is called trains"):
        type("Old", (CharadesEgo,), {"uses_fusion": True})


def test_held_out_samples_are_scored_once_by_the_best_model(resolve, checkpoint, tmp_path):
    overrides = "train.epochs=2 train.precision=fp32 train.only_head=true data.limit=4 train.batch_size=2"
    config = resolve("toy/charades_finetune", overrides, run="random")
    run = Run(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    task = Answers(config)
    result = Trainer(config, task, run, "train", CPU).fit()
    assert result["samples"] == task.held_out().num_rows() == result["val_samples"] + 1
    validations = [event["mAP"] for event in run.read_log() if event["kind"] == "validation"]
    assert result["val_mAP"] == max(validations)
    model = egokit.load(run.path / "checkpoints/best.pt")
    attach(model, task)
    metrics, _, _ = egokit.train.evaluate.evaluate(model, task.held_out())
    assert metrics["mAP"] == result["mAP"], "of the best model's weights, not of the last step's"
    again = Trainer(config, task, run, "train", CPU).fit()  # as after a kill before the result was written
    assert {key: value for key, value in again.items() if "seconds" not in key} == {
        key: value for key, value in result.items() if "seconds" not in key}


def test_the_memory_of_fused_video_lies_between_the_dual_encoders_and_pre_trainings(resolve):
    model = ModelConfig(projection="linear256")
    config = dataclasses.replace(resolve("toy/charades_finetune", run="random"), model=model)
    needs = {}
    for trains in ("embeddings", "fused_video", "all"):
        task = type("Any", (CharadesEgo,), {"trains": trains})
        needs[trains] = memory_plan.predicted_gib(config, task, 1)
    assert needs["embeddings"] < needs["fused_video"] < needs["all"]


def test_a_note_on_a_published_number_is_always_told(monkeypatch):
    section = {"recipe": {"data.eval_frames": 4}, "action": "evaluate", "init": "x/best.pt", "init_sha256": "0",
               "samples": 3, "frames": 4, "precision": "fp32", "toy": False, "data": {"a": "b"}, "task": "mine.py:Mine"}
    result = Result("mine", "evaluate", "accuracy", 50.0, note="chosen on the test set")
    assert ledger.recipe_differences(None, result, section)[-1] == "chosen on the test set"
    assert "chosen on the test set" not in ledger.recipe_differences(None, result._replace(note=""), section)


def test_the_schedule_of_a_head_starts_above_zero(resolve):
    config = resolve("toy/charades_finetune", run="random").optim
    assert learning_rate(0, 100, 10, config) > 0


def test_freeze_tells_whether_only_the_head_trains(resolve, checkpoint):
    config = resolve("toy/charades_finetune", "train.precision=fp32", run="random")
    task = Answers(config)
    model = weights.initial_model(config)
    attach(model, task)
    assert step.freeze(model, task, only_head=False) is False and step.freeze(model, task, only_head=True) is True
    assert {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"head"}


@pytest.mark.slow
def test_the_example_of_ones_own_clips_learns_is_loaded_and_answers(project, resolve, checkpoint, tmp_path):
    table = project / "outputs/toy/CharadesEgo/CharadesEgo/metadata_train.csv"
    for split in ("train", "test"):  # the tiny data set's own test split has classes of its own
        (tmp_path / f"{split}.csv").write_text(table.read_text())
    overrides = (f"task={OWN_CLIPS}.py:OwnClips task.table={tmp_path}/{{split}}.csv train.epochs=2 train.batch_size=8 "
                 "train.precision=fp32")
    config = resolve(str(OWN_CLIPS.with_suffix(".yaml")), overrides, run="random")
    run = Run(tmp_path / "own_clips/mine")
    assert next(iter(tasks.find(config.task.name).actions())) == "train", "what its command in docs/extending.md starts"
    metrics = egokit.submit(config, run, "train").wait()
    assert 0 <= metrics["top1"] <= metrics["top5"] <= 100 and metrics["init"]
    task, model = tasks.make(config), egokit.load(run.path)
    assert isinstance(model.head, ClassHead) and model.head.classes == tuple(task.number) and not model.training
    item = task.dataset("test").read(0, None)
    frames = tasks.normalise(item["video"][None])
    (answers,) = model.answer(frames, k=3)
    with torch.no_grad():
        order = task.logits(model, item["video"][None]).argsort(-1, descending=True)[0, :3]
    assert [word for word, _ in answers] == [list(task.number)[k] for k in order]
    assert np.all(np.diff([chance for _, chance in answers]) <= 0)
    recorded = json.loads((run.path / "metrics.json").read_text())["train"]
    assert recorded["published"] == {"top1": None, "top5": None}


def test_the_example_of_ones_own_clips_reads_names_as_they_are_written(resolve, checkpoint, tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("\ufeffid,t_start,t_end,narration\n001,0,1,None\n002,0.5,1,3\n")
    for name in ("001", "002"):
        (tmp_path / f"{name}.mp4").touch()
    task = tasks.make(resolve(str(OWN_CLIPS.with_suffix(".yaml")), f"task={OWN_CLIPS}.py:OwnClips "
                              f"task.videos={tmp_path} task.table={tmp_path}/{{split}}.csv", run="random"))
    assert list(task.rows["train"]["id"]) == ["001", "002"] and list(task.number) == ["3", "None"]


@pytest.mark.parametrize("line, message", [
    ("a,1,1,x", r"train\.csv, line 3: t_end is 1, t_start 1; expected that"),
    ("a,0:01,0:02,x", r"train\.csv, line 3: t_start is"), ("a,,2,x", r"train\.csv, line 3: t_start is")])
def test_the_example_of_ones_own_clips_names_wrong_times(resolve, checkpoint, tmp_path, line, message):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(f"id,t_start,t_end,narration\nb,0,1,x\n{line}\n")
    with pytest.raises(ValueError, match=message):
        tasks.make(resolve(str(OWN_CLIPS.with_suffix(".yaml")), f"task={OWN_CLIPS}.py:OwnClips "
                           f"task.table={tmp_path}/{{split}}.csv", run="random"))


def test_the_example_of_ones_own_clips_refuses_a_clip_after_its_video(resolve, checkpoint, tmp_path, project):
    """It would be trained on the video's last frame."""
    table = project / "outputs/toy/CharadesEgo/CharadesEgo/metadata_train.csv"
    header, line = table.read_text().splitlines()[:2]
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(f"{header}\n" + "\t".join([*line.split("\t")[:2], "900", "901", "x"]))
    data = tasks.make(resolve(str(OWN_CLIPS.with_suffix(".yaml")), f"task={OWN_CLIPS}.py:OwnClips "
                              f"task.table={tmp_path}/{{split}}.csv", run="random")).dataset("test")
    with pytest.raises(VideoError, match=r"a clip begins at 900\.00 s, but the video ends"):
        data.read(0, None)
