"""Where one stands, and the next command: what `egokit` without arguments prints."""
import collections
import importlib.metadata
import os
import platform
import shutil
from pathlib import Path

import egokit
from egokit.config.access import is_there
from egokit.config.build import ConfigError, build, flatten, nest
from egokit.config.names import printable
from egokit.config.resolve import absolute, outputs_folder, project_root, read_yaml
from egokit.config.schema import SiteConfig
from egokit.data.annotation_tables import EK100_ANNOTATIONS
from egokit.data.relevancy import relevancy_path
from egokit.jobs import devices, runs_table, status
from egokit.notebook.demo import notebook_names
from egokit.prep import PARTS
from egokit.runs.explain import explained, shortened
from egokit.runs.run_folder import NOTEBOOK

TEMPLATES = ("example", "cluster_example")  # sites to copy
SHOWN = 3  # runs that are named
NUMBERS = {  # of each prepared data set, the command that gives a published number, without a training
    "ego4d": "egokit run 05_egomcq --params egomcq --site {} --run released",
    "ek100": "egokit compare 03_ek100 --site {} --init EgoVLPv2_smallproj.pth",
    "charades": "egokit compare 04_charades_ego --site {} --init EgoVLPv2_smallproj_epoch1.pth"}


def overview() -> str:
    """Describe the environment, the GPU, the sites, what is prepared and the runs, and name the next command.

    Nothing is changed, and PyTorch isn't imported.

    Raises:
        ConfigError: there is no project's folder here.
    """
    own = sorted(path.stem for path in (project_root() / "params/sites").glob("*.yaml")
                 if path.stem not in ("toy", *TEMPLATES))
    sites, rows = {name: site_line(name) for name in ("toy", *own)}, runs_table.job_rows()
    next_ones = next_commands(rows, {name: ready for name, (_, ready) in sites.items()})
    lines = [("egokit", environment()), ("GPU", gpu_line()), ("project", str(project_root())),
             *((f"site {name}", line) for name, (line, _) in sites.items()),
             *(("runs", line) for line in run_lines(rows)), *(("next", line) for line in next_ones)]
    width, before, text = max(len(label) for label, _ in lines) + 2, None, []
    for label, line in lines:
        text.append(printable(f"{'' if label == before else label:{width}}{line}"))
        before = label
    return "\n".join(text)


def environment() -> str:
    """Return the versions, and this machine's cores, memory and free disk."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    folder = next(path for path in (outputs_folder(), *outputs_folder().parents) if path.is_dir())
    cluster = "; SLURM is here" if shutil.which("sbatch") else ""
    return (f"{egokit.__version__}, Python {platform.python_version()}, torch {importlib.metadata.version('torch')}; "
            f"{len(os.sched_getaffinity(0))} CPU cores, {memory:.0f} GB of memory, "
            f"{shutil.disk_usage(folder).free / 1e9:,.0f} GB free for outputs{cluster}")


def gpu_line() -> str:
    """Return the GPUs that a process sees, or why it sees none."""
    gpus = devices.list_gpus()
    if visible := devices.visible_gpus(gpus):
        return "; ".join(map(str, visible))
    if gpus:
        return f"{len(gpus)}, hidden by {devices.VISIBLE_DEVICES}={os.environ.get(devices.VISIBLE_DEVICES)!r}"
    return "none: the demo and evaluations run on the CPU; a training on real data wants one"


def site_line(name: str) -> tuple[str, list[str]]:
    """Return what a site has, in words, and which data sets are prepared."""
    folder = project_root()
    try:
        values = nest(flatten(read_yaml(name, folder / "params/sites", "site"))).get("site") or {}
        if not isinstance(values, dict):
            raise ConfigError(f"site (in site {name}): expected keys with values below it, got {values!r}")
        site = build(SiteConfig, values, "site", f" (in site {name})")
        return _contents(site, Path(absolute(site.root, folder)))
    except (ConfigError, OSError) as error:
        return shortened(str(explained(error)).splitlines()[0]), []


def _contents(site: SiteConfig, root: Path) -> tuple[str, list[str]]:
    if not site.root or not is_there(root):
        return ("the embedded data set, not made yet" if site.toy else
                f"{site.root or 'site.root is not set'}: no such folder"), []
    made = {"ego4d": root / "prepared.json", "charades": root / PARTS["charades"] / "metadata_test.csv",
            "ek100": relevancy_path(root / EK100_ANNOTATIONS / "relevancy", "test")}  # what prep writes last, of each
    prepared = [part for part in PARTS if is_there(made[part])]
    waiting = [part for part, path in PARTS.items() if is_there(root / path) and part not in prepared]
    words = "; ".join(f"{title}: {', '.join(parts)}" for title, parts in (("prepared", prepared),
                                                                          ("to prepare", waiting)) if parts)
    return f"{root}; {words or 'none of the data sets that egokit prepares'}", prepared


def run_lines(rows: list[runs_table.JobRow]) -> list[str]:
    """Return how many jobs are in which state, and the newest ones that have not finished."""
    if not rows:
        return ["none yet"]
    counts = collections.Counter(row.state for row in rows)
    lines = [", ".join(f"{number} {state}" for state, number in counts.most_common())]
    for row in [row for row in rows if row.state != "finished"][:SHOWN]:
        step = f" at step {row.step} of {row.steps}" if row.steps else ""
        left = "" if row.left_s is None else f", {status.duration(row.left_s)} left"
        lines.append(f"{row.notebook}/{row.run}, {row.section}: {row.state}{step}{left}"
                     f"{f': {row.detail}' if row.detail else ''}")
    return lines


def next_commands(rows: list[runs_table.JobRow], ready: dict[str, list[str]]) -> list[str]:
    """Return the commands to go on with, each with what it does.

    Args:
        ready: of each site, which data sets are prepared.
    """
    notebooks, own = notebook_names(), [name for name in ready if name != "toy"]
    done = sum(is_there(outputs_folder() / name / "demo" / NOTEBOOK) for name in notebooks)
    commands = {}
    if any(row.state in ("failed", "unreadable") for row in rows):
        commands["egokit runs"] = "every job, and why it failed; docs/troubleshooting.md says what to do"
    elif any(row.state != "finished" for row in rows):
        commands["egokit runs"] = "every job, and how far it is"
    if done < len(notebooks):
        commands["make demo"] = "every notebook on the embedded data set, in about 15 minutes" + (
            f"; {done} of {len(notebooks)} are done, and it goes on" if done else "")
    else:
        commands["make lab"] = "the notebooks in JupyterLab: look at 00_quickstart, change 10_change_something"
    if not own:
        commands["cp params/sites/example.yaml params/sites/local.yaml"] = "then put your data's folders into it"
    elif not any(ready[name] for name in own):
        commands[f"egokit doctor --site {own[0]}"] = "what it has, what it lacks, and who provides it"
    else:
        site = next(name for name in own if ready[name])
        part = next(part for part in NUMBERS if part in ready[site])
        commands[NUMBERS[part].format(site)] = "a published number"
    commands["egokit --help"] = "every command"
    width = max(map(len, commands)) + 2
    return [f"{command:{width}}{meaning}" for command, meaning in commands.items()]
