"""GPUs and CPUs: what a job sees, what it takes, what its ranks compute on, and whether that suits its recipe.

Only a local job's GPUs are chosen here: in a SLURM job, SLURM gives them. Importing this module does not import torch.
"""
from __future__ import annotations

import collections
import contextlib
import fcntl
import json
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from egokit.config.build import ConfigError
from egokit.config.schema import Config, LaunchConfig
from egokit.jobs import slurm, status

VARIABLE = "CUDA_VISIBLE_DEVICES"
IDLE_GIB = 1.0  # a GPU with less memory in use is free: drivers and displays take some
QUERY = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.used,memory.total", "--format=csv,noheader,nounits"]


class Gpu(NamedTuple):
    """One of this machine's GPUs, as nvidia-smi lists it."""
    index: int
    uuid: str
    name: str
    used_gib: float
    total_gib: float

    def __str__(self) -> str:
        return f"GPU {self.index} ({self.name}, {self.used_gib:.1f} of {self.total_gib:.0f} GiB in use)"


# what is there

def installed() -> list[Gpu]:
    """List this machine's GPUs, hidden ones included. The list is empty where nvidia-smi gives no answer."""
    try:
        listed = subprocess.run(QUERY, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = []
    for line in listed.stdout.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) >= 5 and parts[0].isdigit() and parts[1].startswith("GPU-"):  # else a warning, in words
            # "[N/A]" where a GPU shares the machine's memory
            used, total = (float(part) / 1024 if part.replace(".", "").isdigit() else 0.0 for part in parts[-2:])
            found.append(Gpu(int(parts[0]), parts[1], ", ".join(parts[2:-2]), used, total))
    return found


def visible(gpus: list[Gpu], environment: Mapping[str, str] = os.environ) -> list[Gpu]:
    """Select the GPUs that a process with this environment sees.

    Args:
        gpus: all of the machine.
        environment: its CUDA_VISIBLE_DEVICES decides; without one, all are visible.

    Returns:
        The GPUs in the process's own order. The list is empty where that can't be told: for parts of a GPU (MIG), and
        for numbers on a machine of different GPUs, which CUDA counts in another order than nvidia-smi.
    """
    value = environment.get(VARIABLE)
    if value is None:
        return list(gpus)
    counted_alike = len({gpu.name for gpu in gpus}) == 1 or environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    found = []
    for item in filter(None, (item.strip() for item in value.split(","))):
        same = [gpu for gpu in gpus if item == str(gpu.index) and counted_alike]
        same += [gpu for gpu in gpus if item.startswith("GPU-") and gpu.uuid.startswith(item)]
        if len(same) != 1:
            break  # CUDA, too, takes none from the first unknown one on
        found += same
    return found


def count() -> int:
    """Return how many GPUs PyTorch sees from here."""
    import torch
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def why_no_gpu() -> str:
    """Say why PyTorch sees no GPU from here."""
    import torch
    gpus, value = installed(), os.environ.get(VARIABLE)
    if not gpus:
        return "this machine has no GPU"
    number = f"{len(gpus)} GPU{'s' * (len(gpus) > 1)}"
    if value is not None and not visible(gpus):
        return f"{VARIABLE}={value!r} hides this machine's {number}: unset it, or name one"
    if not torch.version.cuda:
        return (f"PyTorch {torch.__version__} is a build without CUDA, which can't use this machine's {number}: "
                "install one with it")
    return (f"PyTorch {torch.__version__} (CUDA {torch.version.cuda}) can't use this machine's {number}: is the driver "
            "too old for it? nvidia-smi shows its version")


# before a job starts

def asks_for_gpus(launch: LaunchConfig) -> bool:
    """Tell whether a job's processes are to have GPUs, by launch.gpus_per_task or by SLURM options of the user's own."""
    return bool(launch.gpus_per_task) or (launch.cluster == "slurm" and slurm.own_gpus(launch))


def check(config: Config, action: str) -> str:
    """Check, before a job starts, that it will have the GPUs that it needs.

    Returns a sentence if a local job that was meant for GPUs will run on the CPU, else "".

    Raises:
        ConfigError: the recipe trains in fp16 and there will be no GPU, or a local job wants more than are visible.
    """
    launch, fp16 = config.launch, action == "train" and config.train.precision == "fp16"
    wanted = asks_for_gpus(launch)
    if fp16 and not wanted:
        raise ConfigError("train.precision is fp16, but launch.gpus_per_task=0 hides the GPUs: set launch.gpus_per_task=1, or "
                          "train.precision=bf16, which a CPU computes, too")
    if launch.cluster != "local" or not wanted:
        return ""
    there = count()
    if not there and fp16:
        raise ConfigError(f"train.precision is fp16, but {why_no_gpu()}. On a CPU train in bf16: "
                          "train.precision=bf16 launch.gpus_per_task=0")
    if 0 < there < launch.tasks_per_node:
        raise ConfigError(f"launch.tasks_per_node={launch.tasks_per_node}, but {there} GPU{'s are' if there > 1 else ' is'} "
                          f"visible here: set launch.tasks_per_node={there}, one process for each GPU, or launch.gpus_per_task=0 to "
                          "compute on the CPU")
    return "" if there else f"computes on the CPU: {why_no_gpu()} (launch.gpus_per_task=0 says that it is meant so)"


