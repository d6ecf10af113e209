"""GPUs and CPUs: what a job sees, what it takes, and what its ranks compute on.

Only a local job's GPUs are chosen here; SLURM gives its jobs theirs. Importing this module does not import torch.
"""
import collections
import contextlib
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
from egokit.runs.files import lock_file

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
IDLE_GIB = 1.0  # a GPU with less memory in use counts as idle, because drivers and displays take some
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


# the machine's GPUs

def list_gpus() -> list[Gpu]:
    """List this machine's GPUs, hidden ones included; empty where nvidia-smi gives no answer."""
    try:
        listing = subprocess.run(QUERY, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    gpus = []
    for line in listing.stdout.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) >= 5 and fields[0].isdigit() and fields[1].startswith("GPU-"):  # else a warning in words
            # memory is "[N/A]" where a GPU shares the machine's
            used, total = (float(field) / 1024 if field.replace(".", "").isdigit() else 0.0 for field in fields[-2:])
            gpus.append(Gpu(int(fields[0]), fields[1], ", ".join(fields[2:-2]), used, total))
    return gpus


def visible_gpus(gpus: list[Gpu], environment: Mapping[str, str] = os.environ) -> list[Gpu]:
    """Select the GPUs that a process with this environment sees.

    Args:
        gpus: all GPUs of the machine.
        environment: the process's variables. Its CUDA_VISIBLE_DEVICES decides; without one, all GPUs are visible.

    Returns:
        The GPUs in the order in which CUDA counts them. The list is empty where they can't be identified: for parts of
        a GPU (MIG), and for numbers on a machine of different GPUs, where CUDA's order is not nvidia-smi's.
    """
    value = environment.get(VISIBLE_DEVICES)
    if value is None:
        return list(gpus)
    counted_alike = len({gpu.name for gpu in gpus}) == 1 or environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    selected = []
    for item in filter(None, (item.strip() for item in value.split(","))):
        matches = [gpu for gpu in gpus if item == str(gpu.index) and counted_alike]
        matches += [gpu for gpu in gpus if item.startswith("GPU-") and gpu.uuid.startswith(item)]
        if len(matches) != 1:
            break  # as CUDA, which ignores everything from the first unknown item on
        selected += matches
    return selected


def gpu_count() -> int:
    """Return how many GPUs PyTorch sees in this process."""
    import torch
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def why_no_gpu() -> str:
    """Explain why PyTorch sees no GPU in this process."""
    import torch
    gpus, value = list_gpus(), os.environ.get(VISIBLE_DEVICES)
    if not gpus:
        return "this machine has no GPU"
    number = f"{len(gpus)} GPU{'s' * (len(gpus) > 1)}"
    if value is not None and not visible_gpus(gpus):
        return f"{VISIBLE_DEVICES}={value!r} hides this machine's {number}: unset it, or name one"
    if not torch.version.cuda:
        return (f"PyTorch {torch.__version__} is a build without CUDA, which can't use this machine's {number}: "
                "install one with it")
    return (f"PyTorch {torch.__version__} (CUDA {torch.version.cuda}) can't use this machine's {number}: is the driver "
            "too old for it? nvidia-smi shows its version")


# before a job starts

def check_gpus(config: Config, action: str) -> str:
    """Check, before a job starts, that it will have the GPUs that it needs.

    Returns:
        A notice if a local job that was meant for GPUs will run on the CPU, else "".

    Raises:
        ConfigError: the recipe trains in fp16 and there will be no GPU, or a local job wants more than are visible.
    """
    launch, fp16 = config.launch, action == "train" and config.train.precision == "fp16"
    wanted = slurm.asks_for_gpus(launch)
    if fp16 and not wanted:
        raise ConfigError("train.precision is fp16, but launch.gpus_per_task=0 hides the GPUs: set "
                          "launch.gpus_per_task=1, or train.precision=bf16, which a CPU computes, too")
    if launch.cluster != "local" or not wanted:
        return ""
    count = gpu_count()
    if not count and fp16:
        raise ConfigError(f"train.precision is fp16, but {why_no_gpu()}. On a CPU train in bf16: "
                          "train.precision=bf16 launch.gpus_per_task=0")
    if 0 < count < launch.tasks_per_node:
        raise ConfigError(f"launch.tasks_per_node={launch.tasks_per_node}, but {count} "
                          f"GPU{'s are' if count > 1 else ' is'} visible here: set launch.tasks_per_node={count}, one "
                          "process for each GPU, or launch.gpus_per_task=0 to compute on the CPU")
    return "" if count else f"computes on the CPU: {why_no_gpu()} (launch.gpus_per_task=0 says that it is meant so)"


