"""What bounds a training's speed, judged from the newest lines of its log, and what to change.

docs/slow.md explains the numbers. A log of an earlier version has fewer of them: then less is said.
"""
import math
from typing import NamedTuple

import numpy as np

from egokit.runs.log import History

RECENT = 20         # newest lines of the log, or groups of them, of which medians are taken
SAVES = 200         # newest lines, over which checkpoints are averaged: most lines have none
DATA_BOUND = 0.3    # share of the step time spent waiting for data, above which training is data-bound
WAIT_BOUND = 0.25   # share of the step time spent waiting for other ranks, above which they are the bound
SAVE_BOUND = 0.2    # share of the step time spent waiting for checkpoints
STARVED = 0.75      # share of the wanted CPU time that the processes get, below which they lack cores
STARVED_GPU = 0.5   # the same where a GPU computes: readers ahead of it may wait without harm
QUEUED = 0.2        # share of the time that a rank's threads wait for a core, below which it does no harm
SAME_RANK = 0.7     # share of the recent lines in which one rank is the slowest, if it is always the same one
FULL = 0.9          # share of cores, or of memory, in use, above which there is none left
STALLED = 0.1       # share of the time in which programs wait for memory
OTHERS = 0.15       # share of the cores that other programs use, above which they are told


class Verdict(NamedTuple):
    """What bounds a training.

    Attributes:
        bound: "data", "cpu", "memory", "gpu", "computing", "ranks", "saving", or "" if nothing does or can be told.
        title: the bound in a few words, with its number.
        advice: what to change; "" if nothing need be.
    """
    bound: str
    title: str
    advice: str = ""


class Recent:
    """The newest lines of a log as single numbers, since the training began to run on its present machine.

    Processes that read ahead start together, so their batches come together, too: one step waits, and then as many do
    not as there are processes. Numbers are therefore means of groups of lines that cover so many steps.
    """

    def __init__(self, history: History):
        self.training, self.machine = history.training, history.machine
        self.first = history.machine_row if history.machine_row < history.training.rows else 0
        apart = np.diff(self.column("step"))
        apart = max(1.0, float(np.median(apart))) if len(apart) else 1.0
        self.lines = max(1, min(math.ceil(self.machine.get("workers", 0) / apart), self.training.rows - self.first))

    def column(self, name: str):
        """Return a column without the lines of an earlier machine."""
        return self.training[name][self.first:]

    def means(self, values):
        """Return the finite means of the newest groups of lines, without the first line, which waits for a start."""
        values = values[1:] if len(values) > self.lines else values
        values = values[len(values) % self.lines:][-RECENT * self.lines:].reshape(-1, self.lines)
        are_finite = np.isfinite(values)
        sums, counts = np.where(are_finite, values, 0).sum(1), are_finite.sum(1)
        return sums[counts > 0] / counts[counts > 0]

    def median(self, name: str) -> float:
        """Return the median of a column's newest numbers; NaN if there are none."""
        means = self.means(self.column(name))
        return float(np.median(means)) if len(means) else float("nan")

    def share(self, *names: str) -> float:
        """Return the median share of the step time of columns of seconds, summed; NaN if one is missing."""
        values, steps = sum(self.column(f"speed/{name}") for name in names), self.column("speed/step_s")
        are_known = np.isfinite(values) & np.isfinite(steps)
        values, steps = (self.means(np.where(are_known, column, np.nan)) for column in (values, steps))
        return float(np.median(values[steps > 0] / steps[steps > 0])) if (steps > 0).any() else float("nan")

    def saving(self) -> float:
        """Return the share of the time that is spent waiting for checkpoints."""
        step, save = (self.column(f"speed/{name}")[-SAVES:] for name in ("step_s", "save_s"))
        return float(np.nansum(save) / np.nansum(step)) if np.nansum(step) else 0.0

    def slowest(self) -> tuple[int, float]:
        """Return the rank that is the slowest most often, and in which share of the lines it is."""
        ranks = self.column("ranks/slowest_rank")
        ranks, counts = np.unique(ranks[np.isfinite(ranks)][-RECENT * self.lines:], return_counts=True)
        if not len(ranks):
            return 0, 0.0
        return int(ranks[counts.argmax()]), float(counts.max() / counts.sum())

    def ranks_on_node(self) -> int:
        """Return the number of ranks that share the cores."""
        return max(1, self.machine.get("ranks_on_node", 1))

    def retries(self) -> int:
        """Return how often a GPU's memory ran full."""
        return int(np.nansum(self.column("machine/gpu_memory_retries")[-RECENT:]))


