"""Fixtures: a tiny embedded data set, prepared once per session, in a project folder."""
import ctypes
import gc
import os
import shutil
import signal
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# a shell's background job ignores SIGINT, and so would the programs that tests start and interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)
pytest.register_assert_rewrite("annotation_files", "full_videos", "training")  # failed checks show their values


def pytest_terminal_summary(terminalreporter):
    """Report skipped tests loudly: a test that did not run must not look passed."""
    skipped = terminalreporter.stats.get("skipped", [])
    for reason in sorted({str(report.longrepr[2]) for report in skipped}):
        count = sum(str(report.longrepr[2]) == reason for report in skipped)
        terminalreporter.write_line(f"{count} TESTS DID NOT RUN. {reason}", red=True, bold=True)


@pytest.fixture(scope="session", autouse=True)
def record_of_code(tmp_path_factory):
    """Keep the record of the code that tests copy out of the developer's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """A project folder: copied params and notebooks, a tiny prepared data set, own outputs."""
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
    site["site"]["toy"] = False  # it is made above, in another size than the site would make
    (folder / "params/sites/tiny.yaml").write_text(yaml.safe_dump(site))
    from egokit import prep
    from egokit.config.resolve import resolve
    prep.prepare(resolve("toy/pretrain", "tiny"), progress=False)
    yield folder
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def resolve(project):
    """A function that resolves a toy recipe on the tiny data set, shrunken."""
    from egokit.config.resolve import resolve

    def shrunken(params="toy/pretrain", overrides="", run="test"):
        return resolve(params, "tiny", f"{SMALL} {overrides}", run)
    return shrunken


SMALL = "data.limit=24 train.epochs=1 train.batch_size=8 launch.tasks_per_node=1 train.log_steps=1"
MODEL = "model.width=32 model.heads=2 model.depth=2 model.num_fused_layers=1 model.projection=linear16"


def opened(config):
    """A model with open gates and random weights, so that every score depends on everything."""
    import torch

    from egokit.model import weights
    model = weights.initial_model(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(0.7)
            elif parameter.dim() > 1:
                parameter.mul_(2)
    return model


@pytest.fixture(scope="session")
def checkpoint(project):
    """A checkpoint of random weights, from which the recipes of run "random" start."""
    from egokit.config.resolve import resolve
    from egokit.model import weights
    path = project / "outputs/02_pretrain/random/checkpoints/best.pt"
    path.parent.mkdir(parents=True)
    weights.save(opened(resolve("toy/pretrain", "tiny", MODEL)), path)
    return path


@pytest.fixture
def copied(project, tmp_path):
    """(config -> config on a copy of the tiny data set, its root); tests may damage the copy."""
    import dataclasses
    root = tmp_path / "root"
    shutil.copytree(project / "outputs/toy", root)
    return lambda config: dataclasses.replace(config, site=dataclasses.replace(config.site, root=str(root))), root


@pytest.fixture(scope="module")
def chromium():
    """Debian's headless Chromium, for one test file.

    Playwright's event loop must end with the file: while it runs, no other event loop, such as papermill's, can run.
    """
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
    """A function: kind -> a file in the released format, written once per session."""
    from golden_inputs import release
    folder = tmp_path_factory.mktemp("released")
    return lambda kind: release(folder, kind)


@pytest.fixture(scope="module", autouse=True)
def free_memory():
    """Give freed memory back after a file of tests: full-size models' stays in glibc's heap, 15 GB a worker.

    After most files there is nothing to give back, and looking for it takes a third of a second.
    """
    yield
    resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    if (resident - shared) * os.sysconf("SC_PAGE_SIZE") > 1.5 * 2**30:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(autouse=True)
def threads(request):
    """All cores for tests of the full-size model, else one: tests share the machine."""
    import torch
    torch.set_num_threads(os.cpu_count() if "released" in request.fixturenames else 1)


def rarest(table) -> str:
    """Return the video with the fewest rows of an EgoClipTable, the first by its name of several."""
    import numpy as np
    return min(zip(np.bincount(table.columns["video_uid"]), table.videos, strict=True))[1]


def board_of(run) -> dict[str, list[tuple[int, float]]]:
    """Return all points of a run as TensorBoard reads them: {name: [(step, value), ...]}."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(run.path), size_guidance={"scalars": 0}).Reload()  # 0: no points are thinned out
    return {name: [(point.step, point.value) for point in events.Scalars(name)] for name in events.Tags()["scalars"]}
