"""`egokit sweep`: one recipe at several settings and seeds, each an ordinary run in a folder of its own.

On SLURM the runs are one job array; on this machine they run one after another, or several side by side. What has
finished is not repeated, what runs is attached to, and only the rest is submitted.
"""
import argparse
import collections
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable

from egokit.config.build import ConfigError, to_dict
from egokit.config.names import printable
from egokit.jobs import code_snapshot, grid, launch, queue, slurm, starter, status
from egokit.jobs.handle import Handle, JobFailed
from egokit.jobs.preflight import expect_ready, starting_point, tell_toy_site
from egokit.runs.explain import explained
from egokit.runs.files import locked, write_text
from egokit.runs.run_folder import Run
from egokit.runs.run_set import SWEEP_FILE, read_sweep
from egokit.train.batch_plan import check_batch

POLL = 0.5  # seconds between two looks at this machine's jobs; SLURM is asked 60 times less often
ERRORS = (ValueError, OSError, JobFailed, starter.NotSubmitted)  # of one run, which stop no other


class Sweep:
    """The jobs of a sweep.

    Attributes:
        grid: what is swept, and the runs.
        ended: {run: why it has no result, or ""}, of the jobs that were followed to their end.
    """

    def __init__(self, runs: grid.Grid):
        self.grid, self.ended = runs, {}

    @property
    def failed(self) -> dict[str, str]:
        """{run: why it has no result} of the jobs that were followed to their end."""
        return {run: why for run, why in self.ended.items() if why}

    def __repr__(self) -> str:
        with queue.asked_once(slurm_jobs(self.grid)):
            return "\n".join([f"sweep {self.grid.name} in {self.grid.folder.parent}:",
                              *(f"  {handle}" for handle in map(self.handle, self.grid.points))])

    def handle(self, point: grid.Point) -> Handle:
        """Return a run's job."""
        run = Run(self.grid.folder.parent / point.run)
        run.config = point.config
        return Handle(run, self.grid.section)

    def runs(self) -> list[Run]:
        """Return the runs, in the order of the values."""
        return [self.handle(point).run for point in self.grid.points]

    def wait(self) -> None:
        """Wait until all jobs have ended.

        Raises:
            JobFailed: some ended without a result; the message names each, and why.
        """
        follow(self, {point.run: self.handle(point) for point in self.grid.points if point.run not in self.ended})
        if self.failed:
            raise JobFailed(f"{len(self.failed)} of {len(self.grid.points)} runs have no result; the same call submits "
                            "these again:\n" + "\n".join(f"{run}: {why}" for run, why in self.failed.items()))


def submit_sweep(params: str, site: str = "toy", overrides="", run_name: str = "demo", over=(),
                 action: str | None = None, side_by_side: int = 1) -> Sweep:
    """Submit the runs of a sweep that are missing or failed, and attach to the others.

    On SLURM this returns at once. On this machine it runs the jobs, and returns when all have ended.

    Args:
        params: the recipe.
        site: the site.
        overrides: what all runs have in common, as "train.epochs=1".
        run_name: first part of the runs' names, and the name that stands for {run} in the recipe.
        over: {key: values}, of which every combination is a run; or as on the command line, ["optim.lr=1e-5,3e-5"].
        action: what each job does; by default "train" where the task trains, and else its main action.
        side_by_side: how many jobs run at once on this machine.

    Returns:
        The Sweep: `.runs()` are its runs, `.wait()` waits for all.

    Raises:
        ConfigError: a key or value is wrong, or the sweep was made with another recipe. Nothing is submitted then.
        NotSubmitted: SLURM refused the array.
    """
    return submit_grid(grid.make(params, site, overrides, over, run_name, action), side_by_side)


def submit_grid(runs: grid.Grid, side_by_side: int = 1) -> Sweep:
    """Submit a sweep's runs: see `submit_sweep`."""
    if side_by_side < 1:
        raise ConfigError(f"side_by_side={side_by_side}: expected how many runs at once, 1 or more")
    sweep = Sweep(runs)
    with queue.asked_once(slurm_jobs(runs)):
        check(runs)
    runs.folder.mkdir(parents=True, exist_ok=True)
    with locked(runs.folder / "arrays", f"sweep {runs.name}: waiting for another call, which submits it"), \
            queue.asked_once(slurm_jobs(runs)):
        tell(runs, record(runs))
        if runs.on_slurm:
            submit_array(sweep)
    if not runs.on_slurm:  # without the lock: another call attaches to the same jobs
        run_here(sweep, side_by_side)
    return sweep


