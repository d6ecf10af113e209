"""Why is it slow? Times of a step's phases, what the processes get of their machine, and the verdict on both."""
import contextlib
import itertools
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import MODEL, ROOT, board_of
from test_curves import axes_of, read, step_event
from test_dist import ranks
from training import run_of

from egokit import tasks
from egokit.runs.bottleneck import verdict
from egokit.runs.log import History
from egokit.runs.run_folder import Run
from egokit.train import timing, usage
from egokit.train.loop import Trainer
from egokit.viz.curves import curves

CPU = torch.device("cpu")
MACHINE = {"kind": "machine", "step": 0, "device": "cpu", "cores": 8, "workers": 2, "ranks_on_node": 1, "nodes": 1,
           "precision": "bf16", "compile": False}
# a step of 1 s: data, forward, backward, update and waiting, and a machine with cores to spare
CALM = {"step_s": 1.0, "data_s": 0.02, "save_s": 0.0, "forward_s": 0.3, "backward_s": 0.6, "update_s": 0.05,
        "wait_s": 0.01, "cpu_share": 0.98, "cpu_cores": 1.5, "cpu_worker_cores": 0.4, "cpu_other_cores": 0.1,
        "cpu_available": 8, "host_memory_gib": 3.0, "host_memory_used": 0.4, "memory_stall": 0.0, "faults_per_s": 0.0}
RANKS = {"longest_wait_s": 0.6, "slowest_rank": 3, "slowest_wait_s": 0.02, "slowest_data_s": 0.01,
         "slowest_compute_s": 0.9, "slowest_cpu_share": 0.98, "wait_s": 0.6, "forward_s": 0.1, "backward_s": 0.2}


def judged(tmp_path, changes, machine=()):
    """The verdict on a log whose lines differ from a calm one's by `changes`."""
    history = History(tmp_path)
    history._add(MACHINE | dict(machine))
    for step in range(1, 31):
        history._add(step_event(step, 30, **CALM | changes))
    return verdict(history)


