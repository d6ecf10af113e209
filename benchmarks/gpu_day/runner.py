"""Runs the stages of the GPU day, each in its own process, and reports which failed.

    python -m gpu_day.runner [--cpu] [STAGE ...]      gpu_day.sh calls it; --cpu: tiny sizes on a CPU; STAGE: only these

A stage that fails or runs out of its time stops no other. Stages that measure time have the machine for themselves; of
the others up to three run at once. The exit code is 1 if any stage failed, was stopped, or had no time left.
"""
from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gpu_day import report

ROOT = Path(__file__).resolve().parents[2]
WITHOUT = "--without="  # …compiled,nccl leaves these stages out
LIMIT = 540  # seconds for all stages together
LEAST = 15  # seconds; with less time left, a stage is not worth starting
GRACE = 5  # seconds between asking a process to stop and killing it
# all files of the folder of results: few, because some ways to copy them home allow eight
KEPT = ("log.txt", "results.jsonl", "gpu.md", "errors.txt", "tests.txt", "profile.txt", "nvidia-smi.txt")
TESTS = ("microbatch", "losses", "optim", "loading", "model_twin", "time_attention", "train_step", "evaluate", "train",
         "mq", "mq_resume", "devices", "gpu_choice", "precision", "dist")
IMPORTED = ("egokit.jobs.run_job", "egokit.tasks", "train_step", "pytest")  # what every stage needs, in one way
FEW_TESTS = ("losses", "loading")  # in a rehearsal: the others have been run


@dataclass(frozen=True)
class Stage:
    """One process of the day."""
    name: str
    command: tuple[str, ...]
    seconds: float       # at most
    alone: bool = True   # nothing else may run meanwhile
    output: str = ""     # the file of results that gets its stdout; "": it is shown
    needed: bool = False  # if it fails, nothing else is worth starting


@dataclass(frozen=True)
class Result:
    """How a stage ended."""
    name: str
    result: str          # ok, failed, stopped (it ran out of its time) or left out (there was none left)
    seconds: float = 0.0
    why: str = ""


def stages(cpu: bool, scratch: Path) -> list[Stage]:
    """List the day's stages, the most important first.

    In a rehearsal two run at once, because its times don't count.
    """
    def of(module: str, name: str, seconds: float, alone: bool) -> Stage:
        return Stage(name, (sys.executable, "-m", f"gpu_day.{module}", name), seconds, alone)

    def timed(name: str, seconds: float) -> Stage:
        return of("speed", name, seconds, not cpu)

    def untimed(name: str, seconds: float) -> Stage:
        return of("behaviour", name, seconds, False)

    wheels = [] if cpu else [Stage("wheels", install(scratch), 60)]
    imports = Stage("imports", (sys.executable, "-c", f"import {', '.join(IMPORTED)}"), 60, needed=True)
    return [*wheels, imports, of("speed", "card", 45, True), timed("step", 120), timed("divided_layers", 60),
            timed("large_batch", 30),
            Stage("tests", tests(cpu), 100, False, "tests.txt"), untimed("toy", 110), untimed("job", 110),
            untimed("deterministic", 90), untimed("nccl", 60), untimed("twin", 60),
            timed("profile", 40), timed("encode", 45), timed("compiled", 170), timed("attention", 60),
            timed("compiled_sdpa", 170)]


def install(scratch: Path) -> tuple[str, ...]:
    """Make the command that installs missing packages into a folder of PYTHONPATH."""
    wheels = sorted(map(str, (ROOT / ".gpu_day/whl").glob("*.whl"))) or [str(ROOT / ".gpu_day/whl/none.whl")]
    return (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps",
            "--no-compile", "--no-cache-dir", "--target", str(scratch / "site"), *wheels)


def tests(cpu: bool) -> tuple[str, ...]:
    """Make the command that runs quick tests of what is computed.

    On a machine with a GPU, their loaders pin memory.
    """
    workers = ("-n", "8", "--dist", "loadfile") if not cpu and importlib.util.find_spec("xdist") else ()
    files = (f"tests/test_{name}.py" for name in (FEW_TESTS if cpu else TESTS))
    return (sys.executable, "-m", "pytest", "-p", "gpu_day.plugin", "-p", "no:cacheprovider", "-rfE", "--tb=short",
            "--maxfail=15", "-k", "not variable_rate",  # that one makes a file by ffmpeg
            "-m", "not slow" if cpu else "not slow or golden", *workers, *files)