def slurm_jobs(runs: grid.Grid) -> list[str]:
    """Return the ids of the SLURM jobs of a sweep's runs."""
    jobs = []
    for point in runs.points:
        with contextlib.suppress(OSError, ValueError):  # damaged: whoever needs it says so
            jobs.append(status.read_job(runs.folder.parent / point.run / "jobs" / runs.section))
    return [job["job_id"] for job in jobs if job and job["cluster"] == "slurm"]


def check(runs: grid.Grid) -> None:
    """Check every run before any is started, and make nothing.

    Raises:
        ConfigError: a run can't be started; or the sweep, or one of its runs, was made with another recipe.
    """
    from egokit import tasks
    task, done, earlier = tasks.find(runs.points[0].config.task.name), [], read_sweep(runs.folder)
    for run in earlier.get("runs", {}):
        folder = runs.folder.parent / run
        if folder.is_dir():
            handle = Handle(Run(folder), earlier["section"])
            done += [run] if handle.metrics() or handle.alive() or launch.leftovers(handle.run, runs.action) else []
    grid.expect_same_sweep(runs, earlier, bool(done))
    if runs.on_slurm:
        slurm.check_options(runs.points[0].config.launch)
    for point in runs.points:
        with named(point):
            check_batch(point.config, runs.action)
            encodes, sources = task.encodes(runs.action), []
            if not encodes:
                sources = task.input_files(point.config)
            start = starting_point(point.config) if encodes else launch.sha256_of(sources)
            folder = runs.folder.parent / point.run
            handle = Handle(Run(folder), runs.section) if folder.is_dir() else None
            if handle:
                launch.expect_same(handle, point.config, (start, code_snapshot.task_sha256(point.config.task.name)),
                                   sources=sources)
            if not handle or not handle.metrics():
                expect_ready(point.config, runs.action)


