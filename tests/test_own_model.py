"""A user's own model in one file: what is checked of it, whose code is executed, and every benchmark by real jobs."""
import hashlib
import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL

import egokit
from egokit import tasks
from egokit.config import trust
from egokit.config.build import ConfigError, to_dict
from egokit.config.registry import restore
from egokit.config.yaml_file import to_yaml
from egokit.jobs import code_snapshot, preflight
from egokit.model import checkpoints, sources, weights
from egokit.notebook import headless
from egokit.runs import ledger
from egokit.runs.run_folder import NOTEBOOK, Run
from egokit.train import evaluate

EXAMPLE = ROOT / "docs/examples/own_model.py"
TEXT = EXAMPLE.read_text()


@pytest.fixture
def file(tmp_path):
    return shutil.copy(EXAMPLE, tmp_path / "mine.py")


@pytest.fixture
def mine(resolve, file):
    """The example as a user's file, and its config for EgoMCQ."""
    return file, resolve("toy/egomcq", f"init={file}:Colours data.limit=0")


def test_the_example_names_colours_better_than_chance(mine):
    task, model = tasks.make(mine[1]), weights.initial_model(mine[1])
    metrics, rows, _ = evaluate.evaluate(model, task)
    assert "fusion" not in rows and metrics["dual_inter"] > task.chance()["inter"] + 5
    red, blue = (torch.zeros(1, 2, 3, 64, 64, dtype=torch.uint8) for _ in range(2))
    red[:, :, 0], blue[:, :, 2] = 210, 200
    frames = model.normalise(torch.cat([red, blue]))
    scores = egokit.similarity(model.encode_text(["the red cup", "a blue box"]), model.encode_video(frames))
    assert scores[0, 0] > scores[0, 1] and scores[1, 1] > scores[1, 0]