class GpuChoice(NamedTuple):
    """The GPUs that a local job takes."""
    uuids: list[str]
    notice: str          # which of them are in use already; "" if none is


@contextlib.contextmanager
def choose_gpus(launch: LaunchConfig) -> Iterator[GpuChoice]:
    """Choose a local job's GPUs, idle ones first; none where SLURM chooses or none are wanted.

    Use it as a context manager around the job's start. Two jobs that are submitted at once take different GPUs, because
    the choice holds a lock until the block ends. Other jobs' GPUs are known as long as these jobs' processes live, and
    those of other programs by the memory in use.
    """
    local = launch.cluster == "local" and launch.gpus_per_task
    gpus = visible_gpus(list_gpus()) if local else []
    if len(gpus) < launch.tasks_per_node:
        unknown = local and gpu_count() > launch.tasks_per_node
        yield GpuChoice([], f"takes the first of {gpu_count()} GPUs: nvidia-smi doesn't tell which of them are idle"
                        if unknown else "")
        return
    with locked_folder(Path(tempfile.gettempdir()) / f"egokit-gpus-{os.getuid()}"):
        owners = gpu_owners()
        used = {gpu.uuid: 0.0 if gpu.used_gib <= IDLE_GIB else gpu.used_gib for gpu in gpus}
        best = sorted(gpus, key=lambda gpu: (gpu.uuid in owners, used[gpu.uuid]))[:launch.tasks_per_node]
        chosen = [gpu for gpu in gpus if gpu in best]
        shared = [f"{gpu}, taken by the job in {owners[gpu.uuid]}" if gpu.uuid in owners else str(gpu)
                  for gpu in chosen if gpu.uuid in owners or used[gpu.uuid]]
        yield GpuChoice([gpu.uuid for gpu in chosen],
                        f"shares what others use: {'; '.join(shared)}" if shared else "")


def gpu_owners() -> dict[str, Path]:
    """Return the folder of the living job on this machine that has taken a GPU, by the GPU's UUID."""
    owners = {}
    for folder in status.local_jobs():
        with contextlib.suppress(OSError, ValueError):  # another user's, or not egokit's
            owners |= dict.fromkeys((status.read_spec(folder) or {}).get("gpus", []), folder)
    return owners


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Create this user's private folder and hold its lock; where that is impossible, print a warning and go on.

    The folder lies where everybody may write, in the folder for temporary files: another user's folder of that name,
    or a link, is not touched.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            state = folder.lstat()
            if state.st_uid != os.getuid() or not stat.S_ISDIR(state.st_mode):
                raise PermissionError("another user's, or a link")
            stack.enter_context(lock_file(folder / "lock"))
        except OSError as error:
            print(f"a job that is submitted at the same time may take the same GPUs: {folder} ({error})", flush=True)
        yield


# in a rank

def rank_device(local_rank: int, chosen: list[str] = ()):
    """Return the torch.device that a rank computes on.

    Args:
        local_rank: the rank's number on its machine.
        chosen: UUIDs of the GPUs that the job takes, one for each rank. If there are none, the rank takes the visible
            GPU with its own number, modulo their count. Without any visible GPU it takes the CPU.
    """
    import torch
    count = gpu_count()
    if not count:
        return torch.device("cpu")
    indices = {gpu_uuid(index): index for index in range(count)} if chosen else {}
    index = indices.get(chosen[local_rank].removeprefix("GPU-")) if local_rank < len(chosen) else None
    return torch.device("cuda", local_rank % count if index is None else index)


def gpu_uuid(index: int) -> str:
    """Return a visible GPU's UUID, without "GPU-"."""
    import torch
    return str(torch.cuda.get_device_properties(index).uuid)


def describe_device(device, precision: str) -> str:
    """Describe what a rank computes on: device name, memory and precision.

    A GPU's memory that other programs use is named, too.
    """
    import torch
    if device.type == "cuda":
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(device))
        others = total - free - torch.cuda.memory_reserved(device) / 2**30
        used = f" ({others:.1f} in use by others)" if others > 2 * IDLE_GIB else ""  # CUDA's own share is some half GiB
        return f"{torch.cuda.get_device_name(device)}, {total:.0f} GiB{used}, {precision}"
    return f"CPU{cpu_name()}, {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB, {precision}"


def cpu_name() -> str:
    """Return the processor's name after a space, or "" if Linux doesn't give it."""
    cpus = Path("/proc/cpuinfo").read_text()
    name = re.search(r"^model name\s*: (.*?)( \d+-Core)?( Processor)?$", cpus, re.MULTILINE)
    return f" {name[1]}" if name else ""


def devices_text(devices: list[str]) -> str:
    """Return the devices of all ranks in one line, equal ones counted."""
    return "; ".join(f"{number} x {device}" for device, number in collections.Counter(devices).items())
