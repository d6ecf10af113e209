"""Training steps in a notebook's own process: what a term moves, the job's own steps, further overrides."""
import shutil

import nbformat
import numpy as np
import pytest
import torch
from conftest import ROOT

import egokit
from egokit import tasks, viz
from egokit.config.build import ConfigError
from egokit.notebook import headless
from egokit.notebook.trial import ALL
from egokit.runs.run_folder import Run
from egokit.train.evaluate import evaluate
from egokit.train.loop import Trainer

OWN_TEXTS, OWN_CLIPS = ROOT / "docs/examples/own_texts", ROOT / "docs/examples/own_clips"
MY_LOSS = """
import torch
from torch import nn
from egokit.tasks.egoclip import EgoClip


class MyLoss(EgoClip):
    def modules(self, model):
        mine = nn.ParameterDict({"scale": torch.tensor(3.0), "spare": torch.tensor(1.0)})
        mine.register_buffer("calls", torch.tensor(0.0))
        return {"mine": mine}

    def loss(self, model, batch, step):
        similarity = self.similarity_part(model, batch)
        mine = model.own["mine"]
        mine.calls += 1
        return {"pull": -mine["scale"] * similarity.mean_of_texts(similarity.own_pairs()),
                "spare": mine["spare"] ** 2 / 2}

    trains = "embeddings"

    def watched(self, model):
        return dict(model.own["mine"])
"""


@pytest.fixture
def mine(resolve, checkpoint, tmp_path):
    (tmp_path / "my_loss.py").write_text(MY_LOSS)
    config = resolve("toy/change_something", "train.precision=fp32 train.batch_size=4 data.limit=12", run="random")
    return egokit.changed(config, f"task={tmp_path}/my_loss.py:MyLoss")


def test_which_term_moves_which_part(mine, tmp_path):
    trial = egokit.Trial(mine, Run(tmp_path / "run"), samples=3)
    before = {name: value.clone() for name, value in trial.model.state_dict().items()}
    assert len(trial.batch["video"]) == 6, "each sample with its negative"
    norms = trial.gradient_norms()
    assert set(norms) == {"video encoder", "text encoder", "projections", "own module mine"}, "fusion is frozen"
    assert norms["own module mine"]["spare"] == pytest.approx(1.0) and norms["video encoder"]["spare"] == 0
    assert norms["text encoder"]["pull"] == norms["text encoder"][ALL] > 0
    table = viz.gradients(trial).data
    assert all(torch.equal(value, before[name]) for name, value in trial.model.state_dict().items()), "buffers, too"
    assert not any(parameter.grad is not None for parameter in trial.model.parameters())
    scale = trial.terms()["pull"].item() / 3
    assert norms["own module mine"][ALL] == pytest.approx(np.hypot(scale, 1), rel=1e-4)
    assert table.columns.tolist() == ["of one batch", "parameters", "pull", "spare", ALL]
    assert table[ALL][0] == pytest.approx(table["pull"][0] + 0.5)
    assert table["spare"].isna().tolist() == [False, True, True, True, False], "a dash where a term reaches nothing"


def test_its_steps_are_the_jobs(mine, tmp_path, monkeypatch, recwarn):
    run = Run(tmp_path / "run")
    trial = egokit.Trial(mine, run)
    norm = np.hypot.reduce([of_terms[ALL] for of_terms in trial.gradient_norms().values()])
    trial.train(2)
    trial.train(100)
    steps = [event for event in trial.run.read_log() if event["kind"] == "step"]
    assert trial.run.path == run.path / "here" and [event["step"] for event in steps] == [1, 2, 3]
    assert all(event["backward_s"] > 0 for event in steps), "its times, too"
    assert steps[0]["grad_norm"] == pytest.approx(norm, rel=1e-4), "the table's numbers are the log's"
    with pytest.raises(ConfigError, match=r"all 3 steps.*make a new Trial"):
        trial.train(1)

    def no_validation(trainer):
        trainer.validated, trainer.best = trainer.step, {"step": trainer.step, "metrics": {"seconds": 0}}
    monkeypatch.setattr(Trainer, "validate", no_validation)
    run.checkpoints.mkdir()
    Trainer(mine, tasks.make(mine), run, "train", torch.device("cpu")).fit()
    job = [event for event in run.read_log() if event["kind"] == "step"]
    for key in ("loss", "pull", "grad_norm", "watched"):
        assert [event[key] for event in job] == [event[key] for event in steps], key
    assert not [warning for warning in recwarn if "requires_grad" in str(warning.message)]

    figure = viz.overlaid({"here": trial.run, "as a job": run}, run)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["pull", "spare", "scale", "spare", "gradient norm"], "terms, watched numbers, the norm"
    for axis in figure.axes[:len(titles)]:
        first, second = axis.get_lines()
        assert np.array_equal(first.get_ydata(), second.get_ydata()) and len(first.get_xdata()) == 3
        assert [line.get_label() for line in (first, second)] == ["here", "as a job"]
    assert (run.path / "figures/overlaid.png").stat().st_size > 10_000


