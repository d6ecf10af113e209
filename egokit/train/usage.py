"""What a rank's processes use of their machine, and what is left of it: CPU time, memory, and a GPU's memory.

Everything is read from /proc and from the control groups that limit a job; what a machine doesn't tell is left out. A
sample takes about a millisecond. Samples are taken at most once a second, and so rarely that they take less than 0.2 %
of the time.
"""
import contextlib
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch

from egokit.data import loader

EVERY = 1.0    # seconds between two samples, at least
RARITY = 500   # times a sample's own CPU time that lie between two samples, at least
TICKS = os.sysconf("SC_CLK_TCK")  # of /proc's CPU times, a second
PAGE = os.sysconf("SC_PAGE_SIZE")
UNLIMITED = 1 << 60  # bytes; version 1 of control groups writes a number near 2^63 for no limit


def read(path: str | Path) -> str:
    """Return a small file's text; "" if it is not there or may not be read."""
    with contextlib.suppress(OSError, ValueError), open(path) as file:
        return file.read()
    return ""


def groups(controller: str, proc: Path, root: Path) -> Iterator[Path]:
    """Yield the folders of this process's control groups for a controller, innermost first (versions 1 and 2)."""
    for line in read(proc / "self/cgroup").splitlines():
        _, controllers, inner = line.split(":", 2)
        if controller in controllers.split(",") or not controllers:
            top = root / controller if controllers else root
            folder = top / inner.strip("/")
            yield from (folder, *(parent for parent in folder.parents if parent.is_relative_to(top)))


class Usage:
    """Samples of this rank's processes (itself and its loader workers) and of the machine, each since the one before.

    Args:
        device: where the rank computes.
        proc, cgroup: the folders of the kernel's files.
    """

    def __init__(self, device: torch.device, proc: str = "/proc", cgroup: str = "/sys/fs/cgroup"):
        self.device, self.proc = device, Path(proc)
        self.cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        limits = [cores for folder in groups("cpu", self.proc, Path(cgroup)) if (cores := _cpu_limit(folder))]
        self.cores = min([len(self.cpus) or os.cpu_count() or 1, *limits])
        self.limited = [folder for folder in groups("memory", self.proc, Path(cgroup)) if _memory_limit(folder)]
        self.peak_gib, self.last, self.is_new, self.due, self.before = 0.0, {}, False, 0.0, None

    def take(self) -> dict[str, float]:
        """Return the newest sample; {} before the first. `is_new` says whether it was taken now."""
        began, spent, self.is_new = time.perf_counter(), time.thread_time(), False
        if began < self.due:
            return self.last
        now = self._counters()
        if self.before is not None:
            self.last, self.is_new = self._since(self.before, now), True
        self.before = now
        self.due = began + max(EVERY, RARITY * (time.thread_time() - spent))
        return self.last

    def _counters(self) -> dict:
        """Read what only ever grows, and the memory in use."""
        pids = [os.getpid(), *loader.worker_pids]
        stats = {pid: text.rpartition(")")[2].split() for pid in pids if (text := read(self.proc / f"{pid}/stat"))}
        return {"time": time.perf_counter(),
                "cpu": {pid: (int(stat[11]) + int(stat[12])) / TICKS for pid, stat in stats.items()},
                "faults": {pid: int(stat[9]) for pid, stat in stats.items()},
                "queue": dict(self._queues(stats)), "idle": self._idle(),
                "stall": _pressure(read(self.proc / "pressure/memory")),
                "retries": torch.cuda.memory_stats(self.device).get("num_alloc_retries", 0)
                if self.device.type == "cuda" else 0,
                "resident": sum(int(stat[21]) * PAGE for stat in stats.values()) / 2**30}

    def _queues(self, pids) -> Iterator[tuple[str, float]]:
        """Yield for each thread of the processes how long it has waited for a core, in seconds."""
        for pid in pids:
            with contextlib.suppress(OSError):
                for thread in os.listdir(self.proc / f"{pid}/task"):
                    if text := read(self.proc / f"{pid}/task/{thread}/schedstat"):
                        yield thread, int(text.split()[1]) / 1e9

    def _idle(self) -> float | None:
        """Return the idle seconds of the cores that this process may use, summed; None where it isn't told."""
        lines = {words[0]: words for line in read(self.proc / "stat").splitlines()
                 if line.startswith("cpu") and (words := line.split())}
        mine = [lines[f"cpu{number}"] for number in self.cpus if f"cpu{number}" in lines]
        return sum(int(words[4]) + int(words[5]) for words in mine) / TICKS if mine else None

    def _since(self, before: dict, now: dict) -> dict[str, float]:
        """Return the usage between two readings; see `of_node`, which adds up the ranks'."""
        wall = now["time"] - before["time"]

        def grown(name: str) -> dict:
            return {key: max(0, value - before[name].get(key, value)) for key, value in now[name].items()}

        cpu, me = grown("cpu"), os.getpid()
        self.peak_gib = max(self.peak_gib, now["resident"])
        sample = {"cores": self.cores, "cpu": sum(cpu.values()) / wall,
                  "worker_cpu": sum(value for pid, value in cpu.items() if pid != me) / wall,
                  "cpus": zlib.crc32(repr(self.cpus).encode()), "resident_gib": self.peak_gib,
                  "faults_per_s": sum(grown("faults").values()) / wall}
        if now["queue"] and before["queue"]:
            sample["queue"] = sum(grown("queue").values()) / wall
            wanted = sample["cpu"] + sample["queue"]
            sample["cpu_share"] = sample["cpu"] / wanted if wanted > 0.01 else 1.0
        if now["idle"] is not None and before["idle"] is not None:
            # of a limit less than the machine, others take only what idle cores don't make up for
            sample["busy"] = max(0.0, self.cores - (now["idle"] - before["idle"]) / wall)
        if now["stall"] is not None and before["stall"] is not None:
            sample["memory_stall"] = min(1.0, (now["stall"] - before["stall"]) / wall)
        if (used := self._memory_used()) is not None:
            sample["host_memory_used"] = used
        if self.device.type == "cuda":
            total = torch.cuda.get_device_properties(self.device).total_memory
            sample |= {"gpu_memory_used": torch.cuda.max_memory_reserved(self.device) / total,
                       "gpu_memory_retries": now["retries"] - before["retries"]}
        return sample

    def _memory_used(self) -> float | None:
        """Return the share of the memory in use, of the machine's or of a control group's limit: the larger one."""
        info = {line.split(":")[0]: line for line in read(self.proc / "meminfo").splitlines()}
        shares = []
        if "MemTotal" in info and "MemAvailable" in info:
            total, available = (int(info[name].split()[1]) for name in ("MemTotal", "MemAvailable"))
            shares.append(1 - available / total)
        for folder in self.limited:
            if (limit := _memory_limit(folder)) and (used := _memory_in(folder)) is not None:
                shares.append(used / limit)
        return max(shares, default=None)


