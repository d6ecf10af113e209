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

    def contrastive_loss(self, model, similarity_BB, positives_BB):
        siglip = model.own["siglip"]
        logits_BB = siglip["log_scale"].exp() * similarity_BB + siglip["bias"]
        signs_BB = 2 * positives_BB.float() - 1
        return {"siglip": -F.logsigmoid(signs_BB * logits_BB).sum() / len(logits_BB)}

    def watched(self, model):
        return {"scale": model.own["siglip"]["log_scale"].exp(), "bias": model.own["siglip"]["bias"]}
