"""The ledger: published numbers beside those of runs, read from metrics.json."""
import json

import pytest

from egokit import cli, tasks
from egokit.config.build import comparable, marked
from egokit.config.registry import TASKS
from egokit.config.resolve import project_root, resolve
from egokit.jobs.run_job import recipe
from egokit.runs import ledger, ledger_table, recipe_differences
from egokit.runs.run_folder import Run
from egokit.viz import tables

TASK = {tasks.find(name).notebook: name for name in TASKS}
REAL = {"finished": True, "action": "evaluate", "toy": False, "frames": 16, "precision": "fp32",
        "init_sha256": "0" * 12, "data": {"a table": "1" * 12}}
CHOSEN = {"selection.metric": "mAP", "selection.split": "test"}


@pytest.fixture(autouse=True)
def _recipes(project):
    """The published recipes are those of the project's params/."""


def evaluated(notebook, **changes):
    """A section of metrics.json: an evaluation with the published recipe, but for `changes`."""
    task = tasks.find(TASK[notebook])
    values, _, _ = recipe_differences.published_recipe(task.recipe, project_root() / "params")
    scored = {key: value for key, value in values.items() if key in marked("scored")}
    return REAL | {"task": TASK[notebook], "recipe": scored | {"task.dual_softmax": 0} | changes}


def fine_tuned(notebook, init, **changes):
    """A section of metrics.json: a fine-tuning with the published recipe, but for `changes`."""
    task = tasks.find(TASK[notebook])
    values, _, _ = recipe_differences.published_recipe(task.recipe, project_root() / "params")
    training = {key: value for key, value in values.items() if key.startswith(("data.", "optim.", "train.", "task."))}
    recipe = training | CHOSEN | {"selection.validations": 100} | changes
    return evaluated(notebook, **recipe) | {"action": "train", "init": init}


def test_runs_of_the_published_recipe_and_of_others(tmp_path, capsys):
    Run(tmp_path / "05_egomcq" / "released").write_metrics("egomcq", evaluated("05_egomcq") | {
        "ensemble_inter": 90.5, "ensemble_intra": 61.2, "dual_inter": 88.0, "samples": 39751,
        "init": "weights/EgoVLPv2.pth"})
    Run(tmp_path / "05_egomcq" / "mine").write_metrics("egomcq", evaluated("05_egomcq") | {
        "ensemble_intra": 50.0, "samples": 100, "init": "/any/outputs/02_pretrain/mine/checkpoints/best.pt"})
    changes = {"data.eval_frames": 4, "data.eval_resize": 256}
    Run(tmp_path / "03_ek100" / "mine").write_metrics("zeroshot", evaluated("03_ek100", **changes) | {
        "mAP": 20.0, "samples": 100, "frames": 4, "precision": "bf16", "init": "other.pt"})
    Run(tmp_path / "03_ek100" / "tuned").write_metrics("zeroshot", evaluated("03_ek100") | {
        "mAP": 47.3, "samples": 9668, "init": "EK-100_finetune.pth"})
    Run(tmp_path / "03_ek100" / "older").write_metrics("finetune", {"mAP": 40.0, "finished": True})
    Run(tmp_path / "03_ek100" / "older").write_metrics("zeroshot", REAL | {
        "mAP": 1.0, "toy": True, "init": "x.pt", "samples": 24})
    entries = {(entry.run, entry.result.name): entry for entry in ledger.read(tmp_path).entries}
    assert len(entries) == 7
    assert entries["05_egomcq/released", "EgoMCQ inter-video, ensemble"].recipe == []
    assert entries["05_egomcq/mine", "EgoMCQ intra-video, ensemble"].recipe == [
        "100 questions, published on 39,751", "checkpoint 02_pretrain/mine (000000000000), published for EgoVLPv2.pth"]
    old_names = {"data.evaluation_frames" if key == "data.eval_frames" else key: value
                 for key, value in evaluated("03_ek100")["recipe"].items()}
    Run(tmp_path / "03_ek100" / "renamed").write_metrics("zeroshot", REAL | {"task": "ek100",
        "recipe": old_names, "mAP": 1.0, "samples": 9668, "init": "EgoVLPv2_smallproj.pth"})
    assert next(entry for entry in ledger.read(tmp_path).entries if entry.run == "03_ek100/renamed").recipe == []
    assert entries["03_ek100/mine", "EK-100 MIR mAP, zero-shot"].recipe == [
        "100 clips, published on 9,668", "4 frames, published 16", "resized to 256 px, published 224",
        "checkpoint other.pt (000000000000), published for EgoVLPv2_smallproj.pth", "evaluated in bf16"]
    assert entries["03_ek100/tuned", "EK-100 MIR mAP, fine-tuned"].recipe == []
    assert entries["03_ek100/older", "EK-100 MIR mAP, fine-tuned"].recipe == ["its recipe is not recorded"]
    assert entries["03_ek100/older", "EK-100 MIR mAP, zero-shot"].recipe == ["toy data", "its recipe is not recorded"]
    cli.main(["ledger", "--outputs", str(tmp_path)])
    text = capsys.readouterr().out
    assert "91.0      90.5        -0.5\n    the published recipe" in text
    html = tables.ledger(tmp_path).to_html()
    assert "the published recipe" in html and "-0.5" in html and "+0.3" in html and "left out" not in text + html
    nothing = ledger_table.format_ledger(ledger.read(tmp_path / "none"))
    assert nothing.startswith("no run has a number that was published")


