"""What a step of pre-training computes, sends and holds as the number of ranks grows: before, and now.

    python benchmarks/scaling.py          (some minutes; docs/scaling.md reads what it printed, at the end of this file)

"Before" is the whole batch on every rank (whole_batch.py), "now" is egokit's code. Three parts:

- counted: sizes of the model, its gradients and checkpoints, and its arithmetic.
- one rank's part: this process plays one of 8, 64 or 512 ranks, at full width (one_rank.py).
- processes: gloo ranks here, 1, 2 and 4, with the collectives of egokit/train/, on tensors as training gives them,
  forward and backward. They share this machine's cores and memory, so nothing about a network follows. Bytes are what
  one rank receives by the plainest algorithm.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import torch
from one_rank import (
    D,
    E,
    S,
    draw_before,
    draw_now,
    loss_before,
    loss_now,
    move_before,
    move_now,
    one_rank,
    rows_of,
    wanted_rows,
)
from torch.utils.flop_counter import FlopCounterMode

from egokit.config.schema import ModelConfig
from egokit.model.egovlp import EgoVLP
from egokit.train import distributed

# counted

def counted() -> None:
    """Print sizes of parameters, gradients and checkpoints, and the forward arithmetic."""
    with torch.device("meta"):
        model = EgoVLP(ModelConfig())
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    total = sum(sizes.values())
    state = sum(tensor.nbytes for tensor in model.state_dict().values())
    roles = {role: sum(sizes[name] for name in names) for role, names in model.parameters_by_role().items()}
    by_role = ", ".join(f"{role} {count / 1e6:.1f}" for role, count in roles.items() if count)
    print(f"parameters {total / 1e6:.1f} M ({by_role}); gradients in fp32 {4 * total / 1e9:.2f} GB; "
          f"best.pt {state / 1e9:.2f} GB; a step's checkpoint {(state + 8 * total) / 1e9:.2f} GB")
    print("forward arithmetic, TFLOP (a multiplication and an addition are two)")
    for frames in (4, 16):
        tflop = arithmetic(frames)
        print(f"  {frames:2} frames: " + ", ".join(f"{name} {value:.3f}" for name, value in tflop.items())
              + f"; together {sum(tflop.values()):.3f}")


def arithmetic(frames: int) -> dict[str, float]:
    """Count the TFLOP of the forward passes of one clip and its text."""
    with torch.device("meta"):
        model = EgoVLP(ModelConfig(frames=frames)).eval()
        clip, ids = torch.zeros(1, frames, 3, 224, 224), torch.zeros(1, 15, dtype=torch.long)
    tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        trunk, words = model.fusion_trunk(clip), model.text_trunk(tokens)
    parts = {"embed_video": lambda: model.embed_video(clip), "fusion_trunk": lambda: model.fusion_trunk(clip),
             "fuse, mlm": lambda: model.mlm_from_states(
                 model.fuse(trunk, model.text_trunk(tokens), ids, frames, "mlm")[1]),
             "fuse, itm": lambda: model.fuse(trunk, words, ids, frames, "itm"),
             "embed_text": lambda: model.embed_text(tokens)}
    tflop = {}
    for name, part in parts.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            part()
        tflop[name] = counter.get_total_flops() / 1e12
    return tflop


# processes

def clock(repeats: int, function, *arguments) -> float:
    """Measure the seconds of one call, ranks starting together: the quickest on rank 0.

    The quickest, because other programs share the machine.
    """
    taken = []
    for _ in range(repeats + 1):
        distributed.barrier()
        began = time.perf_counter()
        function(*arguments)
        taken.append(time.perf_counter() - began)
    return min(taken[1:])


def collectives() -> dict[str, list]:
    """Return name -> [(bytes one rank receives, seconds)]; of "difference" the largest one, relative, of gradients."""
    W, rank = distributed.world_size(), distributed.rank()
    points: dict[str, list] = {}
    for b in (64, 256):
        rows, counts = rows_of(b, rank), [b] * W
        whole = loss_before(*rows, counts)
        gradients = [x.grad.clone() for x in rows[:2]]
        for x in rows[:2]:
            x.grad = None
        part = loss_now(*rows, counts)
        differences = [(x.grad - gradient).abs().max() / gradient.abs().max()
                       for x, gradient in zip(rows[:2], gradients, strict=True)]
        points.setdefault("difference", []).append((0, torch.stack(differences).max().item()))
        sent = (W - 1) * b * E * 4  # of one gather of embeddings
        blocks = 3 * (W - 1) * b * b * 4
        points.setdefault("loss before", []).append((6 * sent, clock(3, loss_before, *rows, counts)))
        points.setdefault("loss now", []).append((2 * sent + blocks, clock(3, loss_now, *rows, counts)))
        points.setdefault("draw before", []).append((0, clock(3, draw_before, *whole)))
        points.setdefault("draw now", []).append((0, clock(3, draw_now, *part)))
    for b in (8, 16, 32):
        x, counts, index_B = torch.zeros(b, S, D, requires_grad=True), [b] * W, wanted_rows(b * W)
        own = index_B.split(counts)[rank]
        other = int(((own < rank * b) | (own >= (rank + 1) * b)).sum())
        size = 2 * other * S * D * 4  # there, and their gradients back
        points.setdefault("rows before", []).append((size, clock(5, move_before, x, index_B, counts)))
        points.setdefault("rows now", []).append((size, clock(5, move_now, x, own, counts)))
    for count in (2**21, 2**23, 2**24):
        module = torch.nn.Linear(count, 1, bias=False)
        module.weight.grad = torch.zeros_like(module.weight)
        points.setdefault("gradients", []).append(
            (2 * (W - 1) / W * count * 4, clock(5, distributed.average_gradients, module)))
    points["stop"] = [(0, clock(50, lambda: distributed.start_any(False)()))]
    points["metrics"] = [(0, clock(5, distributed.gather_objects, {"index": np.zeros(198_755 // W)}))]
    return points


def measured() -> None:
    """Print times of the collectives for 1, 2 and 4 processes."""
    print("processes: ranks, what, (MB one rank receives, ms)")
    for world in (1, 2, 4):
        with tempfile.TemporaryDirectory() as folder:
            commands = [[sys.executable, __file__, str(rank), str(world), folder] for rank in range(world)]
            processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
            out = [process.communicate()[0] for process in processes]
        for name, points in json.loads(out[0].splitlines()[-1]).items():
            if name == "difference":
                listed = " ".join(f"{value:.1e}" for _, value in points)
            else:
                listed = " ".join(f"({size / 1e6:.1f}, {1e3 * seconds:.1f})" for size, seconds in points)
            print(f"  {world} {name:11} {listed}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        with distributed.joined(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]) / "meeting", local=True):
            mine = collectives()
        print(json.dumps(mine))
        sys.exit()
    counted()
    one_rank()
    measured()

# parameters 381.6 M (fusion 70.0, projection 73.4, backbone 238.2); gradients in fp32 1.53 GB; best.pt 1.53 GB; a
#   step's checkpoint 4.58 GB
# forward arithmetic, TFLOP (a multiplication and an addition are two)
#    4 frames: embed_video 0.175, fusion_trunk 0.093, fuse, mlm 0.101, fuse, itm 0.104, embed_text 0.002; together 0.476
#   16 frames: embed_video 0.700, fusion_trunk 0.371, fuse, mlm 0.394, fuse, itm 0.413, embed_text 0.002; together 1.881
# one rank's part on one core, the quickest of several draws, one call of the others
#  256 samples on 8 ranks: 512 rows, 64 of a rank
#   EgoNCE before      0.231 s      45.3 MB received      68.4 MB held   0.0068 TFLOP
#   draw before       0.0175 s
#   EgoNCE now         0.052 s      15.3 MB received      20.9 MB held   0.0009 TFLOP
#   draw now          0.0005 s
#   rows before        1.435 s      69.9 MB received     465.4 MB held
#   rows now           0.342 s      77.2 MB received     200.2 MB held   from 7 ranks at most
#  256 samples on 64 ranks: 512 rows, 8 of a rank
#   EgoNCE before      0.184 s      51.0 MB received      68.4 MB held   0.0068 TFLOP
#   draw before       0.0169 s
#   EgoNCE now         0.034 s      16.9 MB received      17.3 MB held   0.0001 TFLOP
#   draw now          0.0003 s
#   rows before        0.106 s      19.3 MB received      53.1 MB held
#   rows now           0.081 s      16.9 MB received      31.3 MB held   from 5 ranks at most
#  2,048 samples on 64 ranks: 4,096 rows, 64 of a rank
#   EgoNCE before      6.235 s     407.7 MB received     839.0 MB held   0.4358 TFLOP
#   draw before       1.4113 s
#   EgoNCE now         0.174 s     138.0 MB received     145.0 MB held   0.0068 TFLOP
#   draw now          0.0017 s
#   rows before        0.790 s      77.2 MB received     458.2 MB held
#   rows now           0.311 s      94.1 MB received     209.8 MB held   from 18 ranks at most
#  16,384 samples on 512 ranks: 32,768 rows, 64 of a rank
#   EgoNCE before    354.859 s    3261.2 MB received   25372.4 MB held  27.8915 TFLOP (extrapolated)
#   EgoNCE now         1.209 s    1119.7 MB received    1137.7 MB held   0.0545 TFLOP
#   draw now          0.0159 s
#   rows before        1.180 s      74.8 MB received     451.0 MB held
#   rows now           0.291 s      70.2 MB received     197.7 MB held   from 18 ranks at most
# processes: ranks, what, (MB one rank receives, ms)
#   1 difference  1.6e-07 1.6e-07
#   1 loss before (0.0, 33.2) (0.0, 160.1)
#   1 loss now    (0.0, 27.6) (0.0, 191.5)
#   1 draw before (0.0, 0.5) (0.0, 16.8)
#   1 draw now    (0.0, 0.4) (0.0, 1.0)
#   1 rows before (0.0, 89.6) (0.0, 201.8) (0.0, 460.9)
#   1 rows now    (0.0, 65.6) (0.0, 177.0) (0.0, 351.6)
#   1 gradients   (0.0, 0.0) (0.0, 0.0) (0.0, 0.0)
#   1 stop        (0.0, 0.0)
#   1 metrics     (0.0, 0.0)
#   2 difference  2.1e-07 2.4e-07
#   2 loss before (6.3, 116.5) (25.2, 915.5)
#   2 loss now    (2.1, 34.1) (9.2, 349.4)
#   2 draw before (0.0, 1.5) (0.0, 34.1)
#   2 draw now    (0.0, 0.8) (0.0, 1.4)
#   2 rows before (4.8, 250.7) (4.8, 1388.5) (24.1, 2364.2)
#   2 rows now    (4.8, 60.9) (4.8, 596.8) (24.1, 988.1)
#   2 gradients   (8.4, 13.6) (33.6, 59.3) (67.1, 116.0)
#   2 stop        (0.0, 0.1)
#   2 metrics     (0.0, 6.0)
#   4 difference  2.5e-07 2.0e-07
#   4 loss before (18.9, 403.0) (75.5, 6110.9)
#   4 loss now    (6.4, 113.2) (27.5, 1494.3)
#   4 draw before (0.0, 12.8) (0.0, 665.3)
#   4 draw now    (0.0, 1.2) (0.0, 2.7)
#   4 rows before (0.0, 511.2) (19.3, 1850.0) (38.6, 3992.3)
#   4 rows now    (0.0, 252.7) (19.3, 821.2) (38.6, 1665.6)
#   4 gradients   (12.6, 38.0) (50.3, 150.9) (100.7, 513.9)
#   4 stop        (0.0, 0.2)
#   4 metrics     (0.0, 12.7)
