"""What each subcommand of `egokit` does: one function each, a thin layer on the package."""
import json
import sys
from pathlib import Path

from egokit.config.build import ConfigError


def overview(arguments) -> None:
    from egokit.prep import overview as standing
    print(standing.overview())


def demo(arguments) -> None:
    from egokit.notebook import demo as all_notebooks
    all_notebooks.run(arguments.run, arguments.overrides)


def toy(arguments) -> None:
    from egokit import toy as embedded
    print(embedded.make(arguments.root, seed=arguments.seed, size=arguments.size))


def prep(arguments) -> None:
    from egokit.prep import command as preparation
    preparation.prepare(arguments)


def run(arguments) -> None:
    from egokit.notebook import batch
    from egokit.notebook.open_run import PARAMETERS
    parameters = {key: value for key, value in vars(arguments).items() if key in PARAMETERS and value is not None}
    seconds = arguments.timeout and 60 * arguments.timeout
    notebooks = batch.check_notebooks(arguments.notebooks, parameters, seconds, arguments.side_by_side)
    if arguments.submit:
        print(batch.submit(notebooks))
    elif exit_code := batch.run(notebooks):
        sys.exit(exit_code)


def compare(arguments) -> None:
    from egokit.notebook import compare as comparison
    if exit_code := comparison.run(comparison.check(arguments), arguments.wait, arguments.side_by_side):
        sys.exit(exit_code)


def submit(arguments) -> None:
    from egokit import tasks
    from egokit.config.registry import notebook_of
    from egokit.config.resolve import outputs_folder, resolve
    from egokit.jobs import launch, preflight
    from egokit.notebook.open_run import open_run
    from egokit.train.batch_plan import check_batch
    config = resolve(arguments.params, arguments.site, arguments.overrides, arguments.run)
    notebook, actions = notebook_of(config), tasks.find(config.task.name).actions()
    action = arguments.action or next(iter(actions))
    if action not in actions:
        raise ConfigError(f"task {config.task.name!r} has no action {action!r}: expected {' or '.join(actions)}")
    if arguments.print:
        folder = outputs_folder() / notebook / arguments.run
        return print(launch.sbatch_script(config, folder, action, actions[action]))
    preflight.tell_toy_site(config, arguments.params)
    check_batch(config, action)  # before the run's folder is made
    run = open_run(arguments.params, arguments.site, arguments.overrides, arguments.run, notebook)
    job = launch.submit(config, run, action, actions[action])
    print(job)
    if arguments.wait:
        print(json.dumps(job.wait(), indent=1))


def sweep(arguments) -> None:
    from egokit.jobs import sweep as sweeps
    sweeps.command(arguments)


def profile(arguments) -> None:
    from egokit.config.registry import notebook_of
    from egokit.config.resolve import outputs_folder, resolve
    from egokit.jobs import preflight, profiling
    config = resolve(arguments.params, arguments.site, arguments.overrides, arguments.run)
    preflight.tell_toy_site(config, arguments.params)
    job = profiling.submit(config, outputs_folder() / notebook_of(config) / arguments.run, arguments.steps)
    job.wait()
    print(f"{(job.run.path / profiling.TABLE).read_text()}\n{job.run.path}: the trace, for ui.perfetto.dev, and all "
          "operations as a CSV file")


def search(arguments) -> None:
    from egokit.search import command
    command.answer(arguments)


def score(arguments) -> None:
    from egokit.tasks import score as scores
    scores.run(arguments)


def runs(arguments) -> None:
    from egokit.jobs import runs_table
    print(runs_table.format_table(runs_table.job_rows(arguments.outputs)))


def trust(arguments) -> None:
    from egokit.jobs.code_snapshot import trust_code
    print(*trust_code(Path(arguments.folder)), sep="\n")


def doctor(arguments) -> None:
    from egokit.config.resolve import resolve
    from egokit.prep import doctor as site_doctor
    config = resolve(arguments.params, arguments.site, arguments.overrides)
    findings = site_doctor.examine(config, 0 if arguments.all else site_doctor.SAMPLE, ["speed"] * arguments.speed)
    print(f"site {config.site.name}: {config.site.root}\n\n{site_doctor.format_findings(findings)}")
    sys.exit(0 if site_doctor.is_sound(findings) else 1)


def ledger(arguments) -> None:
    from egokit.runs.ledger import read
    from egokit.runs.ledger_table import format_ledger
    print(format_ledger(read(arguments.outputs)))


def convert(arguments) -> None:
    from egokit.model import weights
    out = Path(arguments.out)
    suffixes = (".pth", ".pt", ".tar") if arguments.command == "export" else (".safetensors", ".pt", ".pth")
    if out.suffix not in suffixes:
        raise weights.WeightsError(f"{out}: expected a name that ends in {', '.join(suffixes)}")
    if out.exists() and not arguments.force:
        raise weights.WeightsError(f"{out} exists: give another name, or --force to replace it")
    model = weights.load(arguments.source, frames=arguments.frames)
    (weights.export if arguments.command == "export" else weights.save)(model, out)
    print(f"{out}: {len(model.state_dict())} tensors, projection {model.config.projection}, "
          f"{model.config.frames} frames, {out.stat().st_size / 1e9:.2f} GB")


def export(arguments) -> None:
    convert(arguments)