@contextlib.contextmanager
def named(point: grid.Point):
    """Name a run in a ConfigError that the `with` block raises."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{point.run}: {error}; correct it, and give the command again") from None


def record(runs: grid.Grid) -> dict[str, str]:
    """Write the sweep's sweep.json, with the runs that an earlier call had, and return each run's state."""
    earlier = read_sweep(runs.folder)
    listed = earlier.get("runs", {}) if set(next(iter(earlier.get("runs", {}).values()), {})) == set(runs.over) else {}
    listed |= {point.run: point.values for point in runs.points}
    write_text(runs.folder / SWEEP_FILE, json.dumps(
        {"sweep": runs.name, "params": runs.params, "site": runs.site, "overrides": runs.overrides,
         "action": runs.action, "section": runs.section, "recipe": runs.common(), "runs": listed}, indent=1))
    made = {point.run: runs.folder.parent / point.run for point in runs.points}
    return {run: Handle(Run(folder), runs.section).state() if folder.is_dir() else "new"
            for run, folder in made.items()}


def tell(runs: grid.Grid, states: dict[str, str]) -> None:
    """Say what is done already, and what is submitted."""
    counts = collections.Counter(states.values())
    said = {"finished": "finished", "running": "running already", "pending": "queued already",
            "unknown": "in a state that can't be told from here", "failed": "failed before, submitted again",
            "new": "new"}
    parts = [f"{counts[state]} {words}" for state, words in said.items() if counts[state]]
    print(f"sweep {runs.name}: {len(states)} runs of {' x '.join(runs.over)}: {', '.join(parts)}", flush=True)


def submit_array(sweep: Sweep) -> None:
    """Submit the runs that are missing or failed as one job array."""
    runs = sweep.grid
    with contextlib.ExitStack() as held:  # the runs' locks, until the array is submitted
        folders = []
        for point in runs.points:
            handle = sweep.handle(point)
            job = held.enter_context(launch.prepared(point.config, handle.run, runs.action, runs.section))
            if job.spec:
                held.enter_context(starter.written_work(handle.folder, job.spec, job.keeps_code,
                                                        point.config.task.name, point.config.init))
                folders.append(str(handle.folder.resolve()))
        if not folders:
            return
        config = runs.points[0].config
        # a new folder each time: a new Slurm counts job ids from the start
        folder = runs.folder / "arrays" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        starter.start_work(folder, {"name": f"egokit-{runs.name}", "jobs": folders,
                                    "config": {"launch": to_dict(config)["launch"]}}, config.launch)
    job_id = json.loads((folder / "job.json").read_text())["job_id"]
    print(f"{len(folders)} submitted as job array {job_id}: egokit runs, or squeue -j {job_id}", flush=True)


def run_here(sweep: Sweep, abreast: int) -> None:
    """Run the jobs on this machine, so many at once, to their end."""
    todo, running = collections.deque(sweep.grid.points), {}

    def start() -> None:
        while todo and len(running) < abreast:
            point = todo.popleft()
            try:
                running[point.run] = launch.submit(point.config, sweep.handle(point).run, sweep.grid.action,
                                                   sweep.grid.section)
            except ERRORS as error:
                end(sweep, point.run, printable(" ".join(str(explained(error)).split())))
    follow(sweep, running, start)


def follow(sweep: Sweep, running: dict[str, Handle], start: Callable[[], None] = lambda: None) -> None:
    """Wait for jobs, and record in the sweep how each ended.

    Args:
        sweep: the sweep.
        running: {run: job}, from which those are removed that have ended.
        start: called before each look; it may add jobs.
    """
    gone_before = set()
    start()
    while running:
        ids = [job["job_id"] for handle in running.values()
               if (job := handle.job()) and job["cluster"] == "slurm" and not handle.metrics()]
        statuses = queue.job_statuses(ids)
        for run, handle in list(running.items()):
            state, detail = handle.status(statuses)
            # look twice: another machine's files may show a moment later
            if state == "finished" or (state in ("failed", "new") and (run in gone_before or not sweep.grid.on_slurm)):
                end(sweep, run, "" if state == "finished" else printable(detail or "it was never started"), handle)
                del running[run]
            elif state in ("failed", "new"):
                gone_before.add(run)
        start()
        if running:
            time.sleep(60 * POLL if ids else POLL)


def end(sweep: Sweep, run: str, why: str, handle: Handle | None = None) -> None:
    """Record that a run has ended, and say how; `why` is "" if it has a result."""
    sweep.ended[run] = why
    metrics = (handle.metrics() if handle and not why else None) or {}
    score = metrics.get(metrics.get("score"))
    told = f", {metrics['score']} {score:.1f}" if isinstance(score, (int, float)) else ""
    print(f"{run}: failed: {why}" if why else f"{run}: finished{told}", flush=True)


def describe(runs: grid.Grid) -> str:
    """Return the runs with their values and, on SLURM, the array's script. Nothing is submitted or written."""
    width = max(len(point.run) for point in runs.points)
    lines = [f"# {point.run:{width}}  {grid.in_words(point.values)}" for point in runs.points]
    if runs.on_slurm:
        array = [runs.folder.parent / point.run / "jobs" / runs.section for point in runs.points]
        script = slurm.array_script(runs.points[0].config.launch, runs.folder / "arrays", f"egokit-{runs.name}", array)
        return "\n".join([*lines, script])
    return "\n".join([*lines, "# these run on this machine (launch.cluster is local), which needs no script"])


def command(arguments: argparse.Namespace) -> None:
    """Do what `egokit sweep` was asked for; the exit code is 1 if a run failed."""
    runs = grid.make(arguments.params, arguments.site, arguments.overrides, arguments.over, arguments.run,
                     arguments.action)
    if arguments.print:
        print(describe(runs))
        return
    tell_toy_site(runs.points[0].config, arguments.params)
    sweep = submit_grid(runs, arguments.side_by_side)
    if arguments.wait or not sweep.grid.on_slurm:
        with contextlib.suppress(JobFailed):  # each was told as it ended
            sweep.wait()
    print(sweep, flush=True)
    if sweep.failed:
        sys.exit(1)
