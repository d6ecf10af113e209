"""What a step of pre-training sends and holds as the number of ranks grows.

    python benchmarks/scaling.py          (some minutes; docs/scaling.md reads what it printed, at the end of this file)

Sizes are counted from the model; times are measured with gloo processes here. The collectives are those of
egokit/train/distributed.py, on tensors as training gives them, forward and backward. Bytes are what one rank receives
by the plainest algorithm; for rows they are all that it ends up with, its own rows included, because those are copied
too. Ranks on one machine share its cores, so the time is fitted to the bytes of all ranks together.
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
from torch.utils.flop_counter import FlopCounterMode

from egokit.config.schema import ModelConfig
from egokit.model.egovlp import EgoVLP
from egokit.tasks import losses
from egokit.train import distributed, moving
from egokit.train.parts import Part

E, S, D = 4096, 785, 768  # size of an embedding; tokens of a clip of 4 frames, and their width


# counted

def counted() -> None:
    """Print sizes of parameters, gradients and checkpoints, and the forward arithmetic."""
    with torch.device("meta"):
        model = EgoVLP(ModelConfig())
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    total = sum(sizes.values())
    state = sum(tensor.nbytes for tensor in model.state_dict().values())
    roles = {role: sum(sizes[name] for name in names) for role, names in model.parameters_by_role().items()}
    by_role = ", ".join(f"{role} {count / 1e6:.1f}" for role, count in roles.items())
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


# what every rank computes on the whole batch

def whole_batch() -> None:
    """Measure what every rank computes for R clips with R texts, on one core.

    It is the loss on R x R, forward and backward, and rank 0's draw of hard negatives.
    """
    print(f"EgoNCE and its backward pass hold {held():.1f} matrices of R x R float32 at their peak")
    print("whole batch of R rows, one core: R, CPU seconds of similarity and EgoNCE with backward, of draw_pairs")
    for R in (512, 1024, 2048, 4096, 8192):
        # few dimensions: what is measured is what grows with R x R
        text, video = (torch.nn.functional.normalize(torch.randn(R, 64), dim=1).requires_grad_(True) for _ in range(2))
        verbs, nouns = (torch.rand(R, n).lt(1 / n).float() for n in (118, 582))
        began = time.process_time()
        similarity, positives = text @ video.T, losses.positives(verbs, nouns)
        loss = losses.egonce(similarity, positives)
        loss.backward()
        between = time.process_time()
        losses.draw_pairs(Part.whole(similarity), Part.whole(positives))
        print(f"  {R:5} {between - began:8.3f} {time.process_time() - between:8.3f}", flush=True)


def held(R: int = 1024) -> float:
    """Count what the loss holds at its peak, in R x R float32 matrices.

    The profiler's record of allocations is summed.
    """
    similarity = torch.randn(R, R, requires_grad=True)
    positives = torch.eye(R, dtype=torch.bool)
    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        losses.egonce(similarity, positives).backward()
    total = peak = 0
    allocations = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(allocations, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak / (4 * R * R)


# measured between processes

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
    """Return name -> [(bytes one rank receives, seconds)]."""
    W, generator = distributed.world_size(), torch.Generator().manual_seed(0)
    points: dict[str, list] = {"gather": [], "rows": [], "gradients": []}

    def gather(x):
        distributed.gather(x, [len(x)] * W).sum().backward()

    def rows(x, index):
        own = index.split(len(x))[distributed.rank()]
        moving.gather_rows(x, own, [len(x)] * W).sum().backward()

    for b in (16, 64, 256, 512):  # forward: all ranks' rows; backward: a sum of all ranks' gradients
        x = torch.zeros(b, E, requires_grad=True)
        points["gather"].append((3 * (W - 1) * b * E * 4, clock(7, gather, x)))
    for b in (4, 8, 16, 32):
        x = torch.zeros(b, S, D, requires_grad=True)
        index = torch.arange(b * W)
        # half keep their pair, and half of the others their video
        moved = torch.randperm(b * W, generator=generator)[:b * W // 4]
        index[moved] = torch.randint(b * W, (len(moved),), generator=generator)
        points["rows"].append((2 * b * S * D * 4, clock(7, rows, x, index)))
    for count in (2**18, 2**21, 2**23, 2**24):
        module = torch.nn.Linear(count, 1, bias=False)
        module.weight.grad = torch.zeros_like(module.weight)
        points["gradients"].append((2 * (W - 1) / W * count * 4, clock(5, distributed.average_gradients, module)))
    points["stop"] = [(0, clock(50, lambda: distributed.start_any(False)()))]
    points["metrics"] = [(0, clock(5, distributed.gather_objects, {"index": np.zeros(198_755 // W)}))]
    return points


def measured() -> None:
    """Print times of the collectives for 1, 2 and 4 processes, and a line fitted to them."""
    print("collectives: ranks, what, [(MB one rank receives, ms)], "
          "then a + b x bytes: a in ms, b as GB/s of all ranks together")
    for world in (1, 2, 4):
        with tempfile.TemporaryDirectory() as folder:
            commands = [[sys.executable, __file__, str(rank), str(world), folder] for rank in range(world)]
            processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
            out = [process.communicate()[0] for process in processes]
        for name, points in json.loads(out[0].splitlines()[-1]).items():
            listed = " ".join(f"({size / 1e6:.1f}, {1e3 * seconds:.1f})" for size, seconds in points)
            fitted = ""
            if points[-1][0]:
                size, seconds = np.array(points).T
                weight = 1 / seconds  # fit relative, not absolute, errors
                columns = np.stack([weight, size * world * weight], 1)
                (a, b), *_ = np.linalg.lstsq(columns, np.ones(len(size)), rcond=None)
                error = np.abs((a + b * size * world) / seconds - 1).max()
                fitted = f"   a {1e3 * a:.1f} ms, b {1e-9 / b:.2f} GB/s, off by at most {100 * error:.0f} %"
            print(f"  {world} {name:10} {listed}{fitted}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        with distributed.joined(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]) / "meeting", local=True):
            mine = collectives()
        print(json.dumps(mine))
        sys.exit()
    counted()
    whole_batch()
    measured()

# parameters 381.6 M (fusion 70.0, projection 73.4, backbone 238.2); gradients in fp32 1.53 GB; best.pt 1.53 GB;
#   a step's checkpoint 4.58 GB
# forward arithmetic, TFLOP (a multiplication and an addition are two)
#    4 frames: embed_video 0.175, fusion_trunk 0.093, fuse, mlm 0.101, fuse, itm 0.104, embed_text 0.002; together 0.476
#   16 frames: embed_video 0.700, fusion_trunk 0.371, fuse, mlm 0.394, fuse, itm 0.413, embed_text 0.002; together 1.881
# EgoNCE and its backward pass hold 7.3 matrices of R x R float32 at their peak
# whole batch of R rows, one core: R, CPU seconds of similarity and EgoNCE with backward, of draw_pairs
#     512    0.012    0.014
#    1024    0.068    0.051
#    2048    0.290    0.208
#    4096    1.464    1.136
#    8192    5.966    4.518
# collectives: ranks, what, [(MB one rank receives, ms)], then a + b x bytes: a in ms, b as GB/s of all ranks together
#   1 gather     (0.0, 0.0) (0.0, 0.1) (0.0, 0.1) (0.0, 0.4)
#   1 rows       (19.3, 3.9) (38.6, 11.7) (77.2, 51.2) (154.3, 150.7)   a -8.8 ms, b 1.56 GB/s, off by at most 40 %
#   1 gradients  (0.0, 0.0) (0.0, 0.0) (0.0, 0.0) (0.0, 0.0)
#   1 stop       (0.0, 0.0)
#   1 metrics    (0.0, 0.0)
#   2 gather     (0.8, 2.2) (3.1, 4.9) (12.6, 31.9) (25.2, 65.1)   a 0.3 ms, b 1.00 GB/s, off by at most 33 %
#   2 rows       (19.3, 25.4) (38.6, 36.9) (77.2, 227.9) (154.3, 586.4)   a -15.7 ms, b 1.11 GB/s, off by at most 55 %
#   2 gradients  (1.0, 1.9) (8.4, 10.3) (33.6, 31.8) (67.1, 59.6)   a 1.0 ms, b 2.13 GB/s, off by at most 14 %
#   2 stop       (0.0, 0.1)
#   2 metrics    (0.0, 1.9)
#   4 gather     (2.4, 12.5) (9.4, 33.8) (37.7, 85.6) (75.5, 241.9)   a 6.8 ms, b 1.59 GB/s, off by at most 19 %
#   4 rows       (19.3, 35.3) (38.6, 84.4) (77.2, 330.9) (154.3, 839.4)   a -49.6 ms, b 0.95 GB/s, off by at most 33 %
#   4 gradients  (1.6, 6.0) (12.6, 17.7) (50.3, 80.6) (100.7, 163.4)   a 3.5 ms, b 2.86 GB/s, off by at most 19 %
#   4 stop       (0.0, 0.2)
#   4 metrics    (0.0, 12.6)