def test_fp16_recipes_are_tried_on_a_cpu(mine, tmp_path):
    assert egokit.Trial(egokit.changed(mine, "train.precision=fp16"), Run(tmp_path / "run")
                        ).config.train.precision == "bf16"


def test_further_overrides_are_checked_like_all_others(mine, resolve, tmp_path):
    assert mine.task.temperature == 0.1 and mine.task.name == f"{tmp_path}/my_loss.py:MyLoss", "its keys stay"
    charades = egokit.changed(mine, "task=charades optim.lr=2e-4")
    assert charades.optim.lr == 2e-4 and not hasattr(charades.task, "itm_weight")
    for overrides, message in (("task.temprature=3", "did you mean 'temperature'"), ("optim.lr=-1", "more than 0"),
                               ("model.heads=5", "multiple of heads"), ("optim.scale_lr=linear", "lr_batch_size"),
                               (f"task={tmp_path}/other.py:Mine", r"other\.py is missing")):
        with pytest.raises(ConfigError, match=message):
            egokit.changed(mine, overrides)


def test_describe_tells_what_differs_and_the_checkpoints_own_shape(resolve, checkpoint):
    config = resolve("toy/egomcq", run="random")
    text = egokit.describe(config)
    lines = text.splitlines()
    assert "init      outputs/02_pretrain/random" in lines, "from the project's folder"
    assert "its own shape: image_size=64, width=32, heads=2, depth=2" in text and "checkpointing" not in text
    assert "model     image_size=64" in lines and "egomcq" in lines[0] and "mlp4096" not in text
    assert all(len(line) <= 110 for line in lines) and len(lines) < 16
    absent = egokit.describe(resolve("toy/egomcq", run="absent"))
    assert "not read: checkpoint" in absent and "does not exist" in absent
    assert "of the Hugging Face hub" in egokit.describe(resolve("toy/egomcq", "init=hf:openai/clip-vit-base-patch16"))


@pytest.mark.slow
def test_the_notebook_runs_by_itself(project, checkpoint):
    parameters = {"site": "tiny", "run_name": "random", "overrides": "launch.tasks_per_node=2 data.limit=12 "
                  "train.batch_size=4 train.precision=fp32"}
    path = headless.execute("10_change_something", parameters, timeout=900)
    run, book = Run(path.parent), nbformat.read(path, as_version=4)
    metrics = run.metrics()["mine"]
    assert metrics["finished"] and metrics["steps"] == 3 and metrics["processes"] == 2
    here, job = ([event for event in folder.read_log() if event["kind"] == "step"]
                 for folder in (Run(run.path / "here"), run))
    for key in ("loss", "my_nce", "grad_norm"):  # of one process, and of two
        assert [event[key] for event in here] == pytest.approx([event[key] for event in job], rel=1e-3)
    pages = ["".join(output["data"].get("text/html", "")) for cell in book.cells for output in cell.get("outputs", [])
             if "data" in output]
    tables = [page for page in pages if "gradient norm: text encoder" in page]
    assert len(tables) == 2 and "own module mine" in tables[0] and "my_nce" in tables[0] and "egonce" in tables[1]
    assert (run.path / "figures/overlaid.png").stat().st_size > 10_000
    assert headless.finished("10_change_something", parameters)


def test_the_example_of_ones_own_texts(resolve, project, checkpoint, tmp_path):
    for split in ("train", "test"):
        shutil.copy(project / "outputs/toy/CharadesEgo/CharadesEgo/metadata_train.csv", tmp_path / f"{split}.csv")
    config = resolve(str(OWN_TEXTS.with_suffix(".yaml")), f"task={OWN_TEXTS}.py:OwnTexts train.precision=fp32 "
                     f"data.limit=12 train.batch_size=6 task.table={tmp_path}/{{split}}.csv", run="random")
    trial = egokit.Trial(config, Run(tmp_path / "own_texts"))
    task = trial.task
    assert next(iter(task.actions())) == "train" and len(task.dataset("test")) == 12
    texts = trial.batch["text"]
    cosine_BB = trial.task.similarity_part(trial.model, trial.batch).rows_bB.detach().double().numpy()
    weights_BB, same_BB = np.exp(cosine_BB / 0.05), np.array([[a == b for b in texts] for a in texts])
    expected = sum(-np.log((weights_BB * same_BB).sum(axis) / weights_BB.sum(axis)).mean() for axis in (0, 1))
    assert trial.terms()["nce"].item() == pytest.approx(expected, rel=1e-4)
    metrics, rows, prompts_KE = evaluate(trial.model, task)
    scores_VK, truth_VK = task.score_matrix(rows, prompts_KE), task.truth()
    found = [truth_VK[np.argsort(-scores_VK[:, k])[:5], k].any() for k in range(truth_VK.shape[1])]
    assert metrics["R@5"] == pytest.approx(100 * np.mean(found)) and 0 < task.chance()["R@5"] < 100
    assert metrics["samples"] == 12 and (truth_VK.sum(1) == 1).all()
    assert task.rows["test"].text[0] in task.describe_clip(0)


