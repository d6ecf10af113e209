"""Time inference against a plain einsum implementation of the same equations (plain.py).

    python benchmarks/model.py [clips]         (the end of this file has the tables that it printed)

The base model at 224 px, 4 frames, float32, random weights; both sides take turns in one run. It uses a GPU if there is
one, where it also runs under bfloat16 and prints peak memory, else a CPU with 2 threads. Outputs are compared before
anything is timed.
"""
import statistics
import sys
import time

import torch
from plain import Plain

from egokit.config.schema import ModelConfig
from egokit.model.egovlp import EgoVLP
from egokit.model.released_keys import rename

CLIPS = int(sys.argv[1]) if len(sys.argv) > 1 else 8
TURNS = 5
gpu = torch.cuda.is_available()
device = torch.device("cuda" if gpu else "cpu")
torch.set_num_threads(2)
torch.manual_seed(0)
model = EgoVLP(ModelConfig(time_init="zero_output")).eval()
model.reset_parameters()
with torch.no_grad():
    for name, parameter in model.named_parameters():  # open gates, and time attention that does something
        if name.endswith("gate"):
            parameter.fill_(0.5)
        elif ".time.proj" in name:
            parameter.normal_(std=0.02)
model.to(device)
plain = Plain({rename(name, "released"): value for name, value in model.state_dict().items()})
frames = torch.randn(CLIPS, 4, 3, 224, 224, device=device)
ids = torch.randint(3, 50000, (max(CLIPS, 16), 15), device=device)
tokens = {"input_ids": ids[:CLIPS], "attention_mask": torch.ones_like(ids[:CLIPS])}
many = {"input_ids": ids[:16], "attention_mask": torch.ones_like(ids[:16])}
one_clip = frames[:1]

WORK = {
    f"encode_video, {CLIPS} clips": (lambda m: m.encode_video(frames)),
    f"encode_text, {CLIPS} texts": (lambda m: m.encode_text(tokens)),
    f"itm_logits, {CLIPS} pairs": (lambda m: m.itm_logits(frames, tokens)),
    f"mlm_logits, {CLIPS} pairs": (lambda m: m.mlm_logits(frames, tokens)),
    "itm_logits, 1 clip with 16 texts":
        (lambda m: m.itm_logits(one_clip if m is model else one_clip.expand(16, -1, -1, -1, -1), many)),
}


def clock(function, m) -> float:
    """Return the seconds that function(m) takes."""
    start = time.perf_counter()
    function(m)
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def memory(function, m) -> float:
    """Return the peak GPU memory of function(m) beyond what was allocated before, in MiB."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function(m)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


with torch.inference_mode():
    device_name = torch.cuda.get_device_name() if gpu else "CPU, 2 threads"
    print(f"{device_name}, torch {torch.__version__}, float32, median of {TURNS}")
    print(f"{'':36} {'plain, s':>9} {'egokit, s':>9} {'faster by':>10} {'difference':>11}")
    for name, work in WORK.items():
        ours, theirs = work(model), work(plain)
        difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        times = [(clock(work, plain), clock(work, model)) for _ in range(TURNS)]
        ratio = statistics.median(a / b for a, b in times)
        a, b = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{name:36} {a:9.3f} {b:9.3f} {ratio:8.2f} x {difference:11.1e}")
        if gpu:
            with torch.autocast("cuda", torch.bfloat16):
                work(model), work(plain)
                times = [(clock(work, plain), clock(work, model)) for _ in range(TURNS)]
                a, b = (statistics.median(column) for column in zip(*times, strict=True))
                print(f"{'  bfloat16':36} {a:9.3f} {b:9.3f} {statistics.median(x / y for x, y in times):8.2f} x"
                      f"   memory {memory(work, plain):.0f} -> {memory(work, model):.0f} MiB")

# Printed on a shared machine of 2 cores (AMD EPYC with AVX-512). Reasons for the gain: oneDNN's products (about
# 200 GFLOP/s in place of 120 to 180), time attention as two products, the last block for CLS alone, cross-attention
# without projecting the video's tokens, parts of 8 frames, and, where a clip goes with many texts, its first half only
# once. A single clip gains least.
#
# CPU, 2 threads, torch 2.15.0+cu132, float32, median of 5
#                                       plain, s egokit, s  faster by  difference
# encode_video, 8 clips                   12.447     7.967     1.52 x     1.6e-06
# encode_text, 8 texts                     0.166     0.126     1.34 x     1.6e-06
# itm_logits, 8 pairs                     11.743     8.500     1.38 x     4.3e-06
# mlm_logits, 8 pairs                     12.102     8.114     1.49 x     1.6e-06
# itm_logits, 1 clip with 16 texts        30.439     9.369     3.32 x     4.6e-06
# CPU, 2 threads, torch 2.15.0+cu132, float32, median of 5
#                                       plain, s egokit, s  faster by  difference
# encode_video, 1 clips                    1.165     0.964     1.21 x     1.5e-06
# encode_text, 1 texts                     0.059     0.037     1.56 x     1.3e-06
# itm_logits, 1 pairs                      1.393     1.066     1.30 x     2.6e-06
# mlm_logits, 1 pairs                      1.432     1.008     1.40 x     1.6e-06
# itm_logits, 1 clip with 16 texts        63.381    27.425     2.30 x     4.1e-06
