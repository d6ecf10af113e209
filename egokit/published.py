"""Published numbers of EgoVLPv2 (ICCV 2023, tables 2-5) on the REAL data sets, beside which every run is shown.

What a run of the embedded data set gives is not comparable with them.
"""
from __future__ import annotations

from typing import NamedTuple


class Result(NamedTuple):
    name: str         # as a reader knows it
    summary: str      # its flat name in outputs/demo/summary.json
    notebook: str
    section: str      # of the run's metrics.json
    metric: str       # in that section
    chance: str       # its metric in the section "chance"
    published: float | None
    samples: int      # scored on the real data set; 0: the paper doesn't say
    checkpoint: str   # released file that the published number is of


FRAMES = 16  # of a clip, in every published evaluation
DUAL_SOFTMAX = "_dual_softmax"  # at the end of a metric's name: the same with dual softmax, which EgoVLPv2's numbers are without


def _egomcq(score: str, kind: str, published: float | None = None) -> Result:
    label = {"inter": "inter-video", "intra": "intra-video", "verb_only": "verb-only"}[kind]
    return Result(f"EgoMCQ {label}, {score}", f"egomcq.{score}.{kind}", "05_egomcq", "egomcq", f"{score}_{kind}",
                  "inter" if kind == "verb_only" else kind, published, 39751, "EgoVLPv2.pth")


def _ek100(section: str, metric: str, published: float, checkpoint: str) -> Result:
    return _retrieval("03_ek100", "EK-100 MIR", "ek100", section, metric, published, 9668, checkpoint)


def _retrieval(notebook: str, name: str, key: str, section: str, metric: str, published: float, samples: int, checkpoint: str) -> Result:
    label = {"zeroshot": "zero-shot", "finetune": "fine-tuned"}[section] + (", dual softmax" if metric.endswith(DUAL_SOFTMAX) else "")
    plain = metric.removesuffix(DUAL_SOFTMAX)
    return Result(f"{name} {plain}, {label}", f"{key}.{section}.{metric}", notebook, section, metric, plain, published,
                  samples, checkpoint)


RESULTS = [
    *(_egomcq(score, kind, {("ensemble", "inter"): 91.0, ("ensemble", "intra"): 60.9}.get((score, kind)))
      for score in ("dual", "fusion", "ensemble") for kind in ("inter", "intra", "verb_only")),
    *(_ek100(section, metric + way, published, checkpoint)
      for section, metric, published, checkpoint in (
          ("zeroshot", "mAP", 26.7, "EgoVLPv2_smallproj.pth"), ("zeroshot", "nDCG", 29.1, "EgoVLPv2_smallproj.pth"),
          ("finetune", "mAP", 47.3, "EK-100_finetune.pth"), ("finetune", "nDCG", 61.9, "EK-100_finetune.pth"))
      for way in ("", DUAL_SOFTMAX)),
    _retrieval("04_charades_ego", "Charades-Ego", "charades", "zeroshot", "mAP", 26.2, 0, "EgoVLPv2_smallproj_epoch1.pth"),
    _retrieval("04_charades_ego", "Charades-Ego", "charades", "finetune", "mAP", 34.1, 0, "Charades-Ego_finetune.pth"),
]