CASES = {
    "nothing": ({}, {}, "computing", "computing: 95 % of a step on 8 cores", "more cores"),
    "gpu": ({}, {"device": "cuda", "precision": "fp32"}, "gpu", "GPU: it computes 95 %", "train.precision=bf16"),
    "gpu full": ({"gpu_memory_used": 0.99, "gpu_memory_retries": 2}, {"device": "cuda"}, "memory", "GPU memory: full",
                 "train.micro_batch"),
    "no worker": ({"data_s": 0.6}, {"workers": 0}, "data", "data-bound: 60 %", "data.workers=6: 6.4 of 8 cores"),
    "few workers": ({"data_s": 0.6, "cpu_worker_cores": 1.9}, {}, "data", "data-bound", "data.workers=8"),
    "slow disk": ({"data_s": 0.6, "cpu_worker_cores": 0.1}, {}, "data", "data-bound", "wait for files"),
    "both cores compute": ({"data_s": 0.6, "cpu_cores": 1.95, "cpu_other_cores": 0.02, "cpu_available": 2},
                           {"workers": 0}, "data", "data-bound", "would take them from the computing"),
    "readers lack cores": ({"data_s": 0.6, "cpu_cores": 7.8, "cpu_share": 0.5}, {"workers": 16}, "data", "data-bound",
                           "not more data.workers"),
    "readers lack cores that others use": ({"data_s": 0.6, "cpu_cores": 1.0, "cpu_share": 0.3, "cpu_other_cores": 7.0},
                                           {}, "cpu", "CPU share: the processes get 30 %", "other programs use 7.0"),
    "a sleeping reader on a busy machine": ({"data_s": 0.9, "cpu_cores": 0.1, "cpu_share": 0.5, "cpu_other_cores": 7.5},
                                            {}, "data", "data-bound: 90 %", "all 8 cores are busy"),
    "another program": ({"cpu_share": 0.13, "cpu_cores": 0.26, "cpu_other_cores": 7.7}, {}, "cpu",
                        "CPU share: the processes get 13 %", "other programs use 7.7 of 8 cores"),
    "too many threads": ({"cpu_share": 0.4, "cpu_cores": 7.9}, {}, "cpu", "CPU share", "launch.cpus_per_task"),
    "memory": ({"host_memory_used": 0.97, "memory_stall": 0.5, "data_s": 0.9}, {}, "memory", "memory: 97 %",
               "mem_gb_per_task"),
    "a slow rank": (RANKS, {}, "ranks", "waiting for rank 3: up to 60 %", "computes longer"),
    "a rank that reads": (RANKS | {"slowest_data_s": 0.7}, {}, "ranks", "waiting for rank 3", "waits for its data"),
    "a rank without cores": (RANKS | {"slowest_cpu_share": 0.2}, {}, "ranks", "waiting for rank 3", "too few cores"),
    "the network": (RANKS | {"slowest_wait_s": 0.58}, {}, "ranks", "communication: 60 %", "NCCL_SOCKET_IFNAME"),
    "checkpoints": ({"save_s": 0.4}, {}, "saving", "checkpoints: 40 %", "train.checkpoint_steps"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_verdict_names_the_bound_and_what_to_change(tmp_path, case):
    changes, machine, bound, title, advice = CASES[case]
    found = judged(tmp_path, changes, machine)
    assert found.bound == bound and title in found.title and advice in found.advice, found


@pytest.mark.parametrize("changes", [{"slowest_rank": 1e15}, {"slowest_rank": -1.5}, {"step_s": 0}, {"cpu_cores": 0},
                                     {"cpu_available": 0, "data_s": 0.9}, {"step_s": None}])
def test_numbers_that_no_training_writes_are_judged_without_an_error(tmp_path, changes):
    assert judged(tmp_path, RANKS | {"cpu_share": 0.1} | changes, {"ranks_on_node": 0, "workers": 0}).title
    assert judged(tmp_path, {"cpu_share": 0.1} | changes, {"ranks_on_node": 0, "workers": 0}).title


def test_without_the_kernels_queues_the_other_programs_are_told_by_their_cores(tmp_path):
    busy = {"cpu_share": float("nan"), "cpu_cores": 1.0, "cpu_other_cores": 7.0}
    assert judged(tmp_path, busy).bound == "cpu"
    assert judged(tmp_path, busy | {"cpu_other_cores": 1.0}).bound == "computing"


def test_an_older_log_and_one_that_goes_on_with_new_keys_are_judged_and_drawn(tmp_path):
    run = Run(tmp_path / "02_pretrain/mine")
    for step in range(1, 11):
        run.log(step_event(step, data_s=0.2))
    assert verdict(read(run)).title == "data-bound: 50 % waiting for data"
    axis = axes_of(curves(run))["share of step time (%)"]
    assert len(axis.get_lines()) == 2 and not axis.collections
    run.log(MACHINE | {"step": 10})
    for step in range(11, 21):
        run.log(step_event(step, **CALM))
    assert verdict(read(run)).bound == "computing"
    figure = curves(run)
    axis = axes_of(figure)["share of step time (%)"]
    assert len(axis.collections) == 6 and axis.get_title().startswith("computing: 95 % of a step")
    assert "a GPU, or more cores" in figure.get_supxlabel()
    assert history_columns(run) >= {"speed/forward_s", "machine/cpu_share"} and not any(
        name.startswith("loss/") and name not in ("loss/loss", "loss/egonce", "loss/mlm", "loss/itm")
        for name in history_columns(run))


def history_columns(run):
    return set(read(run).training.columns)


def test_waiting_is_no_part_of_the_phase_in_which_it_happens():
    clock, talk = timing.StepClock(CPU), timing.waits(lambda: time.sleep(0.02))
    talk()  # outside of a training: nothing is measured
    with clock.phase("forward"):
        pass
    with clock.running():
        for _ in range(2):
            with clock.phase("forward"):
                time.sleep(0.01)
                talk()
            with clock.phase("backward"):
                time.sleep(0.03)
            clock.end_step()
            talk()
        clock.end_step()
    taken = clock.take()
    assert 0.005 <= taken["forward_s"] < taken["backward_s"]
    assert taken["wait_s"] >= 0.08 / 3 and 0.04 / 3 <= taken["between_s"] < taken["wait_s"]
    assert clock.take() == {} and timing._running is None


class Event:
    """A CUDA event on a GPU that is `behind` events late."""
    made, behind = 0, 0

    def __init__(self, enable_timing):
        assert enable_timing
        Event.made += 1
        self.number = Event.made

    def record(self):
        pass

    def query(self):
        return self.number <= Event.made - Event.behind

    def elapsed_time(self, end):
        assert self.query() and end.query(), "it would wait for the GPU"
        return 1000.0 * (end.number - self.number)


def test_a_gpus_times_are_read_when_it_has_passed_them(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock, Event.behind = timing.StepClock(torch.device("cuda:0")), 3
    with clock.running():
        for step in range(3):
            for name in ("forward", "backward", "update"):
                with clock.phase(name):
                    pass
            clock.end_step()
            taken = clock.take()
            assert bool(taken) == (step > 0), "the step before"
            assert not taken or taken["forward_s"] == taken["update_s"] == 1


def files(root, **texts):
    for name, text in texts.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def stat(number, user=0, idle=0):
    return f"cpu{number} {user} 0 0 {idle} 0 0 0 0 0 0\n"


@pytest.mark.parametrize("version", [1, 2])
def test_what_the_kernel_tells_of_cores_and_memory(tmp_path, monkeypatch, version):
    """Two of four cores may be used, and 1.5 by the job's limit; another program uses one of them."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 2})
    monkeypatch.setattr(usage.loader, "worker_pids", {7})
    monkeypatch.setattr(os, "getpid", lambda: 5)
    clock = [0.0]
    monkeypatch.setattr(usage.time, "perf_counter", lambda: clock[0])
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    limits = {"cpu.max": "150000 100000\n", "memory.max": f"{10 << 30}\n", "memory.current": f"{9 << 30}\n",
              "memory.stat": f"anon 5\ninactive_file {1 << 30}\n"}
    if version == 1:
        files(proc, self__cgroup="4:memory:/job\n2:cpu,cpuacct:/job\n")
        for controller in ("memory", "cpu,cpuacct", "cpu"):
            (groups / controller / "job").mkdir(parents=True)
        names = {"cpu/job/cpu.cfs_quota_us": "150000", "cpu/job/cpu.cfs_period_us": "100000",
                 "memory/job/memory.limit_in_bytes": limits["memory.max"],
                 "memory/job/memory.usage_in_bytes": limits["memory.current"],
                 "memory/job/memory.stat": f"total_inactive_file {1 << 30}\n"}
    else:
        files(proc, self__cgroup="0::/slurm/job/step\n")
        (groups / "slurm/job/step").mkdir(parents=True)
        names = {f"slurm/job/{name}": text for name, text in limits.items()} | {"slurm/job/step/memory.max": "max\n"}
    for name, text in names.items():
        (groups / name).write_text(text)

    def now(me, worker, queue, busy, stall):
        """Seconds of CPU time of this process and its worker, of waiting for a core, of busy cores, of stalls."""
        for pid, seconds in ((5, me), (7, worker)):
            files(proc, **{f"{pid}__stat": f"{pid} (py (x) thon) R {' '.join('0' * 10)} {int(seconds * usage.TICKS)} 0 "
                                           f"{' '.join('0' * 8)} {2**30 // usage.PAGE} 0\n",
                           f"{pid}__task__{pid}__schedstat": f"9 {int(queue * 1e9 / 2)} 3\n"})
        idle = int((100 + clock[0] - busy / 2) * usage.TICKS)
        files(proc, stat=f"cpu 1 1 1 1\n{stat(0, 99, 99)}{stat(1, 0, idle)}{stat(2, 0, idle)}intr 5\n",
              pressure__memory=f"some avg10=0 total={stall}\n",
              meminfo="MemTotal: 100 kB\nMemFree: 1 kB\nMemAvailable: 50 kB\n")

    now(0, 0, 0, 0, 0)
    sampler = usage.Usage(CPU, str(proc), str(groups))
    assert sampler.take() == {} and sampler.cores == 1.5
    clock[0] = 10.0
    now(4, 1, 5, 15, 2_000_000)
    row = sampler.take()
    assert sampler.is_new and sampler.take() is row and not sampler.is_new, "no sample within a second"
    node = usage.of_node([row | {"node": 0}, row | {"node": 0}, {"node": 8} | row])
    assert node["cpu_available"] == 1.5 and node["cpu_share"] == pytest.approx(0.5)
    assert node["cpu_cores"] == pytest.approx(1.0) and node["cpu_worker_cores"] == pytest.approx(0.2)
    assert node["cpu_other_cores"] == pytest.approx(0.5) and node["memory_stall"] == pytest.approx(0.2)
    assert node["host_memory_used"] == pytest.approx(0.8) and node["host_memory_gib"] == pytest.approx(4)


def test_a_machine_that_tells_nothing_is_no_error(tmp_path):
    sampler = usage.Usage(CPU, str(tmp_path / "proc"), str(tmp_path / "none"))
    for _ in range(2):
        sampler.due = 0.0
        row = sampler.take()
    assert row["cpu"] == 0 and "cpu_share" not in row and usage.of_node([row | {"node": 0}])["cpu_available"] >= 1
    assert usage.of_node([{"node": 0}]) == {}


# Real log lines

def trained(config, run, steps=8, spoil=lambda trainer: None):
    """Train for a few steps in this process and return the history of the log."""
    trainer = Trainer(config, tasks.make(config), run, "pretrain", CPU)
    spoil(trainer)
    run.truncate_log(lambda event: False)
    trainer.log_machine()
    with trainer.clock.running():
        trainer.epoch(0, itertools.islice(trainer.loader(), steps))
    return read(run)


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(usage, "EVERY", 0.1)
    monkeypatch.setattr(usage, "RARITY", 10)


@pytest.mark.slow
def test_a_slow_reader_is_a_data_bound_run(resolve, project, request, often):
    def spoil(trainer):
        collate, ended = trainer.task.collate, [time.perf_counter()]

        def slowly(items):
            """Take three times as long as all else, however busy the machine is."""
            time.sleep(max(0.3, 3 * (time.perf_counter() - ended[0])))
            ended[0] = time.perf_counter()
            return collate(items)
        trainer.task.collate = slowly
    run = run_of(request)
    history = trained(resolve(overrides=f"{MODEL} train.batch_size=4"), run, 5, spoil)
    found = verdict(history)
    assert found.bound == "data" and found.advice, found
    assert {"speed/forward_s", "speed/wait_s", "machine/cpu_share", "machine/host_memory_gib"} <= board_of(run).keys()
    parts = sum(history.training[f"speed/{name}"] for name in (
        "data_s", "forward_s", "backward_s", "update_s", "wait_s", "save_s"))
    assert np.allclose(parts, history.training["speed/step_s"], rtol=0.1), "a step's parts add up to it"


@pytest.mark.slow
def test_another_program_on_this_core_is_named(resolve, project, request, often):
    allowed = os.sched_getaffinity(0)
    core = min(allowed)
    spin = f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    with contextlib.ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, allowed)
        for _ in range(4):
            program = subprocess.Popen([sys.executable, "-c", spin])
            stack.callback(program.wait)
            stack.callback(program.kill)
        os.sched_setaffinity(0, {core})
        history = trained(resolve(overrides=f"{MODEL} train.batch_size=4"), run_of(request), 6)
    found = verdict(history)
    assert found.bound == "cpu" and "other programs use" in found.advice, (found, history.training.columns)


@pytest.mark.slow
def test_the_rank_for_which_the_others_wait_is_named(tmp_path, project):
    """By DDP and by micro-batches; a rank that computes slowly, and one that reads slowly."""
    result, _ = ranks("rank_slow.py", 2, tmp_path, project)
    (computes, lines), (reads, _) = result["computes"], result["reads"]
    assert computes[0] == "ranks" and "waiting for rank 1" in computes[1] and "computes longer" in computes[2]
    assert reads[0] == "ranks" and "waiting for rank 1" in reads[1] and "waits for its data" in reads[2]
    waits = np.median([[line["wait_s"], line["slowest_wait_s"]] for line in lines], 0)
    assert waits[0] > waits[1] + 0.2, lines


def test_measuring_takes_less_than_a_hundredth_of_a_toy_step():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import measuring
    assert measuring.shares(repeats=30)["sum"] < 0.01


# egokit profile

@pytest.mark.slow
def test_a_profile_has_a_trace_a_table_and_a_verdict_and_leaves_the_run_alone(resolve, project, request, capsys):
    from egokit import cli
    from egokit.config.resolve import outputs_folder
    overrides = f"{MODEL} data.limit=24 train.batch_size=4 launch.tasks_per_node=1"
    cli.main(["profile", "toy/pretrain", "--site", "tiny", "--overrides", overrides, "--run", "sluggish",
              "--steps", "2"])
    shown, run = capsys.readouterr().out, outputs_folder() / "02_pretrain/sluggish"
    assert "of a step" in shown and "forward" in shown and "operations, CPU" in shown and "aten::" in shown
    assert (run / "profile/profile.txt").read_text() in shown
    trace = subprocess.run(["gzip", "-dc", run / "profile/trace.json.gz"], capture_output=True, text=True).stdout
    assert all(f'"name": "{name}"' in trace for name in ("data", "forward", "backward", "update"))
    rows = (run / "profile/operations.csv").read_text().splitlines()
    assert rows[0] == "kind,name,calls,self_cpu_ms,self_gpu_ms" and len(rows) > 20
    assert [path.name for path in run.iterdir()] == ["profile"] and not list(run.rglob("*.pt"))


def test_operations_and_the_gpus_share_of_the_time(tmp_path):
    from egokit.train.profile import covered, format_profile, operations_of
    kinds = torch.autograd.DeviceType

    def average(key, device, cpu, gpu):
        return SimpleNamespace(key=key, device_type=device, count=4, self_cpu_time_total=cpu,
                               self_device_time_total=gpu)
    found = operations_of([average("forward", kinds.CPU, 9, 0), average("forward", kinds.CUDA, 0, 99),
                           average("aten::mm", kinds.CPU, 2000, 6000), average("gemm", kinds.CUDA, 0, 6000),
                           average("aten::add", kinds.CPU, 4000, 0)])
    assert [(each.kind, each.name) for each in found] == [("operation", "aten::mm"), ("kernel", "gemm"),
                                                          ("operation", "aten::add")]
    assert covered([(0, 10), (5, 12), (20, 25), (21, 22)]) == 17 and covered([]) == 0
    history = History(tmp_path)
    for step in range(1, 4):
        history._add(step_event(step, **CALM))
    text = format_profile(history, verdict(history), found, 2, 0.4)
    assert "the GPU computes 40 % of the time under the profiler; it waits for the CPU" in text
    assert "  backward        0.600 s    60 %" in text and "  gemm" in text.partition("kernels, GPU")[2]
    assert "  aten::add" in text.partition("operations, CPU")[2].splitlines()[1], "the longest by the CPU's time"


def test_profiling_what_does_not_train_is_refused(resolve, project, tmp_path):
    from egokit.config.build import ConfigError
    from egokit.jobs import profiling
    with pytest.raises(ConfigError, match="'egomcq' does not train"):
        profiling.submit(resolve("toy/egomcq", "init="), tmp_path, 2)
