"""What storing EgoTaskQA's fused vectors saves, and what a step of head-tuning costs.

    python benchmarks/egotaskqa_head.py [clips] [turns]       (4 and 5; it prints the table at the end of this file)

Extraction: clips of 16 frames (synthetic), each with 20 questions of 7 to 18 tokens, as many as share a clip on average
over EgoTaskQA's balanced files, go through a model of 12 blocks as the base model's, 6 of them fused, but of width 192
and for 96 px. `whole` encodes every pair of a clip and a question for itself; `egokit` is EgoTaskQA's own function. The
sides take turns in one run on one thread, and their vectors are compared; the fastest turn of each counts.

Head-tuning: a step is the forward pass, cross-entropy, the backward pass and AdamW, batch 64, D 768, A 1,000, in
float32; `read` is what a step's batch takes from stored vectors. The last column is 36 epochs of 24,000 questions.
"""
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
import json

import numpy as np
import torch
import torch.nn.functional as F

from egokit.config.schema import Config, DataConfig, EvaluateConfig, ModelConfig
from egokit.data.loader import stack
from egokit.data.video.transforms import normalise
from egokit.model.class_head import ClassHead
from egokit.model.egovlp import EgoVLP
from egokit.tasks.egotaskqa import EgoTaskQA
from egokit.tasks.taskqa.annotations import Question
from egokit.tasks.taskqa.vectors import VectorFiles

MODEL = ModelConfig(width=192, heads=3, image_size=96, frames=16, vocab_size=1000, projection="linear256")
QUESTIONS, FRAMES = 20, 16
BATCH, WIDTH, ANSWERS = 64, 768, 1000
STEPS = 36 * 24_000 // BATCH


class Synthetic(EgoTaskQA):
    """The task without files."""

    def __init__(self, config: Config):
        self.config = config


class Model(EgoVLP):
    """A model whose texts are numbers of tokens."""

    def tokens(self, text, longest: int = 30) -> dict[str, torch.Tensor]:
        lengths = torch.tensor([int(number) for number in text])
        places = torch.arange(int(lengths.max()))
        mask = places < lengths[:, None]
        ids = torch.where(mask, 3 + (31 * lengths[:, None] + 7 * places) % 990, 1)
        return {"input_ids": ids, "attention_mask": mask.long()}


@torch.no_grad()
def extraction(clips: int, turns: int) -> None:
    """Compare whole pairs with one unfused half a clip."""
    torch.manual_seed(0)
    model = Model(MODEL).eval()
    model.reset_parameters()
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            parameter.fill_(0.7)  # open, as after training
    task = Synthetic(Config(task=EgoTaskQA.Params(), model=MODEL, data=DataConfig(eval_frames=FRAMES),
                            evaluate=EvaluateConfig(batch_size=8)))
    texts = [str(7 + number % 12) for number in range(QUESTIONS)]
    videos = torch.randint(0, 256, (clips, 1, FRAMES, 3, MODEL.image_size, MODEL.image_size), dtype=torch.uint8)

    def whole(video: torch.Tensor) -> torch.Tensor:
        return torch.cat([model.fused_video(model.fusion_trunk(normalise(video)), model.tokens([text]), FRAMES)
                          for text in texts])

    sides = {"whole": whole, "egokit": lambda video: task.fused_states(model, video, [0] * QUESTIONS, texts)}
    seconds, vectors = {side: [] for side in sides}, {}
    for turn in range(turns + 1):  # the first one warms up
        for side, compute in sides.items():
            began = time.process_time()
            vectors[side] = torch.cat([compute(video) for video in videos])
            if turn:
                seconds[side].append(time.process_time() - began)
    best = {side: min(times) for side, times in seconds.items()}
    print(f"{clips} clips, {QUESTIONS} questions each, best of {turns}; CPU seconds of one thread")
    print(f"{'':8} {'seconds':>8} {'ms a question':>14} {'times faster':>13} {'difference':>11}")
    for side in sides:
        difference = (vectors[side] - vectors["whole"]).abs().max()
        print(f"{side:8} {best[side]:8.2f} {1e3 * best[side] / clips / QUESTIONS:14.2f} "
              f"{best['whole'] / best[side]:13.2f} {difference:11.1e}")


def head_tuning(turns: int) -> None:
    """Print what a step and 36 epochs cost, of both kinds of head, and what reading a batch costs."""
    print(f"\nhead-tuning, batch {BATCH}, D {WIDTH}, A {ANSWERS}; median of {turns} turns of 50 steps")
    print(f"{'':8} {'ms a step':>10} {'read, ms':>9} {'36 epochs':>10}")
    with tempfile.TemporaryDirectory() as folder:
        read = reading(Path(folder), turns)
        for name, hidden in (("linear", 0), ("mlp", ANSWERS)):
            torch.manual_seed(0)
            head = ClassHead(WIDTH, ANSWERS, hidden)
            optimizer = torch.optim.AdamW(head.parameters(), lr=2e-4, weight_decay=0.01, fused=True)
            vectors, answers = torch.randn(BATCH, WIDTH), torch.randint(ANSWERS, (BATCH,))
            times = []
            for _ in range(turns + 1):
                began = time.process_time()
                for _ in range(50):
                    F.cross_entropy(head(vectors), answers).backward()
                    optimizer.step()
                    optimizer.zero_grad()
                times.append((time.process_time() - began) / 50)
            step = float(np.median(times[1:]))
            print(f"{name:8} {1e3 * step:10.2f} {1e3 * read:9.2f} {(step + read) * STEPS / 60:6.1f} min")


def reading(folder: Path, turns: int) -> float:
    """Return the seconds in which a batch is read and collated from 200 files of 20 vectors."""
    (folder / "vectors").mkdir()
    names = [f"room|P1|{number}|{number + 600}" for number in range(200)]
    texts = [f"question {number}" for number in range(QUESTIONS)]
    for name in names:
        np.save(folder / f"vectors/{name}.npy", np.random.default_rng(0).normal(size=(QUESTIONS, WIDTH)).astype("f4"))
    (folder / "vectors/manifest.json").write_text(json.dumps({
        "init": "", "init_sha256": "", "frames": FRAMES, "dimension": WIDTH,
        "clips": [{"clip_uid": name, "questions": texts} for name in names]}))
    files, draw, times = VectorFiles(folder), np.random.default_rng(1), []
    questions = [Question(name, text, 2, (), "") for name in names for text in texts]
    files.problems(names)
    for _ in range(turns + 1):
        began = time.process_time()
        for _ in range(50):
            stack([{"video": files.vector(questions[number]), "answer": 2, "index": int(number)}
                   for number in draw.integers(len(questions), size=BATCH)], None)
        times.append((time.process_time() - began) / 50)
    return float(np.median(times[1:]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    asked = [int(given) for given in (sys.argv[1:] + ["4", "5"][len(sys.argv) - 1:])]
    extraction(*asked)
    head_tuning(asked[1])

# Printed on a machine of 2 cores (AMD EPYC) that other work kept busy, torch 2.15.0:
#
# 4 clips, 20 questions each, best of 5; CPU seconds of one thread
#           seconds  ms a question  times faster  difference
# whole       10.62         132.73          1.00     0.0e+00
# egokit       4.64          58.05          2.29     1.7e-06
#
# head-tuning, batch 64, D 768, A 1000; median of 5 turns of 50 steps
#           ms a step  read, ms  36 epochs
# linear         3.67      0.76    1.0 min
# mlp            8.84      0.76    2.2 min
