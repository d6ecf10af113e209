"""What measuring costs a training step: the clock of its phases, and the samples of CPU and memory.

    python benchmarks/measuring.py

It is counted in CPU time, which other programs don't lengthen: that of measuring one step as a rank with DDP does (a
hook for each of 400 parameters), beside that of the work in a small step. A sample of CPU and memory is taken at most
once a second, so its CPU time, with a thousand threads to look at or with few, is a share of a second.
"""
import argparse
import contextlib
import threading
import time

import torch

from egokit.train.timing import StepClock
from egokit.train.usage import EVERY, RARITY, Usage

PARAMETERS = 400
COLLECTIVES = 20  # of a step
TOY_STEP = 0.25   # seconds of CPU time of the toy's pre-training step in one of two ranks, a low estimate


def seconds_of_a_step(repeats: int) -> float:
    """Return the CPU time of measuring one step: that of a step which does nearly nothing, measured and not."""
    spent = []
    for measured in (False, True):
        clock, parameters = StepClock(torch.device("cpu")), [torch.zeros(1, requires_grad=True)
                                                             for _ in range(PARAMETERS)]
        if measured:
            clock.expect_gradients(parameters)
        with clock.running() if measured else contextlib.nullcontext():  # else the marks do nothing
            began = time.process_time()
            for _ in range(repeats):
                with clock.phase("forward"):
                    clock.entered()
                    loss = torch.cat(parameters).sum()
                with clock.phase("backward"):
                    loss.backward()
                with clock.phase("update"):
                    pass
                if measured:
                    for _ in range(COLLECTIVES):
                        with clock.waiting():
                            pass
                    clock.end_step()
            spent.append(time.process_time() - began)
    return max(0.0, spent[1] - spent[0]) / repeats


def seconds_of_a_sample(repeats: int, threads: int) -> float:
    """Return the CPU time of a sample, with so many more threads in the process."""
    ended = threading.Event()
    for _ in range(threads):
        threading.Thread(target=ended.wait, daemon=True).start()
    usage = Usage(torch.device("cpu"))
    began = time.process_time()
    for _ in range(repeats):
        usage.due = 0.0
        usage.take()
    spent = time.process_time() - began
    ended.set()
    return spent / repeats


def shares(repeats: int = 100, threads: int = 50) -> dict[str, float]:
    """Return the shares of a toy step's time that measuring takes: "step", "sample", and "sum"."""
    step, sample = seconds_of_a_step(repeats) / TOY_STEP, seconds_of_a_sample(repeats, threads)
    sample = sample / max(EVERY, RARITY * sample)
    return {"step": step, "sample": sample, "sum": step + sample}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--threads", type=int, default=50)
    arguments = parser.parse_args()
    for name, share in shares(arguments.repeats, arguments.threads).items():
        print(f"{name:8}{100 * share:8.3f} % of a toy step of {TOY_STEP:g} s")
