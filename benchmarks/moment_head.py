"""What a training step of the heads on stored features costs, on EgoMQ's and EgoNLQ's shapes.

    python benchmarks/moment_head.py [turns]      (5; it prints the table at the end of this file)

A step is the forward pass, targets and losses, the backward pass and AdamW, in float32 on one CPU thread, on drawn
features and moments. Shapes: EgoMQ, 2 clips of 928 x 4,096 to 256 channels, 110 classes, 20 moments each; EgoNLQ, 4
questions of 900 x 768 with 12 tokens of 768, 1 moment each; the span head at the original's sizes, 32 questions of 256
x 768. Each case runs in a process of its own. `peak` is memory above that before the first step, and includes
gradients, AdamW's moments and what the allocator keeps. Seconds are CPU time. With a GPU, the step is measured there:
in bf16, by the clock, with the memory of PyTorch's allocator.
"""
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from egokit.model import span_head
from egokit.model.moment_head import MomentHead, losses, targets
from egokit.model.span_head import SpanHead

MQ, NLQ, SPAN = (2, 928, 4096), (4, 900, 768), (32, 256, 768)  # (B, T, E)
TOKENS, TOKEN_SIZE = 12, 768
CASES = {"EgoMQ, max-pool, no stem": (MQ, 110, {"stem": 0}),
         "EgoMQ, max-pool": (MQ, 110, {}),
         "EgoMQ, attention": (MQ, 110, {"pyramid": "attention"}),
         "EgoNLQ, max-pool": (NLQ, 1, {"text": TOKEN_SIZE}),
         "EgoNLQ, attention": (NLQ, 1, {"text": TOKEN_SIZE, "pyramid": "attention"}),
         "EgoNLQ, span": (SPAN, 1, None)}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def words(B: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the tokens of B questions and their mask."""
    return (torch.randn(B, TOKENS, TOKEN_SIZE, device=DEVICE),
            torch.ones(B, TOKENS, dtype=torch.bool, device=DEVICE))


def moment_case(shape: tuple[int, int, int], C: int, options: dict):
    """Return a single-stage head and a function that computes its loss on a drawn batch."""
    B, T, E = shape
    head = MomentHead(E, C, **options).to(DEVICE)
    M = 20 if C > 1 else 1
    starts = torch.rand(B, M, 1, device=DEVICE) * T * 0.8
    segments = torch.cat([starts, starts + torch.rand(B, M, 1, device=DEVICE) * T * 0.1], dim=2)
    classes = torch.randint(C, (B, M), device=DEVICE)
    inputs = torch.randn(B, E, T, device=DEVICE), torch.ones(B, T, dtype=torch.bool, device=DEVICE)
    text = words(B) if "text" in options else ()

    def loss() -> torch.Tensor:
        found = losses(head(*inputs, *text), *targets(head.points(T, DEVICE), segments, classes, C))
        return (found.focal + found.diou) / head.normaliser(found.positives)
    return head, loss


def span_case(shape: tuple[int, int, int]):
    """Return the span head and a function that computes its loss on a drawn batch."""
    B, P, E = shape
    head = SpanHead(E, TOKEN_SIZE, positions=P).to(DEVICE)
    inputs = torch.randn(B, P, E, device=DEVICE), torch.ones(B, P, dtype=torch.bool, device=DEVICE)
    text, labels = words(B), (torch.rand(B, P, device=DEVICE) < 0.1).float()
    starts, ends = torch.randint(P, (2, B), device=DEVICE)

    def loss() -> torch.Tensor:
        start, end, highlight = head(*inputs, *text)
        return (span_head.span_loss(start, end, starts, ends)
                + 5 * span_head.highlight_loss(highlight, labels, inputs[1]))
    return head, loss


def memory() -> float:
    """Return the greatest MiB so far: of the process, or of the GPU's allocator."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def clock() -> float:
    """Return CPU seconds of the process; on a GPU the wall clock's, when its work is done."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def measure(name: str, turns: int) -> None:
    """Print one case's row."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape, C, options = CASES[name]
    head, loss = span_case(shape) if options is None else moment_case(shape, C, options)
    optimizer, before, seconds = torch.optim.AdamW(head.parameters(), 1e-4), memory(), []
    for _ in range(turns + 1):  # the first is a warm-up
        begin = clock()
        with torch.autocast("cuda", torch.bfloat16, enabled=DEVICE.type == "cuda"):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(clock() - begin)
    parameters = sum(parameter.numel() for parameter in head.parameters()) / 1e6
    print(f"{name:26} {parameters:8.2f} {statistics.median(seconds[1:]):9.3f} {memory() - before:9.0f}", flush=True)


def main(turns: int) -> None:
    """Print the table, a process for each row."""
    print(f"torch {torch.__version__}, {'bf16 on ' + torch.cuda.get_device_name() if DEVICE.type == 'cuda' else 'CPU'}")
    print(f"{'':26} {'million':>8} {'seconds':>9} {'peak, MiB':>9}", flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for name in CASES:
        subprocess.run([sys.executable, __file__, str(turns), name], env=environment, check=True)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        measure(sys.argv[2], int(sys.argv[1]))
    else:
        main(int((sys.argv[1:] or [5])[0]))

# Printed on a machine of 2 cores (AMD EPYC) that others used, too; 3 turns:
#
# torch 2.15.0+cu132, CPU
#                             million   seconds peak, MiB
# EgoMQ, max-pool, no stem       4.22     0.381       270
# EgoMQ, max-pool                5.81     0.580       433
# EgoMQ, attention              11.34     0.657       557
# EgoNLQ, max-pool               4.68     0.857       724
# EgoNLQ, attention             12.07     1.145       960
# EgoNLQ, span                   0.70     1.822      1562