WRONG = {  # what is replaced in the example, by what, and what the message says
    "another class": ("class Colours", "class Colors", r"has no model 'Colours'.*did you mean 'Colors'"),
    "not derived": ("(egokit.Dual)", "(torch.nn.Module)", r"Colours is not derived from egokit\.Dual: write class"),
    "no tokens": ("def tokens", "def token", r"Colours has no method tokens: write def tokens\(self, texts, longest\)"),
    "no video": ("def embed_video", "def video", r"Colours has no method embed_video: write def embed_video"),
    "no import": ("import egokit", "import egokit, no_such_library", r"mine\.py can't be imported.*no_such_library"),
    "weights": ("def __init__(self)", "def __init__(self, weights)", r"made without weights.*give them in init"),
    "no size": ("    image_size = 64", "    # image_size", r"Colours\.image_size is 'missing': expected the side"),
    "size": ("image_size = 64", 'image_size = "64"', r"Colours\.image_size is '64': expected the side of a frame"),
    "frames": ("frames = None ", "frames = 0 ", r"Colours\.frames is 0: expected the most frames"),
    "few frames": ("frames = None ", "frames = 2 ", r"Colours\.frames=2.*to be given 4: set data\.eval_frames"),
    "mean": ("mean, std = (0, 0, 0)", "mean, std = (0, 0)", r"Colours\.mean is \(0, 0\): expected three numbers"),
    "std": ("(1, 1, 1)", "(1, 0, 1)", r"Colours\.std is \(1, 0, 1\): expected three numbers above 0"),
    "a list": ('return {"named"', 'return [*"a"]; {"named"', r"tokens gives a list for one text: expected tokens"),
    "an axis": ("return near.mean(1)", "return near", r"embed_video gives float32 \(1, 16384, 6\) for a clip of 4"),
    "half": ("near.mean(1)", "near.mean(1).half()", r"embed_video gives float16 \(1, 6\).*end it with \.float\(\)"),
    "dimensions": ("near.mean(1)", "near.mean(1)[:, :5]", r"embed_text gives 6 numbers.*embed_video 5.*cosine"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_of_a_model_is_said_with_its_file_and_class(mine, name):
    file, config = mine
    old, new, message = WRONG[name]
    assert old in TEXT
    file.write_text(TEXT.replace(old, new))
    with pytest.raises(ConfigError, match=message) as raised:
        weights.initial_model(config, 4)
    assert str(file) in str(raised.value) and "\n" not in str(raised.value)


def test_weights_are_given_to_the_class_and_to_no_other(mine, tmp_path, resolve):
    file, _ = mine
    with pytest.raises(ConfigError, match=r"made with weights.*leave them out, init: .*mine\.py:Colours,"):
        egokit.load(f"{file}:Colours:w")
    file.write_text(TEXT.replace("def __init__(self)", "def __init__(self, weights)").replace(
        "super().__init__()", "super().__init__(); self.given = weights"))
    torch.save({}, tmp_path / "w.pth")
    model = egokit.load(f"{file}:Colours:{tmp_path / 'w.pth'}")
    assert model.given == str(tmp_path / "w.pth") and not model.training
    init = resolve("toy/egomcq", f"init={file}:Colours:w.pth site.weights={tmp_path}").init
    assert init == f"{file}:Colours:{tmp_path / 'w.pth'}" and weights.initial_model(
        resolve("toy/egomcq", f"init={init}")).given == str(tmp_path / "w.pth")


def test_its_size_must_be_the_recipes_before_and_in_a_job(mine, resolve):
    file, _ = mine
    config = resolve("toy/egomcq", f"init={file}:Colours model.image_size=224")
    with pytest.raises(ConfigError, match=r"takes frames of 64 px.*set model\.image_size=64"):
        preflight.expect_ready(config, "evaluate")
    with pytest.raises(ValueError, match=r"takes frames of 64 px.*set it to 64"):
        weights.initial_model(config)


def test_it_neither_trains_nor_fuses(mine, resolve, tmp_path):
    for recipe, action, message in (
            ("toy/ek100_finetune", "train", r"a model of your own, which egokit evaluates.*does not train"),
            ("toy/egotaskqa", "evaluate", r"EgoTaskQA"), ("toy/egonlq task.feature_kind=fused", "extract", "fus")):
        name, _, overrides = recipe.partition(" ")
        config = resolve(name, f"init={mine[0]}:Colours {overrides}")
        with pytest.raises(ValueError, match=message):
            egokit.submit(config, Run(tmp_path / "run"), action)
    assert not (tmp_path / "run/jobs").exists() or not [*(tmp_path / "run").rglob("spec.json")]


def test_a_job_executes_its_copy_and_says_of_which_file_it_is(mine, tmp_path):
    file, config = mine
    before = sources.fingerprint(config.init)
    code = code_snapshot.snapshot_code(tmp_path, keep=False, task=config.task.name, init=config.init)
    assert (code / "model/mine.py").read_text() == TEXT and not (code / "task").exists()
    file.write_text("edited = while queued")
    task = tasks.make(restore(to_dict(config), code), code=code)
    assert task.initial_model("evaluate").image_size == 64 and task.init_sha256() == before
    with pytest.raises(SyntaxError, match=r"mine\.py"):
        weights.initial_model(config)
    assert sources.fingerprint(config.init) != before
    assert code_snapshot.snapshot_code(tmp_path, keep=True, task=config.task.name, init=config.init) == code


def test_a_runs_model_of_somebody_else_is_not_executed(mine, tmp_path):
    config = mine[1]
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n{TEXT}")
    plain = to_dict(config)
    plain["init"] = f"{tmp_path / 'theirs.py'}:Colours"
    with pytest.raises(ConfigError, match=r"names the model '.*theirs\.py:Colours'.*not executed"):
        restore(plain)
    assert not (tmp_path / "executed").exists()
    trust.remember(hashlib.sha256((tmp_path / "theirs.py").read_bytes()).hexdigest())
    assert restore(plain).init == plain["init"]
    code = code_snapshot.snapshot_code(tmp_path / "job", keep=False, task="egomcq", init=plain["init"])
    (code / "model/theirs.py").write_text("# changed in the run's folder")
    with pytest.raises(ConfigError, match="holds code that this user's egokit has not made"):
        code_snapshot.snapshot_code(tmp_path / "job", keep=True, task="egomcq", init=plain["init"])


def test_an_edited_file_is_another_job(mine, tmp_path):
    (file, config), run = mine, Run(tmp_path / "run")
    before = preflight.starting_point(config)
    (run.path / "jobs/evaluate").mkdir(parents=True)
    (run.path / "jobs/evaluate/spec.json").write_text(json.dumps({
        "action": "evaluate", "config": to_dict(config), "task_sha256": "", "init_sha256": before}))
    run.write_metrics("evaluate", {"finished": True, "dual_inter": 1.0})
    assert egokit.submit(config, run, "evaluate").metrics()["dual_inter"] == 1.0
    file.write_text(TEXT + "# edited\n")
    with pytest.raises(ConfigError, match=rf"the checkpoint .*mine\.py:Colours itself: {before} -> "):
        egokit.submit(config, run, "evaluate")


def test_a_notebook_is_run_again_after_an_edit(mine, project):
    """`egokit run` skips a notebook that has run to its end, as long as the model's file is the same."""
    parameters = {"params": "toy/egomcq", "site": "tiny", "run_name": "edited", "overrides": f"init={mine[0]}:Colours"}
    path = headless.notebook_path("05_egomcq")
    config, folder = headless.resolve_notebook(path, parameters)
    run = Run(folder)
    shutil.copy(path, folder / NOTEBOOK)
    (folder / "params.yaml").write_text(to_yaml(config))
    run.write_metrics("egomcq", {"action": "evaluate", "init_sha256": sources.fingerprint(config.init)})
    assert headless.finished("05_egomcq", parameters)
    mine[0].write_text(TEXT + "# edited\n")
    assert not headless.finished("05_egomcq", parameters)
    mine[0].unlink()
    with pytest.raises(ConfigError, match=r"mine\.py is missing"):
        headless.finished("05_egomcq", parameters)


JOBS = {  # notebook: (recipe, action)
    "05_egomcq": ("toy/egomcq", "evaluate"), "03_ek100": ("toy/ek100_finetune", "evaluate"),
    "04_charades_ego": ("toy/charades_finetune", "evaluate"), "06_egomq_features": ("toy/egomq", "extract"),
    "08_egonlq": ("toy/egonlq", "extract"), "07_search": ("toy/search", "extract")}


@pytest.fixture(scope="module")
def jobs(project):
    """Every benchmark's job with the example, submitted to run at once: {notebook: (run, its metrics)}."""
    folder, handles = project / "docs/examples", {}
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(EXAMPLE, folder)
    for notebook, (recipe, action) in JOBS.items():
        run = egokit.open_run(recipe, "tiny", f"{SMALL} data.workers=0 data.limit=4 "
                              "init=docs/examples/own_model.py:Colours site.tokenizer=/nowhere", "own", notebook)
        section = tasks.find(run.config.task.name).actions()[action]
        handles[notebook] = run, egokit.submit(run.config, run, action, section)
    return {notebook: (run, handle.wait(progress=False)) for notebook, (run, handle) in handles.items()}


@pytest.mark.slow
def test_every_benchmark_runs_with_it_and_records_it(jobs, project):
    init = f"{project / 'docs/examples/own_model.py'}:Colours"
    for notebook, (run, metrics) in jobs.items():
        assert metrics["finished"] and metrics["init"] == init, notebook
        assert metrics["init_sha256"] == sources.fingerprint(init) == checkpoints.fingerprint(EXAMPLE)
        [copy] = run.path.glob("jobs/*/code/model/own_model.py")
        assert copy.read_text() == TEXT
    assert {"dual_inter", "dot_intra"} < jobs["05_egomcq"][1].keys() and "ensemble_intra" not in jobs["05_egomcq"][1]
    assert jobs["03_ek100"][1]["mAP"] > 0 and jobs["04_charades_ego"][1]["mAP"] > 0


@pytest.mark.slow
def test_its_features_and_its_index_name_it(jobs):
    for notebook in ("06_egomq_features", "08_egonlq", "07_search"):
        run, metrics = jobs[notebook]
        manifest = json.loads((run.path / "features/manifest.json").read_text())
        assert manifest["init"] == metrics["init"] and manifest["init_sha256"] == metrics["init_sha256"]
    run, _ = jobs["06_egomq_features"]
    for path in run.path.glob("features/*.pt"):
        feature = torch.load(path)
        assert feature.shape[1] == 6 and feature.isfinite().all()
    run, _ = jobs["07_search"]
    searcher = egokit.search.open_index(run.config, run)
    hits = searcher("#C C moves the red box", top=3)
    assert len(hits) == 3 and all(np.isfinite(hit.cosine) for hit in hits)


@pytest.mark.slow
def test_the_ledger_shows_it_and_a_second_submission_finds_it(jobs, project):
    rows = [entry for entry in ledger.read(project / "outputs").entries if entry.run == "03_ek100/own"]
    assert any(entry.value == jobs["03_ek100"][1][entry.result.metric] for entry in rows)
    run, metrics = jobs["03_ek100"]
    assert egokit.submit(run.config, run, "evaluate", "zeroshot").metrics() == metrics
    assert re.search(r"own_model\.py:Colours", json.dumps(run.metrics()))
