"""How long training waits for a checkpoint: written at once, and written by a thread from a copy.

    python benchmarks/checkpoints.py [DEPTH [FOLDER]]    (what it printed stands at the end of this file)

The model is EgoVLPv2 with DEPTH blocks (12: as it is published, 4.6 GB with AdamW's moments), on the GPU if there is
one. Both ways take turns in one run, on one disk. Meanwhile steps change every weight in place, as an optimizer does.
Each file is compared with the weights of the moment at which it was to be written.
"""
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from egokit.config.schema import ModelConfig
from egokit.model import checkpoints
from egokit.model.egovlp import EgoVLP
from egokit.train.checkpoint_writer import CheckpointWriter

ROUNDS, STEPS = 3, 4


def training(depth: int, device: str) -> tuple[torch.nn.Module, dict]:
    """Return a model, and the content of its checkpoints with moments of AdamW's sizes."""
    with torch.device(device):
        model = EgoVLP(ModelConfig(depth=depth, num_fused_layers=min(depth, 6)))
    moments = {}
    for number, parameter in enumerate(model.parameters()):
        moments[number] = {"step": torch.tensor(1.0), "exp_avg": torch.randn_like(parameter).detach(),
                           "exp_avg_sq": torch.rand_like(parameter).detach()}
    return model, {"state_dict": model.state_dict(), "optimizer": {"state": moments}}


@torch.no_grad()
def step(model) -> float:
    """Change all weights in place, as an optimizer does; return the seconds that it took."""
    began = time.perf_counter()
    torch._foreach_mul_([*model.parameters()], 0.999)
    if next(model.parameters()).is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def checksum(state: dict) -> float:
    return sum(value.double().sum().item() for value in state.values())


def main(depth: int, folder: Path) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, content = training(depth, device)
    state, moments = content["state_dict"], content["optimizer"]["state"].values()
    gigabytes = sum(value.nbytes for part in (state, *moments) for value in part.values()) / 1e9
    print(f"{gigabytes:.2f} GB on {device}, {torch.get_num_threads()} threads; seconds of {ROUNDS} rounds, and their "
          "median")
    plain, copied, idle, beside, written = [], [], [], [], []
    path = folder / "step.pt"
    with CheckpointWriter() as writer:
        for number in range(ROUNDS + 1):
            expected, began = checksum(state), time.perf_counter()
            checkpoints.write(path, content)
            plain.append(time.perf_counter() - began)
            idle += [step(model) for _ in range(STEPS)]
            assert checksum(checkpoints.read(path)["state_dict"]) == expected
            path.unlink()

            expected, began = checksum(state), time.perf_counter()
            writer.write(path, content, "step")
            copied.append(time.perf_counter() - began)
            while not path.exists():
                beside.append(step(model))
            writer.finish()
            written.append(time.perf_counter() - began)
            assert checksum(checkpoints.read(path)["state_dict"]) == expected
            path.unlink()
            print(f"round {number}: written at once {plain[-1]:.2f}; copied {copied[-1]:.2f}, whole after "
                  f"{written[-1]:.2f}", flush=True)
            if number == 0:  # files and memory were new
                for values in (plain, copied, written, idle, beside):
                    values.clear()
        held = writer.bytes
    for name, values in (("training waits, written at once", plain), ("training waits, for the copy", copied),
                         ("until the thread's file is whole", written)):
        print(f"{name:34}", *(f"{value:7.2f}" for value in values), f"   {statistics.median(values):.2f}")
    print(f"a step that changes all weights: {1e3 * statistics.median(idle):.0f} ms, beside the thread "
          f"{1e3 * statistics.median(beside):.0f} ms; memory of the copy {held / 1e9:.2f} GB")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as scratch:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 12, Path(scratch))

# On two CPU cores that five other jobs used, too (a virtual disk), DEPTH 2:
#
# 2.37 GB on cpu, 1 threads; seconds of 3 rounds, and their median
# round 0: written at once 11.83; copied 4.63, whole after 32.78
# round 1: written at once 13.06; copied 1.96, whole after 26.67
# round 2: written at once 11.96; copied 1.36, whole after 21.18
# round 3: written at once 9.55; copied 0.85, whole after 20.22
# training waits, written at once      13.06   11.96    9.55    11.96
# training waits, for the copy          1.96    1.36    0.85    1.36
# until the thread's file is whole     26.67   21.18   20.22    21.18
# a step that changes all weights: 256 ms, beside the thread 411 ms; memory of the copy 2.42 GB
#
# The first copy is longer, as the kernel gives its memory. The thread writes longer than a write at once takes, because
# the steps took turns with it; a training on GPUs leaves it a core. Neither was measured on a GPU.
