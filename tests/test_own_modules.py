"""What a user adds is trained, saved, recorded or refused: modules, parameters, freezing, values to log."""
import pytest
import torch
from conftest import MODEL, ROOT
from torch import nn

import egokit
from egokit import tasks
from egokit.config.build import ConfigError
from egokit.config.resolve import resolve as resolve_recipe
from egokit.data.loader import build_loader
from egokit.model import weights
from egokit.model.own_modules import attach, in_place, named, saved_state
from egokit.runs import ledger
from egokit.runs.log import History
from egokit.runs.run_folder import Run
from egokit.tasks import TaskConfig
from egokit.tasks.charades import CharadesEgo
from egokit.train import loop, optim

EXAMPLES = ROOT / "docs/examples"
CPU = torch.device("cpu")


class Head(CharadesEgo):
    """Charades-Ego with a head on a frozen model."""

    class Params(CharadesEgo.Params):
        dropout: float = 0.0

    def head(self, model):
        model.requires_grad_(False)
        return nn.Linear(model.embed_dim, len(self.classes))

    def loss(self, model, batch, step):
        return {"sum": model.head(self.embed_video(model, batch["video"])).square().mean()}


def trainer_of(kind, resolve, tmp_path, overrides=""):
    """A trainer of a task's class that stands in a test, and its first batch."""
    config = resolve("toy/charades_finetune", f"train.precision=fp32 {overrides}", run="random")
    task = kind(config)
    trainer = loop.Trainer(config, task, Run(tmp_path / "run"), "train", CPU)
    return trainer, next(iter(build_loader(trainer.dataset, trainer.batches(0), task.collate, 0)))


def step(trainer, batch):
    trainer.model.train()
    terms = trainer.objective.gradient(batch, 0, trainer.scaler)
    trainer.update(1e-2)
    return terms


@pytest.mark.parametrize("micro_batch", [0, 3])
def test_own_modules_are_trained_and_frozen_parameters_are_not(resolve, checkpoint, tmp_path, micro_batch):
    trainer, batch = trainer_of(Head, resolve, tmp_path, f"train.micro_batch={micro_batch}")
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    step(trainer, batch)
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias"}, "all but the head is frozen"


def test_frozen_parts_get_no_gradient_inside_micro_batches_either(resolve, checkpoint, tmp_path):
    class Frozen(CharadesEgo):
        def modules(self, model):
            model.requires_grad_(False)
            model.text_projection.requires_grad_(True)
            return {}
    trainer, batch = trainer_of(Frozen, resolve, tmp_path, "train.micro_batch=3")
    step(trainer, batch)
    assert {name.partition(".")[0] for name, value in trainer.model.named_parameters() if value.requires_grad} == {
        "text_projection"}


def test_a_checkpoint_holds_own_modules_and_load_takes_it(resolve, checkpoint, tmp_path):
    trainer, batch = trainer_of(Head, resolve, tmp_path)
    step(trainer, batch)
    path, task = tmp_path / "best.pt", trainer.task
    weights.save(trainer.model, path)
    plain, loaded = egokit.load(path), egokit.load(path, task=task)
    for model in (plain, loaded):
        assert torch.equal(model.state_dict()["head.weight"], trainer.model.head.weight)
    assert isinstance(loaded.head, nn.Linear) and not list(plain.head.parameters())
    weights.save(plain, tmp_path / "again.safetensors")  # convert loses nothing
    assert "head.bias" in egokit.load(tmp_path / "again.safetensors").state_dict()
    weights.export(plain, tmp_path / "exported.pth")
    exported = torch.load(tmp_path / "exported.pth", weights_only=True)["state_dict"]
    assert not any("head" in key.split(".") or "own" in key for key in exported)


def test_modules_of_another_shape_or_another_task(resolve, checkpoint, tmp_path, capsys):
    trainer, _ = trainer_of(Head, resolve, tmp_path)
    weights.save(trainer.model, tmp_path / "best.pt")

    class Wider(Head):
        def head(self, model):
            return nn.Linear(model.embed_dim, 2)

    class Other(CharadesEgo):
        def modules(self, model):
            return {"another": nn.ParameterDict({"scale": torch.ones(())})}
    config = trainer.config
    with pytest.raises(egokit.WeightsError, match=r"module 'head' of task 'charades' does not fit"):
        egokit.load(tmp_path / "best.pt", task=Wider(config))
    model = egokit.load(tmp_path / "best.pt")
    assert attach(model, Other(config)) == ["another"], "it starts fresh, which an evaluation records"
    assert "left out: head" in capsys.readouterr().out and model.own.keys() == {"another"} and model.head is None


