"""Every notebook, run by papermill on little data; metrics.json is what is checked."""
import base64
import json
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import pytest
import sweep_notebook
from conftest import MODEL, SMALL

from egokit.config.build import ConfigError
from egokit.notebook import headless
from egokit.runs.run_folder import Run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run_notebook(project):
    """Run a notebook once for this module; later notebooks find its checkpoints."""
    done = {}

    def run(name, overrides="", run_name="small"):
        if name not in done:
            path = headless.execute(name, {"site": "tiny", "run_name": run_name, "overrides": overrides}, timeout=900)
            done[name] = nbformat.read(path, as_version=4), Run(path.parent)
        return done[name]
    return run


HEAD = "task.dim=16 task.levels=3 train.epochs=2 train.evaluate_epochs=2"  # of a head on stored features


def scored(task: str, path) -> dict:
    """Return what `egokit score` says of a file of results."""
    told = subprocess.run([sys.executable, "-m", "egokit.cli", "score", task, str(path), "--site", "tiny", "--json"],
                          capture_output=True, text=True, check=True, timeout=100)
    return json.loads(told.stdout)


def assert_finished(name: str, run) -> None:
    """Assert that the demo would not run the notebook again, but if the features were others."""
    parameters = {"site": "tiny", "run_name": "small", "overrides": f"launch.tasks_per_node=2 {HEAD}"}
    assert headless.finished(name, parameters)
    manifest = run.path / "features/manifest.json"
    text = manifest.read_text()
    manifest.write_text(text + "\n")
    assert not headless.finished(name, parameters)
    manifest.write_text(text)


def errors(book):
    return [output for cell in book.cells for output in cell.get("outputs", []) if output.output_type == "error"]


def html_outputs(book) -> list[str]:
    return ["".join(output["data"].get("text/html", "")) for cell in book.cells for output in cell.get("outputs", [])
            if "data" in output]


def test_01_data_prep(run_notebook, project):
    book, run = run_notebook("01_data_prep")
    counts = run.metrics()["prepared"]
    manifest = json.loads((project / "outputs/toy/prepared.json").read_text())
    assert counts["ego4d_videos"] == manifest["videos"] == 9 and counts["ek100_test_clips"] > 0 and not errors(book)
    assert (run.path / "figures/narrations.png").stat().st_size > 10_000


def test_02_pretrain(run_notebook):
    book, run = run_notebook("02_pretrain", f"{SMALL} {MODEL} launch.tasks_per_node=2 train.epochs=2")
    metrics = run.metrics()["pretrain"]
    assert metrics["finished"] and metrics["steps"] == 6 and metrics["processes"] == 2 and not errors(book)
    assert {f"{score}_{kind}" for score in ("dual", "fusion", "ensemble")
            for kind in ("inter", "intra", "verb_only")} <= metrics.keys()
    figures = {path.stem for path in (run.path / "figures").iterdir()}
    assert figures >= {"batch", "curves", "predictions", "questions-pretrain"}
    assert {path.name for path in run.checkpoints.iterdir()} == {"best.pt", "step-0000003.pt", "step-0000006.pt"}
    assert "name: egoclip" in (run.path / "params.yaml").read_text()
    train = next(cell for cell in book.cells if "viz.watch(" in cell.source)
    shown = [output["data"] for output in train.outputs if "data" in output]
    assert len(shown) == 2, "each figure once, however often drawn"
    for data, name in zip(shown, ("curves", "predictions"), strict=True):
        assert base64.b64decode(data["image/png"]) == (run.path / f"figures/{name}.png").read_bytes()
        alternative, = re.findall('<img alt="(.+?)".* src="data:image/webp;base64,', data["text/html"])
        assert "02_pretrain" in alternative


