"""Micro-batches: the same numbers in less memory, the batch plan, out-of-memory advice.

test_dist.py has the tests on several ranks.
"""
import contextlib

import pytest
import torch
from conftest import MODEL

import egokit
from egokit import tasks
from egokit.config.build import ConfigError, comparable
from egokit.config.resolve import outputs_folder
from egokit.data import loader
from egokit.jobs import launch
from egokit.runs.run_folder import Run
from egokit.train import loop, memory_plan
from egokit.train.batch_plan import plan_batch
from egokit.train.gradient_cache import by_micro_batches
from egokit.train.memory_plan import what_would_fit

CPU = torch.device("cpu")
BF16 = {"device_type": "cpu", "dtype": torch.bfloat16}


@pytest.fixture
def run(project, request):
    return Run(outputs_folder() / "tests" / request.node.name.replace("[", "-").replace("]", ""))


@pytest.mark.parametrize("autocast", [False, True])
def test_the_second_pass_is_the_first_to_the_bit(autocast):
    """by_micro_batches gives what plain autograd gives for the same pieces.

    Dropout and precision are the same, too.
    """
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Dropout(0.5), torch.nn.Linear(5, 4))
    rows, shift = torch.randn(7, 6, requires_grad=True), torch.arange(7.0)[:, None]

    def function(x, shift):
        return model(x).float() + shift, (x * shift).sum()[None]

    def outcome(whole):
        torch.manual_seed(1)
        with torch.autocast(**BF16, enabled=autocast):
            embedded, total = whole()
        later = torch.rand(3)
        loss = (embedded @ embedded.T).square().sum() + total.sum() ** 2  # mixes all rows
        gradients = torch.autograd.grad(loss, [rows], retain_graph=True)
        model.zero_grad()
        loss.backward()
        gradients += tuple(parameter.grad for parameter in model.parameters())
        return [embedded, total, later, torch.rand(3), *gradients]

    def plain():
        parts = [function(*part) for part in zip(rows.split(3), shift.split(3), strict=True)]
        return [torch.cat(column) for column in zip(*parts, strict=True)]

    got, expected = outcome(lambda: by_micro_batches(function, 3, rows, shift)), outcome(plain)
    # outputs, and random numbers drawn before and after the backward pass
    assert all(torch.equal(a, b) for a, b in zip(got[:4], expected[:4], strict=True))
    for a, b in zip(got[4:], expected[4:], strict=True):
        # a half's gradients are added up in float32 here, in the half itself there
        assert (a - b).norm() <= (2e-2 if autocast else 1e-6) * b.norm()


class Held:
    """A tensor kept for a backward pass; counts bytes as long as it lives."""
    now = most = 0

    def __init__(self, tensor):
        self.tensor = tensor.detach()  # an output would hold its own graph
        Held.now += tensor.nbytes
        Held.most = max(Held.most, Held.now)

    def __del__(self):
        Held.now -= self.tensor.nbytes


@contextlib.contextmanager
def counted(model, frames):
    """Count what autograd keeps, beside parameters and the batch's frames."""
    own = {x.data_ptr() for x in (frames, *model.parameters())}
    Held.now = Held.most = 0
    with torch.autograd.graph.saved_tensors_hooks(
            lambda x: x if x.data_ptr() in own else Held(x), lambda x: x.tensor if isinstance(x, Held) else x):
        yield


def first_step(config, run, scaler=None):
    """Return a trainer with the gradient of the first step, and the most bytes autograd kept."""
    task = tasks.make(config)
    trainer = loop.Trainer(config, task, run, "test", CPU)
    batch = next(iter(loader.build_loader(trainer.dataset, trainer.batches(0), task.collate, 0)))
    trainer.model.train()
    with counted(trainer.model, batch["video"]):
        trainer.objective.gradient(batch, 0, scaler or trainer.scaler)
    return trainer, Held.most


@pytest.mark.parametrize("recipe", ["toy/pretrain", "toy/ek100_finetune"])
def test_activations_are_a_micro_batchs(resolve, run, recipe):
    def most(micro_batch):
        return first_step(resolve(recipe, f"{MODEL} init= train.precision=fp32 model.checkpointing=false model.depth=4 "
                                          f"data.workers=0 train.batch_size=8 train.micro_batch={micro_batch}"), run)[1]
    whole, share, cached = most(0), most(8), most(1)
    # in pre-training one stage at a time is kept, beside the unfused states of all clips
    assert cached < whole / 7, (whole, cached)
    # a micro-batch of the whole share computes one stage at a time
    assert share < (whole / 2 if recipe == "toy/pretrain" else 1.01 * whole)