def test_vectors_and_numbers_of_own_modules_have_no_weight_decay(resolve, checkpoint):
    config = resolve("toy/charades_finetune", "optim.head_lr_scale=3", run="random")
    model = weights.initial_model(config)
    model.own = nn.ModuleDict({"a": nn.ParameterDict({"scale": torch.ones(())}), "b": nn.Linear(2, 2)})
    of = {id(parameter): group for group in optim.param_groups(model, config.optim) for parameter in group["params"]}
    scale, weight = of[id(model.own["a"]["scale"])], of[id(model.own["b"].weight)]
    assert (scale["weight_decay"], weight["weight_decay"]) == (0, config.optim.weight_decay)
    assert scale["scale"] == weight["scale"] == 3


@pytest.mark.parametrize("value", [nn.Parameter(torch.ones(())), nn.Linear(2, 2), [nn.Linear(2, 2)],
                                   {"head": nn.Linear(2, 2)}, torch.ones(2, requires_grad=True)])
def test_a_parameter_on_the_task_is_refused(resolve, checkpoint, value):
    class Lost(CharadesEgo):
        def __init__(self, config):
            super().__init__(config)
            self.criterion = nn.CrossEntropyLoss()  # has no weights
            self.scale = value
    with pytest.raises(ConfigError, match=r"Lost\.scale is a \w+ on the task.*return it from .*`head`.*`modules`"):
        Lost(resolve("toy/charades_finetune", run="random"))
    with pytest.raises(ConfigError, match=r"Kept\.scale is a"):
        type("Kept", (CharadesEgo,), {"scale": value})


@pytest.mark.parametrize("made", [{"keys": nn.Linear(2, 2)}, {"a.b": nn.Linear(2, 2)},
                                  {"scale": nn.Parameter(torch.ones(()))}])
def test_what_is_no_module_by_a_name_is_refused(resolve, checkpoint, made):
    config = resolve("toy/charades_finetune", run="random")
    task = type("Mine", (CharadesEgo,), {"modules": lambda self, model: made})(config)
    with pytest.raises(ConfigError, match=r"Mine.modules gives '.*expected names such as 'encoder' and modules"):
        attach(weights.initial_model(config), task)


def test_a_head_is_returned_from_head(resolve, checkpoint):
    config = resolve("toy/charades_finetune", run="random")
    model = weights.initial_model(config)
    with pytest.raises(ConfigError, match=r"Mine\.modules gives 'head': return it from the method `head\(model\)`"):
        attach(model, type("Mine", (CharadesEgo,), {"modules": lambda self, model: {"head": nn.Linear(2, 2)}})(config))
    for made in ({"head": nn.Linear(2, 2)}, nn.Parameter(torch.ones(()))):
        task = type("Mine", (CharadesEgo,), {"head": lambda self, model, made=made: made})(config)
        with pytest.raises(ConfigError, match=r"Mine\.head gives a \w+: expected a module, or None"):
            attach(model, task)


def test_buffers_keep_their_type_and_shared_weights_are_copied(resolve, checkpoint, tmp_path):
    class Buffers(CharadesEgo):
        def modules(self, model):
            ids = nn.Module()
            ids.register_buffer("ids", torch.tensor([16777217, 3]))
            return {"ids": ids, "shared": model.video_projection}
    trainer, _ = trainer_of(Buffers, resolve, tmp_path)
    weights.save(trainer.model, tmp_path / "best.pt")
    for task in (None, trainer.task):
        loaded = egokit.load(tmp_path / "best.pt", task=task)
        assert loaded.state_dict()["own.ids.ids"].tolist() == [16777217, 3]
    weights.save(egokit.load(tmp_path / "best.pt"), tmp_path / "best.safetensors")