def percent(share: float) -> str:
    """Write a share as '62 %'."""
    return f"{100 * share:.0f} %"


def verdict(history: History) -> Verdict:
    """Return what bounds a training's speed and what to change, from its log.

    The causes come first that make others look like the bound: a machine without memory is slow at everything.

    Args:
        history: the log, read.
    """
    recent = Recent(history)
    if not history.training.rows:
        return Verdict("", "no training steps")
    if np.isnan(recent.share("forward_s")):  # an earlier version's log, or a GPU's before its first times
        share = np.nan_to_num(recent.share("data_s"))
        advice = data_advice(recent) if share > DATA_BOUND else ""
        return (Verdict("data", f"data-bound: {percent(share)} waiting for data", advice) if advice else
                Verdict("", f"not data-bound: {percent(share)} waiting for data"))
    for judge in (memory, saving, other_ranks, data, cores):
        if found := judge(recent):
            return found
    return computing(recent)


def memory(recent: Recent) -> Verdict | None:
    """Judge the memory of the machine, and of the GPU."""
    used, stall = recent.median("machine/host_memory_used"), recent.median("machine/memory_stall")
    if used > FULL and (stall > STALLED or recent.median("machine/faults_per_s") > 100):
        return Verdict("memory", f"memory: {percent(used)} of the machine's, or of the job's limit, is in use",
                       f"programs wait for memory; this training has {recent.median('machine/host_memory_gib'):.1f} "
                       "GiB of it. End other programs, use fewer data.workers, or on SLURM raise "
                       "launch.mem_gb_per_task")
    if recent.retries() > 1:
        return Verdict("memory", f"GPU memory: full {recent.retries()} times in the newest lines",
                       "PyTorch then empties its cache and waits: a smaller train.micro_batch, or "
                       "model.checkpointing=cheap, leaves room; or end what else uses the GPU (nvidia-smi)")
    return None


def saving(recent: Recent) -> Verdict | None:
    """Judge the waiting for checkpoints."""
    share = recent.saving()
    if share < SAVE_BOUND:
        return None
    return Verdict("saving", f"checkpoints: {percent(share)} of the time waits for them to be written",
                   "raise train.checkpoint_steps, or put outputs on a faster disk (EGOKIT_OUTPUTS)")


def other_ranks(recent: Recent) -> Verdict | None:
    """Judge the waiting of ranks for each other."""
    step, own = max(1e-9, recent.median("speed/step_s")), recent.share("wait_s")
    longest, least = recent.median("ranks/longest_wait_s") / step, recent.median("ranks/slowest_wait_s") / step
    rank, often = recent.slowest()
    if longest - least > WAIT_BOUND and often > SAME_RANK:
        what, advice = why_slow(recent, step, longest - least)
        return Verdict("ranks", f"waiting for rank {rank}: up to {percent(longest)}", f"rank {rank} {what}: "
                       f"{advice}")
    if longest > WAIT_BOUND and longest - least > WAIT_BOUND:
        return Verdict("ranks", f"waiting for other ranks: up to {percent(longest)}",
                       "now one rank is late and now another: more data.workers even out slow samples where cores are "
                       "free; fewer ranks on a node leave more cores to each")
    if own > WAIT_BOUND and (reading := recent.share("data_s")) > DATA_BOUND / 2:
        return Verdict("data", f"data-bound: {percent(reading)} waiting for data, {percent(own)} for other ranks",
                       f"now one rank's data are late and now another's: {data_advice(recent)}")
    if own > WAIT_BOUND:
        return Verdict("ranks", f"communication: {percent(own)} of a step, on all ranks alike",
                       "the gradients take long to travel: name the fast network (NCCL_SOCKET_IFNAME in launch.setup), "
                       "use fewer nodes, or give each rank more samples (train.batch_size)")
    return None


def why_slow(recent: Recent, step: float, late: float) -> tuple[str, str]:
    """Return what the slowest rank does, and what to do about it.

    Args:
        late: by which share of a step it is later than the others.
    """
    if recent.median("ranks/slowest_data_s") / step > DATA_BOUND:
        return "waits for its data", "see that its node reads as fast as the others (egokit doctor --speed there)"
    if recent.median("ranks/slowest_queued") > late / 2:
        return "gets too few cores", ("another program runs on its node, or too many threads; leave the node out "
                                      "(launch.slurm: {exclude: NODE}) or reserve whole nodes (launch.exclusive)")
    return "computes longer than the others", ("look at its node (devices.txt of the job names the GPUs): another "
                                               "program, another GPU model, heat; leave it out "
                                               "(launch.slurm: {exclude: NODE})")


