"""A benchmark in one file of the user's: jobs, copies, the ledger, changed files; and an encoder of timm in one."""
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from browser_pages import data_of
from conftest import ROOT
from torch import nn

import egokit
from egokit import cli, tasks
from egokit.config.build import ConfigError, to_dict
from egokit.jobs import code_snapshot
from egokit.model import weights
from egokit.runs import ledger
from egokit.runs.run_folder import Run
from egokit.train import evaluate

EXAMPLES = ROOT / "docs/examples"
EXAMPLE = EXAMPLES / "narration_retrieval"


@pytest.fixture
def mine(project, resolve, tmp_path):
    """The example as a user's file, and its config on the tiny data set."""
    file = shutil.copy(EXAMPLE.with_suffix(".py"), tmp_path)
    return file, resolve(str(EXAMPLE.with_suffix(".yaml")), f"task={file}:NarrationRetrieval", run="random")


def test_its_numbers_are_those_of_a_plain_count(mine, checkpoint):
    task, model = tasks.make(mine[1]), weights.initial_model(mine[1]).eval()
    metrics, rows, prompts_KE = evaluate.evaluate(model, task)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (rows["video"], prompts_KE)]
    order = np.argsort(-(unit[0] @ unit[1].T), axis=1)
    for k in (1, 5):
        hits = [task.clips[v]["clip_text"] in [task.texts[i] for i in order[v, :k]] for v in range(len(order))]
        assert metrics[f"R@{k}"] == pytest.approx(100 * np.mean(hits))
    assert metrics["samples"] == 24 and 0 < task.chance()["R@1"] < task.chance()["R@5"] < 100


def test_its_pictures_and_its_browser_come_with_it(mine, checkpoint, tmp_path):
    (_, config), run = mine, Run(tmp_path / "narration_retrieval/mine")
    task = tasks.make(config)
    _, rows, prompts_KE = evaluate.evaluate(weights.initial_model(config).eval(), task)
    task.save_outputs(run, "evaluate", rows, prompts_KE)
    figure = egokit.viz.retrieved(task, run, "evaluate", count=3)
    assert (run.path / "figures/retrieved-evaluate.png").stat().st_size > 10_000
    headings = [axis.texts[0].get_text() for axis in figure.axes if axis.texts]
    assert len(headings) == 3 and {re.search("“(.*)”", heading)[1] for heading in headings} <= set(task.texts)
    data = data_of(egokit.viz.browser(task, run, "evaluate").data)
    assert sorted(query["text"] for query in data["queries"]) == task.texts
    scores_VK = task.score_matrix(rows, prompts_KE)
    for query in data["queries"]:
        best = query["hits"][0][0]
        k = task.texts.index(query["text"])
        assert best["score"] == pytest.approx(scores_VK[:, k].max())
        assert best["grade"] == (task.narrations[best["clip"]] == query["text"])
        assert task.describe_clip(best["clip"]) in query["html"]
    assert data["filters"] == ["result"], "its class gives no labels of its texts"
    with pytest.raises(ValueError, match="no labels of its clips: write its query_tags or clip_tags"):
        egokit.viz.retrieval_by_word(task, run, "evaluate")


def test_questions_of_ones_own_have_pictures_and_a_browser(resolve, tmp_path):
    """A ChoiceTask needs its questions and one score."""
    file, run = tmp_path / "pairs.py", Run(tmp_path / "pairs/mine")
    file.write_text(PAIRS)
    task = tasks.make(resolve(overrides=f"task={file}:Pairs"))
    rows = {"index": np.arange(4), "cosine": np.array([0.9, 0.1, 0.8, 0.2])}
    assert task.metrics(rows, None) == {"accuracy": 50.0}
    task.save_outputs(run, "evaluate", rows, None)
    assert [sample["text"] for sample in task.predictions(rows, None)] == ["the first", "the second"]
    data = data_of(egokit.viz.browser(task, run, "evaluate").data)
    assert [query["text"] for query in data["queries"]] == ["the second", "the first"], "the worst first"
    assert data["queries"][0]["hits"][0][1] == {"clip": 1, "grade": 1.0, "choice": 2, "cosine": 0.2}
    figure = egokit.viz.questions(task, run, "evaluate")
    assert [axis.get_xlabel() for axis in figure.axes] == [
        "1. ✓ answer, chosen\ncosine 0.90", "2.\ncosine 0.10", "1. ✗ chosen\ncosine 0.80", "2. ✓ answer\ncosine 0.20"]


PAIRS = """
import numpy as np
import torch
from egokit.tasks import ChoiceTask, Samples, metrics


class Grey(Samples):
    def read(self, index, rng):
        return {"video": torch.full((4, 3, 16, 16), 40 * index, dtype=torch.uint8), "index": index}


class Pairs(ChoiceTask):
    deciding = "cosine"

    def __init__(self, config):
        super().__init__(config)
        self.texts, self.choices, self.answers = ["the first", "the second"], np.array([[0, 1], [2, 1]]), [0, 1]

    def dataset(self, split):
        return Grey(3, 0, train=False)

    def score_matrix(self, rows):
        return {"cosine": rows["cosine"].reshape(-1, 2)}

    def metrics(self, rows, prompts_KE):
        return {"accuracy": metrics.accuracy(self.score_matrix(rows)["cosine"], self.answers)}
"""