def test_a_parameter_that_the_loss_does_not_use_is_named(resolve, checkpoint, tmp_path):
    class Unused(Head):
        def modules(self, model):
            return super().modules(model) | {"spare": nn.Linear(3, 3)}
    trainer, batch = trainer_of(Unused, resolve, tmp_path)
    with pytest.raises(ConfigError, match=r"does not use 2 parameters.*own\.spare\.weight, own\.spare\.bias.*freeze"):
        step(trainer, batch)


def test_own_keys_are_strict(resolve, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from egokit.tasks import Share\nfrom egokit.tasks.charades import CharadesEgo\n"
                    "class Mine(CharadesEgo):\n"
                    "    class Params(CharadesEgo.Params):\n        dropout: Share = 0.1\n        classes: int\n")
    right = f"task={file}:Mine task.classes=3"
    config = resolve("toy/charades_finetune", f"{right} task.dropout=0.3")
    assert (config.task.dropout, config.task.classes, config.task.temperature) == (0.3, 3, 0.05)
    for overrides, message in (
            (f"{right} task.dropuot=0.3", r"unknown key 'task.dropuot' \(in overrides\): did you mean 'dropout'"),
            (f"{right} task.dropout=3", "task.dropout.*expected 1 or less, got 3"),
            (f"task={file}:Mine", r"task.classes \(in toy/charades_finetune\) is missing: this key has no default")):
        with pytest.raises(ConfigError, match=message):
            resolve("toy/charades_finetune", overrides)
    assert issubclass(tasks.find(f"{file}:Mine").Params, TaskConfig)
    assert "classes=3" in egokit.describe(config) and "temperature" not in egokit.describe(config)


def test_own_keys_are_strict_by_a_relative_path_too(project, resolve, checkpoint):
    """A recipe names its task's file from the project's folder."""
    (project / "mine").mkdir(exist_ok=True)
    (project / "mine/margin.py").write_text((EXAMPLES / "margin.py").read_text())
    with pytest.raises(ConfigError, match=r"unknown key 'task.margn' \(in overrides\): did you mean 'margin'"):
        resolve("toy/charades_finetune", "task=mine/margin.py:MaxMargin task.margn=0.3")


@pytest.mark.parametrize("line, value, message", [
    ("weights: dict[str, float] | None = None", "{a: x}", r"task.weights \(in overrides\): expected a valid number"),
    ("kind: Literal['cat', 'dog'] | None = None", "cot", r"task.kind \(in overrides\): expected 'cat' or 'dog'"),
    ("pair: tuple[float, float] = (0.0, 1.0)", "[0.5]", r"task.pair \(in overrides\): expected 2 values, got \[0.5\]"),
    ("many: list[int] | int = 1", "x", r"task.many \(in overrides\): expected a valid"),
    ("zero: Count = 0", "", r"task.zero \(its default\): expected 1 or more, got 0"),
])
def test_messages_of_any_type(resolve, tmp_path, line, value, message):
    file, key = tmp_path / "mine.py", line.partition(":")[0]
    file.write_text("from typing import Literal\nfrom egokit.tasks import Count\n"
                    "from egokit.tasks.charades import CharadesEgo\n"
                    f"class Mine(CharadesEgo):\n    class Params(CharadesEgo.Params):\n        {line}\n")
    overrides = f"task={file}:Mine" + (f" task.{key}={value}" if value else "")
    with pytest.raises(ConfigError, match=message):
        resolve("toy/charades_finetune", overrides)


def test_params_of_no_kind_and_tasks_of_no_name(resolve):
    with pytest.raises(ConfigError, match=r"Mine\.Params: expected a class derived from egokit\.tasks\.TaskConfig"):
        type("Mine", (CharadesEgo,), {"Params": dict})
    for value in ("3", "[egomcq]"):
        with pytest.raises(ConfigError, match=r"names no task.*expected one of egoclip"):
            resolve(overrides=f"task.name={value}")