def data(recent: Recent) -> Verdict | None:
    """Judge the waiting for data."""
    share = recent.share("data_s")
    if not share > DATA_BOUND:
        return None
    if (starved := cores(recent, share / 2)) and others_run(recent):  # else the readers wait for something else
        return starved
    return Verdict("data", f"data-bound: {percent(share)} waiting for data", data_advice(recent))


def data_advice(recent: Recent) -> str:
    """Return what makes the reading faster, with the cores that are left."""
    workers, available = recent.machine.get("workers"), recent.median("machine/cpu_available")
    used = recent.median("machine/cpu_cores") + np.nan_to_num(recent.median("machine/cpu_other_cores"))
    if workers is None or np.isnan(used):
        return "more data.workers, if cores are free; egokit doctor --speed measures the reading"
    idle, cheaper = available - used, "prepare smaller videos (egokit prep)"
    if idle < 0.1 * available or idle < 0.5:
        if recent.median("machine/cpu_share") < STARVED and workers:
            return (f"all {available:g} cores are busy and the readers wait for one: more cores "
                    f"(launch.cpus_per_task), not more data.workers; or {cheaper}")
        return (f"all {available:g} cores are busy, so more data.workers would take them from the computing: more "
                f"cores (launch.cpus_per_task), or {cheaper}")
    if not workers:
        return f"data.workers={max(1, int(idle))}: {idle:.1f} of {available:g} cores are idle and could read ahead"
    each = recent.median("machine/cpu_worker_cores") / (workers * recent.ranks_on_node())
    if each < 0.3:
        return (f"the loader's processes compute {percent(each)} of the time and else wait for files: a faster disk "
                "or a copy on the node's own; more data.workers wait side by side (egokit doctor --speed measures)")
    return f"data.workers={workers + max(1, int(idle))}: {idle:.1f} of {available:g} cores are idle"


def others_run(recent: Recent) -> bool:
    """Return whether other programs use a good part of the cores."""
    return recent.median("machine/cpu_other_cores") > OTHERS * recent.median("machine/cpu_available")


def cores(recent: Recent, queued: float = QUEUED) -> Verdict | None:
    """Judge whether the processes get the CPU time that they want.

    Args:
        queued: share of the time that a rank's threads must wait for a core.
    """
    share, available = recent.median("machine/cpu_share"), recent.median("machine/cpu_available")
    used, other = recent.median("machine/cpu_cores"), recent.median("machine/cpu_other_cores")
    if np.isnan(share):  # this kernel doesn't tell how long a thread waits
        share = 0.0 if used + other > FULL * available and other > 2 * OTHERS * available else 1.0
        told = ""
    else:
        told = f": the processes get {percent(share)} of the CPU time that they want"
    if share > (STARVED_GPU if recent.machine.get("device") == "cuda" else STARVED):
        return None
    if share and used * (1 / share - 1) / recent.ranks_on_node() < queued:
        return None
    if others_run(recent):
        return Verdict("cpu", f"CPU share{told}",
                       f"other programs use {other:.1f} of {available:g} cores: end them, take another machine, or on "
                       "SLURM reserve the cores (launch.cpus_per_task, launch.exclusive)")
    return Verdict("cpu", f"CPU share{told}",
                   f"its own threads compete for {available:g} cores: raise launch.cpus_per_task, or use fewer "
                   "data.workers or processes (launch.tasks_per_node)")


def computing(recent: Recent) -> Verdict:
    """Say that nothing holds the computing up."""
    share, machine = recent.share("forward_s", "backward_s", "update_s"), recent.machine
    parts = ", ".join(f"{name} {percent(recent.share(f'{name}_s'))}" for name in ("forward", "backward", "update"))
    if machine.get("device") != "cuda":
        many = recent.median("machine/cpu_available")
        on = "" if np.isnan(many) else f" on {many:g} core{'s' * (many != 1)}"
        return Verdict("computing", f"computing: {percent(share)} of a step{on}",
                       f"{parts}. Nothing holds it up: a GPU, or more cores (launch.cpus_per_task), make it faster")
    hints = [hint for hint, given in (
        ("train.precision=bf16 or fp16", machine.get("precision") == "fp32"),
        ("train.compile=true", machine.get("compile") is False),
        ("more GPUs (launch.tasks_per_node, launch.nodes)", True)) if given]
    full = recent.median("machine/gpu_memory_used")
    note = f"; its memory is {percent(full)} full" if full > 0.95 else ""
    return Verdict("gpu", f"GPU: it computes {percent(share)} of a step{note}",
                   f"{parts}. What may make it faster: {', '.join(hints)}; egokit profile shows the operations")