def test_the_ledger_says_how_a_checkpoint_was_trained(tmp_path):
    run = Run(tmp_path / "03_ek100" / "any")

    def entries(init="EgoVLPv2_smallproj.pth", section=None, **changes):
        values = {"mAP": 48.0, "samples": 9668} | (section or {})
        run.write_metrics("finetune", fine_tuned("03_ek100", init, **changes) | values)
        return ledger.read(tmp_path).entries
    chosen = "best of 100 validations on the test set, the paper does not say how its checkpoint was chosen"
    assert entries()[0].recipe == ["fine-tuned here from EgoVLPv2_smallproj.pth", chosen]
    changes = {"train.epochs": 1, "train.batch_size": 16, "optim.lr": 0.001,
               "task.retrieval_loss": "symmetric_multi_similarity", "optim.schedule": "linear", "data.limit": 24,
               "selection.validations": 1}
    assert entries("x.pt", {"bad_samples": 3}, **changes)[0].recipe == [
        "fine-tuned here from x.pt, published from EgoVLPv2_smallproj.pth", "trained 1 epoch, published 100",
        "batch 16, published 128", "learning rate 0.001, published 0.0002",
        "task.retrieval_loss symmetric_multi_similarity, published max_margin",
        "data.limit 24, by default 0", "optim.schedule linear, published cosine", "3 samples could not be read"]
    plain, dual = entries(section={"mAP_dual_softmax": 50.0}, **{"task.dual_softmax": 0.01})
    assert (plain.value, plain.recipe) == (48.0, ["fine-tuned here from EgoVLPv2_smallproj.pth", chosen])
    assert (dual.value, dual.result.published) == (50.0, 47.3)
    assert dual.recipe == ["dual softmax over the whole test set (temperature 0.01), published without",
                           *plain.recipe]
    table = tables.table([(entry.result, run.metrics()) for entry in (plain, dual)])
    absent = table.data["published, real data"].isna().tolist()
    assert absent == [False, True], "no number is published with dual softmax"


@pytest.mark.parametrize("name", ["ek100", "charades", "egomcq", "mq", "nlq"])
def test_the_recipes_of_params_are_the_published_ones(project, name):
    """A job of the task's recipe records every compared key with the published value; a changed value is reported."""
    task = tasks.find(name)

    def differences(overrides=""):
        class Scored:
            config, best = resolve(task.recipe, "example", overrides), "mAP"
            reports_last, selection_split = task.reports_last, task.selection_split
        recorded = json.loads(json.dumps(recipe(Scored, "train" in task.sections)))
        return [line for trained in (False, "train" in task.sections)
                for line in recipe_differences.compare_recipes(recorded, task, trained)]
    assert list(dict.fromkeys(differences())) == []
    line = differences("data.eval_frames=1")[0]
    assert line == f"1 frame, {'by default' if name in ('mq', 'nlq') else 'published'} 16"
    assert len(comparable(resolve(task.recipe, "example"))) > 30