@pytest.mark.parametrize("name", ["03_ek100", "04_charades_ego"])
def test_retrieval_notebooks(run_notebook, name):
    run_notebook("02_pretrain", f"{SMALL} {MODEL} launch.tasks_per_node=2 train.epochs=2")
    options = {"03_ek100": "task.retrieval_loss=symmetric_multi_similarity task.dual_softmax=0.05",
               "04_charades_ego": ""}[name]
    book, run = run_notebook(name, f"launch.tasks_per_node=2 train.epochs=1 train.batch_size=8 data.limit=16 {options}")
    metrics = run.metrics()
    assert not errors(book) and {"chance", "zeroshot", "finetune"} <= metrics.keys()
    assert all(0 < metrics[section]["mAP"] <= 100 for section in ("chance", "zeroshot", "finetune"))
    for section in ("zeroshot", "finetune"):
        assert metrics[section]["samples"] == metrics[section]["expected"] and metrics[section]["failed"] == 0
        recipe, trained = metrics[section]["recipe"], section == "finetune"
        assert recipe.get("train.epochs") == recipe.get("selection.validations") == (1 if trained else None)
        if options:
            assert 0 < metrics[section]["mAP_dual_softmax"] <= 100 and recipe["task.dual_softmax"] == 0.05
            assert recipe["task.retrieval_loss"] == "symmetric_multi_similarity", "own keys are recorded of both"
        else:
            assert len((run.path / f"submission-{section}.txt").read_text().splitlines()) == metrics[section]["samples"]
    figure = {"03_ek100": "words.png", "04_charades_ego": "average-precisions.png"}[name]
    assert (run.path / "figures" / figure).stat().st_size > 10_000
    assert metrics["zeroshot"]["init_sha256"] == metrics["finetune"]["init_sha256"] != ""
    page = (run.path / "figures/browser-finetune.html").read_text()
    assert page.count("<details") > 5 and "data:image/jpeg" in page and "gained most over zeroshot" in page
    assert (run.path / "figures/retrieved-zeroshot.png").exists()
    assert any("<details" in text for text in html_outputs(book)), "the browser is in the saved notebook"


def test_05_egomcq_07_search_and_00_quickstart(run_notebook):
    run_notebook("02_pretrain", f"{SMALL} {MODEL} launch.tasks_per_node=2 train.epochs=2")
    book, run = run_notebook("05_egomcq", "launch.tasks_per_node=2")
    metrics = run.metrics()
    assert not errors(book) and metrics["egomcq"]["samples"] == 32
    assert (run.path / "figures/words-egomcq.png").stat().st_size > 10_000
    assert "fusion corrects dual" in (run.path / "figures/browser-egomcq.html").read_text()
    assert metrics["chance"]["inter"] == pytest.approx(20, abs=2)
    book, run = run_notebook("07_search_your_videos", "launch.tasks_per_node=2 data.limit=3")
    metrics = run.metrics()["index"]
    assert not errors(book) and metrics["clips"] > 30
    assert metrics["videos"] == 3 == len(list((run.path / "features").glob("*.npy")))
    assert len(list((run.path / "clips").glob("*.mp4"))) == 3
    hits = len((run.path / "hits.csv").read_text().splitlines()) - 1
    assert 3 <= hits <= 12, "moments of three videos"
    embedded = sum(text.count('src="data:video/mp4;base64,') for text in html_outputs(book))
    assert hits < embedded <= hits + 6, "the clips are in the saved notebook, and those like the best"
    book, run = run_notebook("00_quickstart")
    assert not errors(book) and len(run.metrics()["quickstart"]["match"]) == 5
    figures = {path.name for path in (run.path / "figures").iterdir()}
    assert figures == {"question.png", "fusion.png", "reranked.png", "published.png"}