@pytest.mark.parametrize("table, message", [
    ("b,x,1,cuts", "line 3: start is 'x'"), ("b,-1,1,cuts", "line 3: start is '-1'; expected seconds"),
    ("b,0,nan,cuts", "line 3: stop is 'nan'"), ("b,2,2,cuts", "line 3: stop is 2, start 2; expected that it"),
    ("b,2.5,1,cuts", r"line 3: stop is 1, start 2\.5"), ("b,0,1,", "line 3: text is ''"), ("b,0,1", "line 3: 3 fields"),
    ("../b,0,1,cuts", r"line 3: video is '\.\./b'"), (None, r"columns \['text'\] are missing")])
def test_a_wrong_line_of_ones_own_texts_is_named(resolve, checkpoint, tmp_path, table, message):
    """The same holds for ones own clips, whose columns have other names."""
    text = f"video,start,stop,text\na,0,1,cuts\n{table}\n" if table else "video,start,stop\na,0,1\n"
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(text)
    common = f"task.table={tmp_path}/{{split}}.csv"
    config = resolve(str(OWN_TEXTS.with_suffix(".yaml")), f"task={OWN_TEXTS}.py:OwnTexts task.delimiter=',' "
                     f"task.videos={tmp_path}/{{video}}.mp4 task.columns=[video,start,stop,text] {common}",
                     run="random")
    with pytest.raises((ValueError, FileNotFoundError), match=rf"train\.csv.* ?{message}"):
        tasks.make(config)
    text = text.replace("video,start,stop,text", "id;t_start;t_end;narration").replace(
        "video,start,stop", "id;t_start;t_end").replace(",", ";")
    (tmp_path / "train.csv").write_text(text)
    config = resolve(str(OWN_CLIPS.with_suffix(".yaml")), f"task={OWN_CLIPS}.py:OwnClips task.videos={tmp_path} "
                     f"{common}", run="random")
    for before, after in (("video", "id"), ("start", "t_start"), ("stop", "t_end"), ("text", "narration")):
        message = message.replace(before, after)
    with pytest.raises((ValueError, FileNotFoundError), match=rf"train\.csv.* ?{message}"):
        tasks.make(config)


def test_what_is_given_beside_a_table_of_ones_own_texts(resolve, checkpoint, tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("video,start,stop,text\na,0,1,cuts\nb.mp4,0,1,cuts\n")
    (tmp_path / "a.mp4").touch()
    config = resolve(str(OWN_TEXTS.with_suffix(".yaml")), f"task={OWN_TEXTS}.py:OwnTexts task.delimiter=',' "
                     f"task.table={tmp_path}/{{split}}.csv task.columns=[video,start,stop,text] "
                     f"task.videos={tmp_path}/{{video}}.mp4", run="random")
    with pytest.raises(FileNotFoundError, match=r"^1 videos .*b\.mp4\.mp4; .*task\.videos"):
        tasks.make(config).dataset("train").check_files()
    with pytest.raises(ValueError, match=r"train\.csv: columns .* are missing; expected a header with ';' between"):
        tasks.make(egokit.changed(config, "task.delimiter=;"))
    with pytest.raises(ValueError, match=r"task\.table=.*train\.csv: expected \{split\} in it"):
        tasks.make(egokit.changed(config, f"task.table={tmp_path}/train.csv"))
    for delimiter in (r"\t", ";;"):
        with pytest.raises(ValueError, match=r"train\.csv: the delimiter .*expected one character"):
            tasks.make(egokit.changed(config, f"task.delimiter={delimiter}"))


def test_further_overrides_name_runs_and_files_as_a_recipe_does(mine, project, tmp_path):
    outputs = project / "outputs"
    changed = egokit.changed(mine, "init=run:02_pretrain/other")
    assert changed.init == str(outputs / "02_pretrain/other") and egokit.changed(mine, "seed=3").init == mine.init
    head = egokit.changed(mine, f"task=egotaskqa_head task.vectors=run:09_egotaskqa/a "
                          f"site.root={tmp_path}/.")
    assert head.task.vectors == str(outputs / "09_egotaskqa/a") and head.site.root == str(tmp_path)
    with pytest.raises(ConfigError, match=r"init .*write it in place of \{run\}"):
        egokit.changed(mine, "init=run:02_pretrain/{run}")
    for name in ("", ".", "../other"):
        with pytest.raises(ConfigError, match="use letters"):
            egokit.Trial(mine, Run(tmp_path / "run"), name=name)