def test_a_changed_or_wrong_file_is_an_error_before_a_job_starts(mine, checkpoint, tmp_path):
    (file, config), run = mine, Run(tmp_path / "run")
    before, text = code_snapshot.task_sha256(config.task.name), EXAMPLE.with_suffix(".py").read_text()
    (run.path / "jobs/evaluate").mkdir(parents=True)
    spec = {"action": "evaluate", "config": to_dict(config), "task_sha256": before,
            "init_sha256": egokit.launch.starting_point(config)}
    (run.path / "jobs/evaluate/spec.json").write_text(json.dumps(spec))
    run.write_metrics("evaluate", {"finished": True, "R@1": 1.0})
    assert egokit.submit(config, run, "evaluate").metrics()["R@1"] == 1.0
    with open(file, "a") as opened:
        opened.write("# another\n")
    now = code_snapshot.task_sha256(config.task.name)
    with pytest.raises(ConfigError, match=f"the file of task .*: {before} -> {now}.*another run name"):
        egokit.submit(config, run, "evaluate")
    with open(file, "w") as opened:
        opened.write(text.replace("NarrationRetrieval", "Narrations"))
    with pytest.raises(ConfigError, match=r"no task 'NarrationRetrieval'.*did you mean 'Narrations'"):
        egokit.submit(config, Run(tmp_path / "new"), "evaluate")


def test_a_job_reads_its_copy(mine, checkpoint, tmp_path):
    file, config = mine
    code = code_snapshot.snapshot_code(tmp_path, keep=False, task=config.task.name)
    with open(file, "w") as opened:
        opened.write("edited = while queued")
    assert tasks.make(config, code=code).best == "R@1"
    with pytest.raises(SyntaxError, match=r"narration_retrieval\.py"):
        tasks.make(config)
    assert code_snapshot.snapshot_code(tmp_path, keep=True, task=config.task.name) == code
    assert tasks.make(config, code=code).best == "R@1"


def test_hooks_by_their_old_names_are_refused(resolve, tmp_path):
    """Nothing would call them, and what they compute would be lost silently."""
    file = tmp_path / "old.py"
    file.write_text("from egokit.tasks import Task\n"
                    "class Old(Task):\n    def score(self, model, batch):\n        return {}\n")
    with pytest.raises(ConfigError, match=r"Old.score is called score_batch now"):
        tasks.make(resolve(overrides=f"task={file}:Old"))


def test_names_of_no_task(resolve):
    with pytest.raises(ConfigError, match=r"nowhere\.py is missing; write folder/file\.py:Class"):
        resolve(overrides="task=nowhere.py:Task")
    with pytest.raises(ConfigError, match="names no task: expected one of egoclip"):
        resolve(overrides="task=")


@pytest.mark.slow
def test_training_and_going_on(resolve, checkpoint, tmp_path):
    file, run = tmp_path / "mine.py", Run(tmp_path / "run")
    file.write_text("from egokit.tasks.charades import CharadesEgo\n"
                    "class Mine(CharadesEgo):\n    published = {'mAP': 26.2}\n")
    config = resolve("toy/charades_finetune", f"task={file}:Mine", run="random")
    metrics = egokit.submit(config, run).wait(progress=False)
    assert metrics["published"] == {"mAP": 26.2} and metrics["action"] == "train" and metrics["steps"] > 0
    (run.path / "metrics.json").unlink()  # as if it had been killed before its result: it has checkpoints
    file.write_text(file.read_text() + "# edited\n")
    with pytest.raises(ConfigError, match="the file of task"):
        egokit.submit(config, run)


@pytest.mark.slow
def test_from_the_shell_to_the_ledger(mine, checkpoint, project, capsys):
    shutil.copytree(EXAMPLE.parent, project / "docs/examples", dirs_exist_ok=True)
    recipe = str(project / "docs/examples/narration_retrieval.yaml")
    cli.main(["submit", recipe, "--site", "tiny", "--run", "random", "--wait",
              "--overrides", "launch.tasks_per_node=2"])
    section = Run(project / "outputs/narration_retrieval/random").metrics()["evaluate"]
    assert section["processes"] == 2 and section["samples"] == section["expected"]
    assert set(section["data"]) == {"egomcq.json"}
    entries = ledger.read(project / "outputs").entries
    entry = next(entry for entry in entries if entry.run == "narration_retrieval/random")
    assert (entry.result.name, entry.value) == ("NarrationRetrieval R@1, evaluate", section["R@1"])
    assert entry.recipe[-1] == f"defined in narration_retrieval.py ({section['task_sha256']})"
    capsys.readouterr()
    cli.main(["ledger"])
    row = rf"^R@5, evaluate\n  02_pretrain/random +narration_retrieval/random +– +{section['R@5']:.1f} +–$"
    assert re.search(row, capsys.readouterr().out, re.MULTILINE), "whatever the other runs of the folder are"
    assert "–" in egokit.viz.ledger(project / "outputs").to_html()


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "resnet18", "mobilenetv3_small_050"])
def test_the_example_of_an_encoder_takes_any_of_timms(resolve, checkpoint, backbone):
    """Made for a size of frames, or for any; with features of the width that it names, or of another one."""
    task = tasks.make(resolve(str(EXAMPLES / "timm_video.yaml"), f"task={EXAMPLES / 'timm_video.py'}:TimmVideo "
                              f"task.backbone={backbone} model.image_size=64", run="random"))
    model = SimpleNamespace(video=nn.Linear(1, 1), video_projection=nn.Linear(1, 1), embed_dim=8)
    model.own = nn.ModuleDict(task.modules(model))
    frames = torch.randint(256, (2, 3, 3, 64, 64), dtype=torch.uint8)
    assert task.embed_video(model, frames).shape == (2, 8)
    assert not any(parameter.requires_grad for parameter in model.video.parameters())
