"""Mistakes planted in egokit: each mixes tensors of two devices, which the tests must find."""
import sys

import pytest
import torch

from egokit.data.video import transforms
from egokit.tasks import losses

MIX = r"on the same device|two (different )?devices"


def mean_on_the_cpu(monkeypatch):
    def normalise(frames, mean=transforms.MEAN, std=transforms.STD):
        mean, std = (torch.tensor(v).view(3, 1, 1) * 255 for v in (mean, std))
        return (frames.float() - mean) / std

    for name, module in list(sys.modules.items()):
        if name.startswith("egokit.") and hasattr(module, "normalise"):
            monkeypatch.setattr(module, "normalise", normalise)


def labels_on_the_cpu(monkeypatch):
    plain = torch.nn.functional.cross_entropy
    monkeypatch.setattr(torch.nn.functional, "cross_entropy",
                        lambda logits, labels, **options: plain(logits, labels.cpu(), **options))


def positives_on_the_cpu(monkeypatch):
    plain = losses.positives
    monkeypatch.setattr(losses, "positives", lambda *classes: plain(*classes).cpu())


PLANTED = pytest.mark.parametrize("plant", [mean_on_the_cpu, labels_on_the_cpu, positives_on_the_cpu])
