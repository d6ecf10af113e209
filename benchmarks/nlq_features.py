"""EgoNLQ's fused features against encoding every pair of a window and a question whole.

    python benchmarks/nlq_features.py [windows] [turns]       (32 and 5; it prints the table at the end of this file)

A clip's windows of 4 frames (synthetic, and normalised already) and its 12 questions of 7 to 18 tokens go through a
model of 12 blocks as the base model's, 6 of them fused, but of width 192 and for 96 px. egokit's side is NLQFeatures'
own function. The other sides encode every pair whole, batch by batch, by the same kernels: `pairs` computes of the last
block what the feature needs, and `all states` all of it, as the original does. The sides take turns in one run on one
thread, and their features are compared; the fastest turn of each counts.
"""
import os
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"
import torch
from torch import Tensor

from egokit.config.schema import Config, EvaluateConfig, ModelConfig
from egokit.model.egovlp import EgoVLP
from egokit.tasks.nlq_features import NLQFeatures

MODEL = ModelConfig(width=192, heads=3, image_size=96, vocab_size=1000, projection="linear256")
QUESTIONS, AT_ONCE = 12, 8


class Synthetic(NLQFeatures):
    """The task without files; a question is its number of tokens."""

    def __init__(self, config: Config):
        self.config = config

    def tokenizer(self, texts: list[str], longest: int) -> dict[str, Tensor]:
        length = int(texts[0])
        ids = torch.randint(3, 1000, (1, length), generator=torch.Generator().manual_seed(length))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def whole_pairs(model: EgoVLP, task: Synthetic, clip: dict, read: str):
    """Return the function that encodes each pair of a batch's windows and a clip's questions whole."""
    def encode(frames_BTCHW: Tensor) -> Tensor:
        rows, B = [], len(frames_BTCHW)
        for question in clip["questions"]:
            tokens = {key: value.expand(B, -1) for key, value in task.tokenizer([question["query"]], 30).items()}
            video_BSD, _ = model.fuse(model.fusion_trunk(frames_BTCHW), model.text_trunk(tokens),
                                      tokens["attention_mask"], frames_BTCHW.shape[1], read)
            rows.append(model.fusion_norm(video_BSD)[:, 0])
        return torch.stack(rows, dim=1)
    return encode


@torch.no_grad()
def main(windows: int, turns: int) -> None:
    torch.manual_seed(0)
    model = EgoVLP(MODEL)
    model.reset_parameters()
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            parameter.fill_(0.7)  # open, as after training
    task = Synthetic(Config(task=NLQFeatures.Params(feature_kind="fused"), model=MODEL,
                            evaluate=EvaluateConfig(batch_size=AT_ONCE)))
    clip = {"clip_uid": "clip", "questions": [{"query": str(7 + number)} for number in range(QUESTIONS)]}
    frames = torch.randn(windows, 4, 3, MODEL.image_size, MODEL.image_size)
    sides = {"all states": lambda: whole_pairs(model.eval(), task, clip, "all"),
             "pairs": lambda: whole_pairs(model.eval(), task, clip, "itm"),
             "egokit": lambda: task.embedder(model.eval(), clip)}
    seconds, features = {side: [] for side in sides}, {}
    for turn in range(turns + 1):  # the first one warms up
        for side, prepare in sides.items():
            began = time.process_time()
            embed = prepare()
            features[side] = torch.cat([embed(batch) for batch in frames.split(AT_ONCE)])
            if turn:
                seconds[side].append(time.process_time() - began)
    pairs, best = windows * QUESTIONS, {side: min(times) for side, times in seconds.items()}
    print(f"{windows} windows, {QUESTIONS} questions, {AT_ONCE} at once, best of {turns}; CPU seconds of one thread")
    print(f"{'':12} {'seconds':>8} {'ms a pair':>10} {'times faster':>13} {'difference':>11}")
    for side in sides:
        difference = (features[side] - features["all states"]).abs().max()
        print(f"{side:12} {best[side]:8.2f} {1e3 * best[side] / pairs:10.2f} {best['all states'] / best[side]:13.2f} "
              f"{difference:11.1e}")
    print(f"egokit is {best['pairs'] / best['egokit']:.2f} x as fast as whole pairs")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*(int(given) for given in (sys.argv[1:] + ["32", "5"][len(sys.argv) - 1:])))

# Printed on a machine of 2 cores (AMD EPYC) that other work kept busy, torch 2.15.0:
#
# 32 windows, 12 questions, 8 at once, best of 5; CPU seconds of one thread
#               seconds  ms a pair  times faster  difference
# all states       7.57      19.70          1.00     0.0e+00
# pairs            7.27      18.94          1.04     9.5e-07
# egokit           3.38       8.80          2.24     9.5e-07
# egokit is 2.15 x as fast as whole pairs