class Runner:
    """Runs stages within a time limit and keeps how each of them ended.

    Args:
        out: the folder of results.
        limit: seconds for all stages together.
        at_once: how many stages may run at the same time, of those that need not be alone.
    """

    def __init__(self, out: Path, limit: float = LIMIT, at_once: int = 3):
        self.out, self.limit, self.at_once = out, limit, at_once
        self.began = time.monotonic()
        self.results: list[Result] = []
        self.lock = threading.Lock()
        self.running: set[subprocess.Popen] = set()

    def left(self) -> float:
        return self.limit - (time.monotonic() - self.began)

    def run(self, stages: list[Stage]) -> int:
        """Run all stages and print a summary; return the exit code."""
        try:
            for alone, group in itertools.groupby(stages, key=lambda stage: stage.alone):
                with ThreadPoolExecutor(1 if alone else self.at_once) as pool:
                    try:
                        list(pool.map(self.run_stage, group))
                    except BaseException:  # Ctrl-C does not reach the stages, which have their own sessions
                        self.limit = 0
                        for process in list(self.running):
                            stop(process)
                        raise
        finally:
            ended = {result.name for result in self.results}
            for stage in stages:
                if stage.name not in ended:
                    self.keep(Result(stage.name, "left out", why="interrupted"))
            self.summarise()
        return int(any(result.result != "ok" for result in self.results))

    def run_stage(self, stage: Stage) -> None:
        """Run one stage until it ends or its time is over; keep the end of its stderr."""
        seconds = min(stage.seconds, self.left())
        if seconds < min(LEAST, stage.seconds):
            self.keep(Result(stage.name, "left out", why="no time left"))
            return
        print(f"== {stage.name} (at most {seconds:.0f} s; {self.left():.0f} s left)", flush=True)
        began = time.monotonic()
        with tempfile.TemporaryFile() as errors, contextlib.ExitStack() as files:
            output = files.enter_context(open(self.out / stage.output, "wb")) if stage.output else None
            process = subprocess.Popen(stage.command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors,
                                       cwd=ROOT, start_new_session=True)
            self.running.add(process)
            try:
                process.wait(seconds)
                late = False
            except subprocess.TimeoutExpired:
                late = True
                stop(process)
            self.running.discard(process)
            errors.seek(0)
            lines = errors.read().decode(errors="replace").splitlines()
        if output and not lines:
            lines = (self.out / stage.output).read_text(errors="replace").splitlines()
        why = f"stopped after {seconds:.0f} s" if late else f"exit code {process.returncode}"
        last = next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
        ended = "stopped" if late else "failed" if process.returncode else "ok"
        if stage.needed and ended != "ok":
            self.limit = 0
        with self.lock, open(self.out / "errors.txt", "a") as file:
            file.write("\n".join([f"== {stage.name}", *lines[-40:], ""]))
        self.keep(Result(stage.name, ended, time.monotonic() - began, "" if ended == "ok" else f"{why}: {last}"))

    def keep(self, result: Result) -> None:
        with self.lock:
            self.results.append(result)
            print(f"== {line(result)}", flush=True)
            row = {"stage": result.name, "result": result.result, "seconds": round(result.seconds), "why": result.why}
            with open(self.out / "results.jsonl", "a") as file:
                file.write(json.dumps({"table": "Stages", **row}) + "\n")

    def summarise(self) -> None:
        """Print how each stage ended, and write the report."""
        print(f"== summary, after {time.monotonic() - self.began:.0f} s", *map(line, self.results), sep="\n")
        bad = [result.name for result in self.results if result.result != "ok"]
        print(f"== {len(bad)} of {len(self.results)} stages did not end well: {', '.join(bad)}" if bad else
              "== all stages ended well", flush=True)
        report.write(self.out)


def line(result: Result) -> str:
    return f"{result.result:8} {result.name:14} {result.seconds:5.0f} s  {result.why}".rstrip()


def stop(process: subprocess.Popen) -> None:
    """End a stage and its session's processes; SIGTERM comes first, so it can cancel its job."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def main(words: list[str]) -> int:
    """Run the stages that the command line asks for; return the exit code."""
    cpu, wanted = "--cpu" in words, {word for word in words if not word.startswith("--")}
    left_out = {name for word in words if word.startswith(WITHOUT) for name in word.removeprefix(WITHOUT).split(",")}
    out = Path(os.environ.get("OUT", "gpu_day_out")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        if name != "log.txt":  # gpu_day.sh is writing it
            (out / name).unlink(missing_ok=True)
    if not (ROOT / ".gpu_day/toy").is_dir():
        print("the tests' tiny data set is missing: run `make gpu-day-prepare` at home, and bring the folder .gpu_day",
              file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="gpu_day_", ignore_cleanup_errors=True) as scratch:
        day = stages(cpu, Path(scratch))
        if unknown := (wanted | left_out) - {stage.name for stage in day}:
            print(f"no stage {', '.join(sorted(unknown))}: expected some of {', '.join(stage.name for stage in day)}",
                  file=sys.stderr)
            return 2
        threads = 1 if cpu else min(8, os.cpu_count() or 1)  # a rehearsal's machine has few cores, and other work
        os.environ |= {"OUT": str(out), "GPU_DAY_SCRATCH": scratch, "OMP_NUM_THREADS": str(threads),
                       "TOKENIZERS_PARALLELISM": "false",
                       "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), f"{scratch}/site"])}
        if cpu:
            os.environ["GPU_DAY_REHEARSAL"] = "1"
        elif shutil.which("nvidia-smi"):
            with open(out / "nvidia-smi.txt", "w") as file:
                subprocess.run(["nvidia-smi"], stdout=file, stderr=subprocess.STDOUT, timeout=30)
        chosen = [stage for stage in day if stage.name not in left_out and
                  (not wanted or stage.name in {"wheels", "imports", *wanted})]
        return Runner(out, at_once=2 if cpu else 3).run(chosen)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # of `timeout`, or of a machine that is taken back
    sys.exit(main(sys.argv[1:]))
