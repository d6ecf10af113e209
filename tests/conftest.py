"""Fixtures: a tiny embedded data set, prepared once for the whole session, and a project folder around it."""
import os
import shutil
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_terminal_summary(terminalreporter):
    """A test that did not run must not look passed."""
    left_out = terminalreporter.stats.get("skipped", [])
    for why in sorted({str(report.longrepr[2]) for report in left_out}):
        count = sum(str(report.longrepr[2]) == why for report in left_out)
        terminalreporter.write_line(f"{count} TESTS DID NOT RUN. {why}", red=True, bold=True)


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """A project folder: this one's params and notebooks, a tiny prepared data set, its own outputs."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "params", folder / "params")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (folder / "outputs").mkdir()
    before = dict(os.environ)
    os.environ["EGOKIT_HOME"] = str(folder)
    os.environ.pop("EGOKIT_OUTPUTS", None)
    from egokit import toy
    toy.make(folder / "outputs" / "toy", size="tiny")
    site = yaml.safe_load((folder / "params/sites/toy.yaml").read_text())
    site["site"]["toy"] = False  # made above, at another size than the site would make it
    (folder / "params/sites/tiny.yaml").write_text(yaml.safe_dump(site))
    from egokit import prep
    from egokit.config.resolve import resolve
    prep.prepare(resolve("toy/pretrain", "tiny"), progress=False)
    yield folder
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def resolve(project):
    """The toy's recipes on the tiny data set, shrunken."""
    from egokit.config.resolve import resolve

    def shrunken(params="toy/pretrain", overrides="", run="test"):
        return resolve(params, "tiny", f"{SMALL} {overrides}", run)
    return shrunken


SMALL = "data.limit=24 train.epochs=1 train.batch_size=8 launch.tasks_per_node=1 train.log_steps=1"
MODEL = "model.width=32 model.heads=2 model.depth=2 model.num_fused_layers=1 model.projection=linear16"


def opened(config):
    """A model with open gates and random weights, so that every score depends on everything."""
    import torch

    from egokit.train import loop
    model = loop.initial_model(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(0.7)
            elif parameter.dim() > 1:
                parameter.mul_(2)
    return model


@pytest.fixture(scope="session")
def checkpoint(project):
    """What recipes of the run "random" start from."""
    from egokit.config.resolve import resolve
    from egokit.model import weights
    path = project / "outputs/02_pretrain/random/checkpoints/best.pt"
    path.parent.mkdir(parents=True)
    weights.save(opened(resolve("toy/pretrain", "tiny", MODEL)), path)
    return path


@pytest.fixture
def copied(project, tmp_path):
    """(config -> the same on a copy of the tiny data set that may be damaged, the copy's root)."""
    import dataclasses
    root = tmp_path / "root"
    shutil.copytree(project / "outputs/toy", root)
    return lambda config: dataclasses.replace(config, site=dataclasses.replace(config.site, root=str(root))), root


@pytest.fixture(scope="module")
def chromium():
    """Debian's Chromium, headless, for one file: while Playwright's loop runs no other, such as papermill's, can."""
    program = shutil.which("chromium")
    if not program:
        missing = "Chromium is not installed: tests/browser.sh"
        pytest.fail(missing) if os.environ.get("EGOKIT_BROWSER") == "required" else pytest.skip(missing)
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def released(tmp_path_factory):
    """kind -> a file in the released format, written once for the session."""
    from golden_inputs import release
    folder = tmp_path_factory.mktemp("released")
    return lambda kind: release(folder, kind)


@pytest.fixture(autouse=True)
def threads(request):
    """All cores for tests of the full-size model, one otherwise: processes of tests share the machine."""
    import torch
    torch.set_num_threads(os.cpu_count() if "released" in request.fixturenames else 1)


def rarest(table) -> str:
    """The video with the fewest rows of an EgoClipTable."""
    import numpy as np
    return table.videos[np.bincount(table.columns["video_uid"]).argmin()]


def board_of(run) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's points of a run, read by TensorBoard: {name: [(step, value), ...]}, none thinned out."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    read = EventAccumulator(str(run.path), size_guidance={"scalars": 0}).Reload()
    return {name: [(point.step, point.value) for point in read.Scalars(name)] for name in read.Tags()["scalars"]}
