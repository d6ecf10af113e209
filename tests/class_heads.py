"""A small model with a head that answers, for tests of heads."""
import torch
from conftest import MODEL

from egokit.model import weights
from egokit.model.class_head import ClassHead

WORDS = ["yes", "no", "the red cup", "café"]
WIDTH = 32  # of MODEL


def answering_model(resolve):
    """Return a small model with a head that answers by WORDS."""
    model = weights.initial_model(resolve(overrides=MODEL)).eval()
    model.head = ClassHead(WIDTH, WORDS, hidden=4, dropout=0.3).eval()
    return model


def equal(one, other) -> bool:
    """Return whether two modules have the same tensors."""
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
