"""A model without encoders: a task's own modules alone, which read stored features."""
from pathlib import Path

import torch
from torch import nn

from egokit.config.schema import ModelConfig
from egokit.model import checkpoints, recorded_head, roles
from egokit.model.checkpoints import WeightsError
from egokit.model.own_modules import hold, split_own
from egokit.model.recorded_shape import check, own_memory


class FeatureModel(nn.Module):
    """What training, evaluation and checkpoints take for a model, where its input is stored features.

    All its parameters are in `head` and `own`, as those of a task in an `EgoVLP` are.

    Attributes:
        source: the checkpoint that it was loaded from, for messages; "" if it was not.
    """

    def __init__(self):
        super().__init__()
        self.register_module("head", None)
        self.own = nn.ModuleDict()
        self.source = ""
        self.register_buffer("_place", torch.zeros(0), persistent=False)

    @property
    def device(self) -> torch.device:
        return self._place.device

    def compute_as(self, settings: ModelConfig) -> None:
        """Take over nothing: the settings are of encoders."""

    def parameters_by_role(self) -> dict[str, list[str]]:
        """Return parameters' names by role, as `EgoVLP.parameters_by_role` does: all are the task's."""
        return roles.by_role(name for name, _ in self.named_parameters())

    def unused_parameters(self, trains: str) -> set[str]:
        """Return no names: a loss on stored features reaches all that there is."""
        return set()


def load(path: str | Path) -> FeatureModel:
    """Return a checkpoint's task modules, which its task gives their code (`own_modules.attach`).

    A `ClassHead` is built, in eval mode.

    Args:
        path: a checkpoint of a training on stored features, or its run folder.

    Raises:
        WeightsError: there is none, it can't be read, it holds encoders, or its head does not fit its record.
    """
    path = checkpoints.find(path)
    content = checkpoints.read(path, everything=False)
    state, own = split_own(checkpoints.state_dict(content, path), path)
    if state or not own:
        raise WeightsError(f"{path} is no checkpoint of a head on stored features: its keys are such as "
                           f"{checkpoints.named(sorted(state), 3)}; give a run whose task trained one")
    model = FeatureModel()
    model.source, model.head = str(path), recorded_head.take(content, state, own, [], 0, path)
    check(model, state, [], path)
    if model.head is not None:
        model.load_state_dict(own_memory(state), assign=True)
        model.head.eval()
    hold(model, {key: value.clone() for key, value in own.items()})
    return model
