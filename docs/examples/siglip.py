"""Pre-training with SigLIP's loss in place of EgoNCE: its temperature and its bias are learned.

Source: Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (arXiv 2303.15343).
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

from egokit.tasks import Positive
from egokit.tasks.egoclip import EgoClip


class SigLIP(EgoClip):
    published = {"ensemble_inter": None, "ensemble_intra": None}  # of EgoMCQ, for the ledger

    class Params(EgoClip.Params):
        start_scale: Positive = 10.0  # the inverse temperature at the start; SigLIP's own is 10
        start_bias: float = -10.0     # of the logits: nearly all pairs are negatives

    def modules(self, model):
        own = self.config.task
        return {"siglip": nn.ParameterDict({"log_scale": torch.tensor(math.log(own.start_scale)),
                                            "bias": torch.tensor(own.start_bias)})}

    def contrastive_loss(self, model, similarity, positives):
        siglip = model.own["siglip"]
        logits_bB = siglip["log_scale"].exp() * similarity.rows_bB + siglip["bias"]  # this rank's texts with all clips
        signs_bB = 2 * positives.rows_bB.float() - 1
        return {"siglip": similarity.mean_of_texts(-F.logsigmoid(signs_bB * logits_bB).sum(1))}

    def watched(self, model):
        return {"scale": model.own["siglip"]["log_scale"].exp(), "bias": model.own["siglip"]["bias"]}