class Choice(NamedTuple):
    """The GPUs that a local job takes."""
    gpus: list[Gpu]
    notice: str          # which of them are in use already; "" if none is
    folder: Path | None  # of a file for each GPU that a job has taken; None where it can't be written

    @property
    def uuids(self) -> list[str]:
        return [gpu.uuid for gpu in self.gpus]

    def take(self, job: Path) -> None:
        """Write down that the job in that folder, which has been started, has these GPUs."""
        for gpu in self.gpus if self.folder else []:
            # a local job's number is that of its controller's process
            claim = {"process": status.read_job(job)["job_id"], "job": str(job)}
            with contextlib.suppress(OSError):  # a full disk: the job runs, and the next one sees its memory
                (self.folder / f"{gpu.uuid}.json").write_text(json.dumps(claim))


@contextlib.contextmanager
def choice(launch: LaunchConfig) -> Iterator[Choice]:
    """Choose a local job's GPUs, idle ones first; none where SLURM chooses or none are wanted.

    Two jobs that are submitted at once take different GPUs, because the choice is locked until the block ends, when the
    job has started. A job keeps what it took as long as its process lives. Other programs show by the memory they use.
    """
    local = launch.cluster == "local" and launch.gpus_per_task
    gpus = visible(installed()) if local else []
    folder = Path(tempfile.gettempdir()) / f"egokit-gpus-{os.getuid()}"
    if len(gpus) < launch.tasks_per_node:
        unknown = local and count() > launch.tasks_per_node
        notice = f"takes the first of {count()} GPUs: nvidia-smi doesn't tell which of them are idle" if unknown else ""
        yield Choice([], notice, None)
        return
    with held(folder) as safe:
        owners = {gpu.uuid: owner(folder, gpu) if safe else "" for gpu in gpus}
        used = {gpu.uuid: 0.0 if gpu.used_gib <= IDLE_GIB else gpu.used_gib for gpu in gpus}
        best = sorted(gpus, key=lambda gpu: (owners[gpu.uuid] != "", used[gpu.uuid]))[:launch.tasks_per_node]
        mine = [gpu for gpu in gpus if gpu in best]
        shared = [f"{gpu}{owners[gpu.uuid] and f', taken by the job in {owners[gpu.uuid]}'}"
                  for gpu in mine if owners[gpu.uuid] or used[gpu.uuid]]
        yield Choice(mine, f"shares what others use: {'; '.join(shared)}" if shared else "", folder if safe else None)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Make and lock a folder of this user's for the duration of the block.

    Temporary files lie where everybody may write, so another user's folder or link of that name is not touched.
    Yields whether that worked; if not, a warning is printed.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            state = folder.lstat()
            if state.st_uid != os.getuid() or not stat.S_ISDIR(state.st_mode):
                raise PermissionError("another user's, or a link")
            fcntl.flock(stack.enter_context(open(folder / "lock", "w")), fcntl.LOCK_EX)
            safe = True
        except OSError as error:
            print(f"which GPUs your other jobs have taken can't be told: {folder} ({error})", flush=True)
            safe = False
        yield safe


def owner(folder: Path, gpu: Gpu) -> str:
    """Return the folder of the living job that has taken the GPU, or "" if there is none."""
    try:
        claim = json.loads((folder / f"{gpu.uuid}.json").read_text())
        command = Path(f"/proc/{int(claim['process'])}/cmdline").read_bytes()
        return claim["job"] if b"submitit" in command and claim["job"].encode() in command else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


# in a rank

def of_rank(local_rank: int, chosen: list[str] = ()):
    """Return a rank's torch.device.

    Args:
        local_rank: the rank's number on its machine.
        chosen: UUIDs of the GPUs that the job takes, one for each rank. If there are none, the rank takes the GPU of
            its number among the visible ones, and without any visible GPU the CPU.
    """
    import torch
    number = count()
    if not number:
        return torch.device("cpu")
    there = {uuid_of(index): index for index in range(number)} if chosen else {}
    index = there.get(chosen[local_rank].removeprefix("GPU-")) if local_rank < len(chosen) else None
    return torch.device("cuda", local_rank % number if index is None else index)


def uuid_of(index: int) -> str:
    """Return a visible GPU's UUID, without "GPU-"."""
    import torch
    return str(torch.cuda.get_device_properties(index).uuid)


def describe(device, precision: str) -> str:
    """Describe what a rank will compute on: name, memory (also what other programs hold of it) and precision."""
    import torch
    if device.type == "cuda":
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(device))
        others = total - free - torch.cuda.memory_reserved(device) / 2**30
        used = f" ({others:.1f} in use by others)" if others > 2 * IDLE_GIB else ""  # CUDA's own share is some half GiB
        return f"{torch.cuda.get_device_name(device)}, {total:.0f} GiB{used}, {precision}"
    return f"CPU{cpu_name()}, {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB, {precision}"


def cpu_name() -> str:
    """Return the processor's name after a space, or "" if Linux doesn't tell."""
    cpus = Path("/proc/cpuinfo").read_text()
    found = re.search(r"^model name\s*: (.*?)( \d+-Core)?( Processor)?$", cpus, re.MULTILINE)
    return f" {found[1]}" if found else ""


def devices_text(devices: list[str]) -> str:
    """Write the devices of all ranks in one line, equal ones together."""
    return "; ".join(f"{number} x {device}" for device, number in collections.Counter(devices).items())
