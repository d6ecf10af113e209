"""The clock of a step's phases, and what is read of cores and memory; what both cost."""
import os
import sys
import time

import pytest
import torch
from conftest import ROOT

from egokit.train import timing, usage

CPU = torch.device("cpu")


def test_waiting_is_no_part_of_the_phase_in_which_it_happens():
    clock, talk = timing.StepClock(CPU), timing.waits(lambda: time.sleep(0.02))
    talk()  # outside of a training: nothing is measured
    with clock.phase("forward"):
        pass
    clock.end_step()
    assert clock.take() == {}
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
    """Two of four cores may be used, and 1.5 by the job's limit; other programs use the rest."""
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
    now(4, 1, 5, 20, 2_000_000)
    row = sampler.take()
    assert sampler.is_new and sampler.take() is row and not sampler.is_new, "no sample within a second"
    node = usage.of_node([row | {"node": 0}, row | {"node": 0}, {"node": 8} | row])
    assert node["cpu_available"] == 1.5 and node["cpu_share"] == pytest.approx(0.5)
    assert node["cpu_cores"] == pytest.approx(1.0) and node["cpu_worker_cores"] == pytest.approx(0.2)
    assert node["cpu_other_cores"] == pytest.approx(0.5) and node["memory_stall"] == pytest.approx(0.2)
    clock[0] = 20.0
    now(8, 2, 10, 35, 2_000_000)
    sharers = [sampler.take() | {"node": 0}] * 2
    assert usage.of_node(sharers)["cpu_other_cores"] == pytest.approx(0), "half a core is idle: nobody takes of the 1.5"
    assert node["host_memory_used"] == pytest.approx(0.8) and node["host_memory_gib"] == pytest.approx(4)


def test_a_machine_that_tells_nothing_is_no_error(tmp_path):
    sampler = usage.Usage(CPU, str(tmp_path / "proc"), str(tmp_path / "none"))
    for _ in range(2):
        sampler.due = 0.0
        row = sampler.take()
    assert row["cpu"] == 0 and "cpu_share" not in row and usage.of_node([row | {"node": 0}])["cpu_available"] >= 1
    assert usage.of_node([{"node": 0}]) == {}


def test_measuring_takes_less_than_a_hundredth_of_a_toy_step():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import measuring
    assert measuring.shares(repeats=30)["sum"] < 0.01