def test_another_tasks_key_by_its_earlier_name_is_left_out(resolve):
    """A site, or overrides for every notebook, may have keys that stood in every config once."""
    with pytest.warns(FutureWarning, match=r"search.videos .* is called task.videos now"):
        config = resolve("toy/egomcq", "search.videos=/data")
    assert not hasattr(config.task, "videos")
    with pytest.raises(ConfigError, match=r"unknown key 'task.videos'"):
        resolve("toy/egomcq", "task.videos=/data")
    with pytest.raises(ConfigError, match=r"unknown key 'train.temprature'.*did you mean 'temperature'"):
        resolve("toy/egomcq", "train.temprature=3")


@pytest.mark.slow
@pytest.mark.parametrize("name, section, own", [("siglip", "pretrain", {"siglip"}),
                                                ("timm_video", "finetune", {"encoder", "projection"}),
                                                ("linear_head", "finetune", {"head"})])
def test_an_example_is_trained_saved_loaded_and_shown(project, checkpoint, name, section, own, capsys, monkeypatch):
    """In two processes; its best.pt is loaded by egokit.load and evaluated again to the same numbers."""
    monkeypatch.chdir(ROOT)
    file = next(line for line in (EXAMPLES / f"{name}.yaml").read_text().splitlines() if line.startswith("task:"))
    class_name = file.partition(".py:")[2].partition(",")[0].strip("}")
    small = (f"task={EXAMPLES / name}.py:{class_name} train.epochs=2 train.batch_size=8 data.limit=24 "
             "train.log_steps=1 launch.tasks_per_node=2 train.precision=fp32 evaluate.precision=fp32")
    run = egokit.open_run(str(EXAMPLES / f"{name}.yaml"), "tiny", small, "random")
    assert run.path.parent.name == name
    action = next(iter(tasks.find(run.config.task.name).actions()))
    metrics = egokit.submit(run.config, run, action, section).wait(progress=False)
    assert metrics["steps"] > 1 and metrics["recipe"]["task.name"] == run.config.task.name

    task = tasks.make(run.config)
    loaded, start = egokit.load(run.path, task=task), egokit.load(run.config.init, run.config.model.frames)
    assert named(loaded).keys() == own and not named(start)
    with torch.random.fork_rng():
        fresh = egokit.load(run.config.init, task=task)
    before, roles = saved_state(fresh), loaded.parameters_by_role()
    moved = {in_place(key) for key, value in saved_state(loaded).items() if not torch.equal(value, before[key])}
    assert moved == {*roles["head"], *roles["own"]}, "each of its parameters is trained"
    if name == "linear_head":
        assert all(torch.equal(value, start.state_dict()[key]) for key, value in loaded.state_dict().items()
                   if not key.startswith("head.")), "what is frozen is what it was, to the bit"
    if name == "siglip":
        history = History(run.path)
        history.update()
        scale = history.training["watched/scale"]
        assert scale[0] != scale[-1] and not any("scale" in column for column in history.training.names("loss"))
        return shown_in_the_ledger(run)  # EgoClip is validated, not evaluated by itself
    again = egokit.open_run(str(EXAMPLES / f"{name}.yaml"), "tiny", f"{small} init=run:{name}/random", "again")
    evaluated = egokit.submit(again.config, again, "evaluate", "zeroshot").wait(progress=False)
    assert evaluated["mAP"] == pytest.approx(metrics["mAP"], abs=1e-4) and "fresh_modules" not in evaluated
    shown_in_the_ledger(again)


def shown_in_the_ledger(run):
    """With its own keys."""
    row = next(row for row in ledger.read().entries if row.run == f"{run.path.parent.name}/{run.path.name}")
    own_keys = [key for key in type(run.config.task).__pydantic_fields__ if key != "name"]
    assert all(any(line.startswith(f"task.{key} ") for line in row.recipe) for key in own_keys)


@pytest.mark.slow
def test_modules_without_weights_are_recorded(project, checkpoint, tmp_path, resolve):
    overrides = f"task={EXAMPLES / 'linear_head.py'}:LinearHead data.limit=0"
    run = Run(tmp_path / "linear_head/zeroshot")
    config = resolve_recipe("toy/charades_finetune", "tiny", f"{overrides} launch.tasks_per_node=1", "random")
    metrics = egokit.submit(config, run, "evaluate", "zeroshot").wait(progress=False)
    assert metrics["fresh_modules"] == ["head"]
    row, = ledger.read(tmp_path).entries
    assert "modules with random weights: head" in row.recipe and MODEL
