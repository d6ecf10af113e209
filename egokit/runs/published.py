"""Published numbers of EgoVLPv2 and their recipes; the ledger shows every run beside them.

The numbers are for the REAL data sets; a run on the embedded data set is not comparable with them.

Source: EgoVLPv2 (ICCV 2023), tables 2-5.
"""
from __future__ import annotations

from typing import NamedTuple


class Result(NamedTuple):
    """One number of a benchmark: where a run's metrics.json has it, and what is published."""
    name: str                   # as readers know it
    summary: str                # key in outputs/demo/summary.json
    notebook: str               # folder of its runs under outputs/
    section: str                # section of the run's metrics.json
    metric: str                 # key in that section
    chance: str                 # key of the chance level, in the section "chance"
    published: float | None     # %, or None
    samples: int                # number of samples in the real data set; 0: the paper does not say
    checkpoint: str             # released file that has the published number
    unit: str = "samples"       # what a sample is called


# What the published numbers depend on: config keys and, for training, the checkpoint that it starts from ("init").
# docs/recipes.md names the source of each value. The paper gives neither the precision of evaluation nor how the
# fine-tuned checkpoint was chosen.
EVALUATION = {"model.image_size": 224, "data.eval_frames": 16, "data.eval_resize": 256, "data.eval_max_tokens": 30}
EVALUATIONS = {"05_egomcq": EVALUATION, "03_ek100": EVALUATION | {"data.eval_resize": 224},
               "04_charades_ego": EVALUATION}
FINE_TUNING = {"train.batch_size": 128, "train.precision": "fp16", "optim.head_lr_scale": 1, "optim.betas": [0.9, 0.98],
               "optim.eps": 1e-8, "optim.weight_decay": 0.01, "optim.schedule": "cosine", "optim.clip_grad_norm": 0,
               "data.crop_scale": [0.5, 1.0], "data.limit": 0}
TRAININGS = {
    "03_ek100": FINE_TUNING | {
        "init": "EgoVLPv2_smallproj.pth", "train.epochs": 100, "optim.lr": 2e-4, "train.retrieval_loss": "max_margin",
        "train.margin": 0.2, "data.frames": 16, "data.max_tokens": 30, "data.flip": False,
        "data.relevancy_threshold": 0.1},
    "04_charades_ego": FINE_TUNING | {
        "init": "EgoVLPv2_smallproj_epoch1.pth", "train.epochs": 20, "optim.lr": 1.5e-5, "train.temperature": 0.05,
        "data.frames": 32, "data.max_tokens": 15, "data.flip": True},
}
WORDS = {  # the ledger's wording for a value; the second {} is the plural's s. Other keys appear under their own names
    "data.eval_frames": "{} frame{}", "model.image_size": "frames of {} px", "data.eval_resize": "resized to {} px",
    "train.epochs": "trained {} epoch{}", "train.batch_size": "batch {}", "optim.lr": "learning rate {}",
    "train.retrieval_loss": "loss {}", "data.frames": "trained on {} frame{}", "train.precision": "trained in {}"}
DUAL_SOFTMAX = "_dual_softmax"  # suffix of metrics that are computed with dual softmax; EgoVLPv2's numbers are without


def _egomcq(score: str, kind: str, published: float | None = None) -> Result:
    label = {"inter": "inter-video", "intra": "intra-video", "verb_only": "verb-only"}[kind]
    return Result(f"EgoMCQ {label}, {score}", f"egomcq.{score}.{kind}", "05_egomcq", "egomcq", f"{score}_{kind}",
                  "inter" if kind == "verb_only" else kind, published, 39751, "EgoVLPv2.pth", "questions")


def _ek100(section: str, metric: str, published: float, checkpoint: str) -> Result:
    result = _retrieval("03_ek100", "EK-100 MIR", "ek100", section, metric, published, 9668, checkpoint)
    return result._replace(unit="clips")


def _retrieval(notebook: str, name: str, key: str, section: str, metric: str, published: float, samples: int,
               checkpoint: str) -> Result:
    label = {"zeroshot": "zero-shot", "finetune": "fine-tuned"}[section]
    label += ", dual softmax" if metric.endswith(DUAL_SOFTMAX) else ""
    plain = metric.removesuffix(DUAL_SOFTMAX)
    return Result(f"{name} {plain}, {label}", f"{key}.{section}.{metric}", notebook, section, metric, plain, published,
                  samples, checkpoint)


RESULTS = [
    *(_egomcq(score, kind, {("ensemble", "inter"): 91.0, ("ensemble", "intra"): 60.9}.get((score, kind)))
      for score in ("dual", "fusion", "ensemble") for kind in ("inter", "intra", "verb_only")),
    *(_ek100(section, metric + suffix, published, checkpoint)
      for section, metric, published, checkpoint in (
          ("zeroshot", "mAP", 26.7, "EgoVLPv2_smallproj.pth"), ("zeroshot", "nDCG", 29.1, "EgoVLPv2_smallproj.pth"),
          ("finetune", "mAP", 47.3, "EK-100_finetune.pth"), ("finetune", "nDCG", 61.9, "EK-100_finetune.pth"))
      for suffix in ("", DUAL_SOFTMAX)),
    _retrieval("04_charades_ego", "Charades-Ego", "charades", "zeroshot", "mAP", 26.2, 0,
               "EgoVLPv2_smallproj_epoch1.pth"),
    _retrieval("04_charades_ego", "Charades-Ego", "charades", "finetune", "mAP", 34.1, 0, "Charades-Ego_finetune.pth"),
]