def test_a_job_records_its_recipe(resolve):
    config = resolve("toy/ek100_finetune", "init= train.epochs=5 train.evaluate_epochs=2 task.dual_softmax=0.05")
    task = tasks.make(config)
    trained, scored = recipe(task, True), recipe(task, False)
    selection = trained["selection.validations"], trained["selection.metric"], trained["selection.split"]
    assert selection == (3, "mAP", "test")
    assert trained["train.batch_size"] == 8 and trained["model.width"] == config.model.width and trained["seed"] == 0
    assert not {"data.workers", "train.micro_batch", "evaluate.batch_size", "model.checkpointing"} & trained.keys()
    assert scored["task.dual_softmax"] == 0.05 and scored["data.eval_frames"] == config.data.eval_frames
    assert scored.items() <= trained.items()
    assert not any(key.startswith(("train.", "optim.", "data.frames")) for key in scored)
    started = recipe(tasks.make(resolve("toy/ek100_finetune")), True)
    assert "model.image_size" in started
    assert "model.width" not in started, "a checkpoint has its own shape, not the config's"


@pytest.mark.parametrize("content, message", [
    ('{"finetune": {"mAP": 4', "not JSON"),
    ("", "not JSON"),
    ("[" * 100_000, "not JSON"),
    ('["finetune"]', "expected sections of metrics"),
    ('{"finetune": 3}', "expected sections of metrics"),
    ('{"finetune": {"mAP": "forty"}}', "'mAP' of section 'finetune' is 'forty', expected a number"),
    ('{"finetune": {"mAP": NaN}}', "expected a number"),
    ('{"finetune": {"mAP": 1' + 400 * "0" + "}}", "expected a number"),
    ('{"finetune": {"mAP": 4.0, "recipe": []}}', "'recipe' of section 'finetune' is [], expected dict"),
    ('{"finetune": {"mAP": 4.0, "recipe": {}}}', "'action' of section 'finetune' is None, expected str"),
    ('{"finetune": {"mAP": 4.0, "init": 3}}', "'init' of section 'finetune' is 3, expected str"),
    (json.dumps({"finetune": fine_tuned("03_ek100", "x.pt") | {"mAP": 4.0, "samples": "all"}}),
     "'samples' of section 'finetune' is 'all'"),
    ('{"evaluate": {"published": ["R@1"], "R@1": 4.0}}', "'task' and 'published' of section 'evaluate'"),
    ('{"evaluate": {"published": {"R@1": "many"}, "R@1": 4.0, "task": "a.py:A"}}',
     "'published R@1' of section 'evaluate'"),
    ("<folder>", "Is a directory"),
    (b"\xff\xfe", "not JSON"),
])
def test_a_damaged_file_leaves_out_its_own_run_only(tmp_path, capsys, content, message):
    Run(tmp_path / "03_ek100" / "whole").write_metrics("finetune", fine_tuned("03_ek100", "x.pt") | {
        "mAP": 40.0, "samples": 9668})
    path = Run(tmp_path / "03_ek100" / "damaged").path / "metrics.json"
    if content == "<folder>":
        path.mkdir()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    cli.main(["ledger", "--outputs", str(tmp_path)])
    _, _, _, differs, *_, last = lines = capsys.readouterr().out.splitlines()
    assert differs.startswith("    fine-tuned here from x.pt") and max(map(len, lines[:-1])) <= 120
    assert last.startswith("left out: ") and str(path) in last and message in last
    fix = "delete it, and the run's notebook, or 'egokit submit', writes it again"
    assert content == "<folder>" or last.endswith(fix)
    assert [entry.run for entry in ledger.read(tmp_path).entries] == ["03_ek100/whole"]
    html = tables.ledger(tmp_path).to_html()
    assert "left out: " in html and str(path) in html and "40.0" in html