def test_loss_scaling_passes_through(resolve, run):
    """FP16's scaled loss gives scaled gradients, also through the cached outputs."""
    config = resolve(overrides=f"{MODEL} train.precision=fp32 train.micro_batch=3")
    plain = dict(first_step(config, run)[0].model.named_parameters())
    scaled = first_step(config, run, torch.amp.GradScaler("cpu", init_scale=2.0 ** 10))[0]
    for name, parameter in scaled.model.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name].grad * 2 ** 10, msg=name)


@pytest.mark.parametrize("checkpointing", ["cheap", "full"])
def test_recomputation_inside_micro_batches_changes_no_gradient(resolve, run, checkpointing):
    gradients = []
    for settings in ("train.micro_batch=0 model.checkpointing=none",
                     f"train.micro_batch=3 model.checkpointing={checkpointing}"):
        trainer, _ = first_step(resolve(overrides=f"{MODEL} train.precision=fp32 model.dropout=0 {settings}"), run)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters()]))
    whole, in_parts = gradients
    assert (in_parts - whole).norm() < 1e-5 * whole.norm()


def losses(run):
    return [event["loss"] for event in run.read_log() if event["kind"] == "step"]


def test_a_run_goes_on_with_another_micro_batch(resolve, run, monkeypatch):
    """It ends as a run that was never interrupted and computed each batch at once."""
    def config(micro_batch):
        return resolve(overrides=f"{MODEL} train.precision=fp32 train.checkpoint_steps=1 train.epochs=2 data.workers=0 "
                                 f"train.micro_batch={micro_batch}")

    def start(micro_batch, folder):
        return loop.train(config(micro_batch), tasks.make(config(micro_batch)), folder, "pretrain", CPU)

    straight, broken = Run(run.path / "straight"), Run(run.path / "broken")
    start(0, straight)
    save = loop.Trainer.save

    def stop_at_two(trainer):
        save(trainer)
        if trainer.step == 2:
            raise KeyboardInterrupt
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(loop.Trainer, "save", stop_at_two)
        start(3, broken)
    start(5, broken)
    assert len(losses(broken)) == 6 and losses(broken) == pytest.approx(losses(straight), rel=1e-4)
    plans = [(event["step"], event["plan"]) for event in broken.read_log() if event["kind"] == "plan"]
    assert plans == [(0, "8 samples = 1 process x 3 micro-batches of at most 3"),
                    (2, "8 samples = 1 process x 2 micro-batches of at most 5")]
    assert [event["micro_batches"] for event in straight.read_log() if event["kind"] == "plan"] == [1]


def test_what_memory_advice_changes_is_not_another_run(resolve):
    plain, advised = (comparable(resolve(overrides=overrides)) for overrides in
                      ("model.checkpointing=false", "train.micro_batch=2 model.checkpointing=cheap"))
    assert plain == advised


@pytest.mark.parametrize("overrides, processes, text", [
    ("train.batch_size=256 train.micro_batch=32", 2, "256 samples = 2 processes x 4 micro-batches of 32"),
    ("train.batch_size=256", 8, "256 samples = 8 processes x 1 micro-batch of 32"),
    ("train.batch_size=256 train.micro_batch=300", 1, "256 samples = 1 process x 1 micro-batch of 256"),
    ("train.batch_size=11 train.micro_batch=4", 2, "11 samples = 2 processes x 2 micro-batches of at most 4"),
    ("train.batch_size=11", 2, "11 samples = 2 processes x 1 micro-batch of at most 6"),
])
def test_the_plan_in_words(resolve, overrides, processes, text):
    config = resolve(overrides=f"{overrides} launch.tasks_per_node={processes}")
    assert str(plan_batch(config)) == str(plan_batch(config, processes)) == text
    assert egokit.describe(config).endswith(f"plan      {text}")


def test_a_batch_smaller_than_the_processes_is_refused_before_a_job(resolve, tmp_path):
    """By submit, whatever the cluster, and by what `egokit submit --print` calls."""
    small = resolve(overrides="train.batch_size=7 launch.nodes=2 launch.tasks_per_node=4 launch.cluster=slurm")
    message = (r"train.batch_size=7, but launch.nodes=2 x launch.tasks_per_node=4 are 8 processes.*"
               "set train.batch_size to 8 or more")
    with pytest.raises(ConfigError, match=message):
        launch.sbatch_script(small, tmp_path / "run")
    with pytest.raises(ConfigError, match=message):
        egokit.submit(small, Run(tmp_path / "run"))
    assert list((tmp_path / "run").iterdir()) == []
    for action, batch_size in (("evaluate", 7), ("train", 8)):
        config = resolve(overrides=f"train.batch_size={batch_size} launch.nodes=2 launch.tasks_per_node=4 "
                                   "launch.cluster=slurm")
        assert "#SBATCH --nodes=2\n" in launch.sbatch_script(config, tmp_path / "run", action)