def test_06_egomq_features_and_detections(run_notebook):
    run_notebook("02_pretrain", f"{SMALL} {MODEL} launch.tasks_per_node=2 train.epochs=2")
    book, run = run_notebook("06_egomq_features", f"launch.tasks_per_node=2 {HEAD}")
    metrics, manifest = run.metrics(), json.loads((run.path / "features/manifest.json").read_text())
    files = list((run.path / "features").glob("*.pt"))
    assert not errors(book) and metrics["features"]["clips"] == len(manifest["clips"]) == len(files)
    shown = str([cell.get("outputs") for cell in book.cells])
    assert "manifest.json" in shown and "notebook.failed" not in shown, "files of the unfinished run are not listed"
    trained = metrics["detection"]
    assert trained["finished"] and trained["steps"] == 2 and 0 <= metrics["chance"]["mAP"] < 100
    told = scored("mq", run.path / "submission_val.json")["detections"]
    assert told["average_map"] == pytest.approx(trained["mAP"])
    assert len(json.loads((run.path / "submission.json").read_text())["detect_results"]) > 0
    assert {path.name for path in (run.path / "figures").iterdir()} >= {
        "curves.png", "detections.png", "detections-per-class.png", "false-positives.png"}
    assert_finished("06_egomq_features", run)


def test_08_egonlq_answers_questions(run_notebook):
    run_notebook("02_pretrain", f"{SMALL} {MODEL} launch.tasks_per_node=2 train.epochs=2")
    book, run = run_notebook("08_egonlq", f"launch.tasks_per_node=2 {HEAD}")
    metrics = run.metrics()
    assert not errors(book) and metrics["features"]["questions"] > 30
    trained = metrics["grounding"]
    assert trained["finished"] and trained["unanswered"] == 0 and {"R@1_0.3", "original_R@5_0.5"} <= trained.keys()
    assert 0 < metrics["chance"]["R@5_0.3"] < 100
    told = scored("nlq", run.path / "nlq_predictions.json")["recall"]["0.3"]
    assert told == {f"R@{k}": pytest.approx(trained[f"R@{k}_0.3"]) for k in (1, 3, 5)}
    page, = (run.path / "figures").glob("question-*.html")
    embedded = [sum(text.count('src="data:video/mp4;base64,') for text in texts)
                for texts in ([page.read_text()], html_outputs(book))]
    assert embedded == [3, 3], "the page and the saved notebook play"
    assert {"curves.png", "answers.png"} <= {path.name for path in (run.path / "figures").iterdir()}
    assert any("Objects: " in text for text in html_outputs(book)), "recalls by the kind of the question"
    assert_finished("08_egonlq", run)


def test_09_egotaskqa_answers_in_words(run_notebook):
    run_notebook("02_pretrain", f"{SMALL} {MODEL} launch.tasks_per_node=2 train.epochs=2")
    overrides = "launch.tasks_per_node=2 train.epochs=2 train.evaluate_epochs=1"
    book, run = run_notebook("09_egotaskqa", overrides)
    metrics = run.metrics()
    assert not errors(book) and metrics["vectors"]["questions"] > 100
    trained, chance = metrics["headtune"], metrics["chance"]
    assert trained["finished"] and {"direct_open", "direct_binary", "val_direct_all"} <= trained.keys()
    counts = {name: value for name, value in trained.items() if name.startswith("questions/")}
    assert counts and counts == {name: chance[name] for name in counts}
    assert {"asked-train.png", "curves.png", "kinds-headtune.png", "answer-attention.png"} <= {
        path.name for path in (run.path / "figures").iterdir()}
    page, = (run.path / "figures").glob("question-*.html")
    embedded = [sum(text.count('src="data:video/mp4;base64,') for text in texts)
                for texts in ([page.read_text()], html_outputs(book))]
    assert embedded == [1, 5], "four answered questions and the typed one play"
    assert any("taken for" in text for text in html_outputs(book))
    assert headless.finished("09_egotaskqa", {"site": "tiny", "run_name": "small", "overrides": overrides})


def test_11_compare_runs(run_notebook, project):
    run_notebook("02_pretrain", f"{SMALL} {MODEL} launch.tasks_per_node=2 train.epochs=2")
    run_notebook("09_egotaskqa", "launch.tasks_per_node=2 train.epochs=2 train.evaluate_epochs=1")
    sweep_notebook.check(*run_notebook("11_compare_runs", "train.epochs=2"), project)