def _cpu_limit(folder: Path) -> float | None:
    """Return the cores that a control group may use; None without a limit."""
    quota, _, period = read(folder / "cpu.max").strip().partition(" ")  # version 2
    quota = quota or read(folder / "cpu.cfs_quota_us").strip()
    period = period or read(folder / "cpu.cfs_period_us").strip()
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(quota) else None


def _memory_limit(folder: Path) -> int | None:
    """Return a control group's limit in bytes; None without one."""
    text = (read(folder / "memory.max") or read(folder / "memory.limit_in_bytes")).strip()
    return int(text) if text.isdigit() and 0 < int(text) < UNLIMITED else None


def _memory_in(folder: Path) -> int | None:
    """Return the bytes of a control group without files that the kernel can drop at once."""
    text = (read(folder / "memory.current") or read(folder / "memory.usage_in_bytes")).strip()
    names = dict(line.split() for line in read(folder / "memory.stat").splitlines() if len(line.split()) == 2)
    files = int(names.get("total_inactive_file", names.get("inactive_file", 0)))
    return max(0, int(text) - files) if text.isdigit() else None


def _pressure(text: str) -> float | None:
    """Return for how many seconds programs have waited for memory, by the kernel's pressure file; None without it."""
    for line in text.splitlines():
        if line.startswith("some") and "total=" in line:
            return int(line.rpartition("total=")[2]) / 1e6
    return None


def of_node(rows: list[dict]) -> dict[str, float]:
    """Return the usage of the ranks that share rank 0's cores, by the names of the log.

    Args:
        rows: the ranks' samples, with "node", the lowest rank of its node; rank 0's comes first.

    Returns:
        "cpu_cores": cores that the ranks and their workers use; "cpu_worker_cores": of these, the workers;
        "cpu_available": cores that they may use; "cpu_other_cores": cores of these that other programs use;
        "cpu_share": share of the CPU time that they got, of what they got and waited for; "host_memory_gib": highest
        resident memory of the node's ranks with their workers (memory that they share counts for each);
        "host_memory_used": share of the machine's memory, or of the job's limit, in use by anybody; "memory_stall":
        share of the time in which a program waited for memory; and for a GPU "gpu_memory_used" (the highest share that
        PyTorch has reserved) and "gpu_memory_retries" (how often it ran full and PyTorch emptied its cache).
    """
    first = rows[0]
    if "cpu" not in first:
        return {}
    node = [row for row in rows if row.get("node") == first.get("node") and "cpu" in row]
    sharers = [row for row in node if row["cpus"] == first["cpus"]]
    used = {"cpu_cores": sum(row["cpu"] for row in sharers), "cpu_available": first["cores"],
            "cpu_worker_cores": sum(row["worker_cpu"] for row in sharers),
            "host_memory_gib": sum(row["resident_gib"] for row in node), "faults_per_s": first["faults_per_s"]}
    if "busy" in first:
        used["cpu_other_cores"] = max(0.0, first["busy"] - used["cpu_cores"])
    if all("queue" in row for row in sharers):
        wanted = used["cpu_cores"] + sum(row["queue"] for row in sharers)
        used["cpu_share"] = used["cpu_cores"] / wanted if wanted > 0.01 else 1.0
    return used | {name: max(row.get(name, 0) for row in rows) for name in (
        "host_memory_used", "memory_stall", "gpu_memory_used", "gpu_memory_retries") if name in first}