@pytest.mark.parametrize("overrides, message", [
    ("train.micro_batch=-1", r"train.micro_batch \(in overrides\): expected 0 or more, got -1"),
    ("train.batch_size=0", "train.batch_size.*expected 1 or more, got 0"),
    ("train.micro_batch=half", "train.micro_batch.*expected a valid integer.*got 'half'"),
    ("train.microbatch=2", "unknown key 'train.microbatch'.*did you mean 'micro_batch'"),
])
def test_mistakes_are_named(resolve, overrides, message):
    with pytest.raises(ConfigError, match=message):
        resolve(overrides=overrides)


def test_out_of_memory_says_what_would_fit(resolve, run, monkeypatch):
    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    config = resolve(overrides=f"{MODEL} data.workers=0 model.checkpointing=false train.micro_batch=6")
    task = tasks.make(config)
    monkeypatch.setattr(type(task), "loss", full)
    message = (r"step 1: out of GPU memory.*of at most 6 \(train.micro_batch=6, model.checkpointing=none\) don't fit: "
               r"set train.micro_batch=3, or model.checkpointing=full;")
    with pytest.raises(loop.TrainingError, match=message):
        loop.train(config, task, run, "pretrain", CPU)
    monkeypatch.setattr(memory_plan, "card_gib", lambda device: 79.0)
    with pytest.raises(loop.TrainingError, match=r"set model.checkpointing=cheap, which is predicted to need 0 of"):
        loop.train(config, task, run, "pretrain", CPU)
    single = resolve(overrides=f"{MODEL} model.checkpointing=true train.batch_size=1")
    monkeypatch.undo()
    network = memory_plan.network_of(single.model, task.trains)
    assert "set train.micro_batch=1;" in what_would_fit(single, 1, task, network)
    least = resolve(overrides=f"{MODEL} model.checkpointing=true train.micro_batch=1")
    assert "use more processes (launch.tasks_per_node), or a GPU with more memory" in what_would_fit(
        least, 1, task, network)


@pytest.mark.slow
def test_two_processes_with_micro_batches_train_as_one_without(resolve, run):
    """Real processes with an uneven last batch log the same losses, step by step."""
    def finished(folder, overrides):
        config = resolve(overrides=f"{MODEL} train.precision=fp32 data.limit=21 train.epochs=2 {overrides}")
        egokit.submit(config, folder, "train", "pretrain").wait(progress=False)
        return losses(folder)

    single = finished(Run(run.path / "one"), "launch.tasks_per_node=1")
    pair = finished(Run(run.path / "two"), "launch.tasks_per_node=2 train.micro_batch=2")
    assert len(single) == 6 and pair == pytest.approx(single, rel=1e-4)
    logs = (run.path / "two/jobs/pretrain/submitit").glob("*_0_log.out")
    assert any("plan: 8 samples = 2 processes x 2 micro-batches of 2" in log.read_text() for log in logs)


def test_texts_of_one_length_give_the_same_loss_and_gradient(resolve):
    """As on a GPU, texts are padded; the padding is neither read, masked nor matched."""
    results = []
    for fixed_length in (False, True):
        config = resolve(overrides=f"{MODEL} train.precision=fp32 model.dropout=0.0 data.max_tokens=20")
        task = tasks.make(config)
        trainer = loop.Trainer(config, task, Run("unused"), "pretrain", CPU)
        task.fixed_length = fixed_length
        batch = next(iter(loader.build_loader(trainer.dataset, trainer.batches(0), task.collate, 0)))
        terms = trainer.objective.gradient(batch, 0, trainer.scaler)
        results.append((batch["tokens"]["input_ids"].shape[1], torch.stack([*terms.values()]),
                      torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters()])))
    (short, short_terms, short_gradient), (fixed, fixed_terms, fixed_gradient) = results
    assert short < fixed == 20
    assert torch.allclose(short_terms, fixed_terms, rtol=1e-5)
    assert torch.allclose(short_gradient, fixed_gradient, atol=1e-5)