def test_no_epochs_give_chance(project):
    """Without training, the same notebook reaches chance: its numbers do come from training."""
    import numpy as np

    from egokit import tasks
    from egokit.jobs import launch
    from egokit.tasks.metrics import accuracy
    overrides = f"{SMALL} {MODEL} train.epochs=0 data.limit=0"
    headless.execute("02_pretrain", {"site": "tiny", "run_name": "untrained", "overrides": overrides})
    run = Run(project / "outputs/02_pretrain/untrained")
    assert run.metrics()["pretrain"]["steps"] == 0
    from egokit.config.resolve import resolve
    task = tasks.make(resolve("toy/egomcq", "tiny", "", "untrained"))
    scores = task.score_matrix(run.read_rows("pretrain")[0])["ensemble"]
    count = len(task.answers)
    right = accuracy(scores, task.answers) / 100 * count
    assert abs(right - 0.2 * count) < 3.5 * np.sqrt(0.16 * count), "further from chance than luck explains"
    assert launch.Handle(run, "pretrain").state() == "finished"


def test_unknown_parameters_and_values_stop_before_anything_runs(project):
    with pytest.raises(ConfigError, match="'parms': did you mean 'params'"):
        headless.execute("05_egomcq", {"parms": "toy/egomcq"})
    with pytest.raises(ConfigError, match="no notebook '19'"):
        headless.execute("19", {})
    with pytest.raises(ConfigError, match=r"train\.epoch.*did you mean 'epochs'"):
        headless.execute("05_egomcq", {"site": "tiny", "overrides": "train.epoch=1"})
    book = nbformat.read(project / "notebooks/05_egomcq.ipynb", as_version=4)
    mine = project / "notebooks/08_mine.ipynb"
    tagged = next(cell for cell in book.cells if "parameters" in cell.metadata.get("tags", []))
    tagged.source += '\nsite, run_name = "tiny", "mine"'
    nbformat.write(book, mine)
    with pytest.raises(ConfigError, match=r"08_mine.*its cell of parameters has more"):
        headless.execute("08_mine", {})
    mine.unlink()


def test_plain_papermill_with_a_misspelt_parameter_fails(project):
    import papermill
    message = "unknown notebook parameter 'parms': did you mean 'params'"
    with pytest.raises(papermill.PapermillExecutionError, match=message):
        papermill.execute_notebook(str(project / "notebooks/05_egomcq.ipynb"), str(project / "out.ipynb"),
                                   parameters={"parms": "toy/egomcq", "site": "tiny"}, cwd=str(project),
                                   progress_bar=False)


def test_a_failing_notebook_is_saved_and_named(project):
    with pytest.raises(headless.NotebookFailed, match=r"(?s)05_egomcq.*never.*notebook\.failed\.ipynb"):
        headless.execute("05_egomcq", {"site": "tiny", "run_name": "failing",
                                       "overrides": "init=run:02_pretrain/never"})
    folder = project / "outputs/05_egomcq/failing"
    assert (folder / "notebook.failed.ipynb").exists() and not (folder / "notebook.ipynb").exists()
    assert not headless.finished("05_egomcq", {"site": "tiny", "run_name": "failing"})


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_and_run_again(project, sign):
    """After Ctrl-C or kill -9 while it trains, the same command finishes the same run."""
    run = Run(project / "outputs/02_pretrain" / f"interrupted-{sign.name}")
    overrides = f"{SMALL} {MODEL} train.epochs=4 train.checkpoint_steps=1"
    command = [sys.executable, "-m", "egokit.cli", "run", "02_pretrain", "--site", "tiny", "--run", run.path.name,
               "--overrides", overrides]
    first = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not any(event["kind"] == "step" for event in run.read_log()):
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.05)
    os.killpg(first.pid, sign)
    first.wait(timeout=60)
    assert not (run.path / "notebook.ipynb").exists()
    second = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert second.returncode == 0, second.stderr[-2000:]
    steps = [event["step"] for event in run.read_log() if event["kind"] == "step"]
    assert steps == list(range(1, 13)) and run.metrics()["pretrain"]["steps"] == 12
    assert (run.path / "notebook.ipynb").exists()
