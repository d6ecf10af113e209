"""A running mean of the weights (train.ema_decay), which validation and the best checkpoint use.

Source: the exponential moving average of ActionFormer's training, with a shorter memory in the first steps.
"""
import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


class WeightAverage:
    """The exponential moving average of a model's trained parameters, in float32.

    Args:
        model: its parameters that are to be trained now are averaged, from their present values on.
        decay: what is kept of the average in a step, after the first; 0 averages nothing.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        self.decay = decay
        self.trained = [(name, parameter) for name, parameter in model.named_parameters()
                        if decay and parameter.requires_grad]
        self.mean = {name: parameter.detach().clone() for name, parameter in self.trained}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step.

        Args:
            step: optimizer steps done, from 1; early steps keep (1 + step) / (10 + step) of the average, if less.
        """
        if self.trained:
            decay = min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_([*self.mean.values()], [parameter for _, parameter in self.trained], 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the average's values in the block, and its own again afterwards."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self.trained:
            own = parameter.clone()
            parameter.copy_(self.mean[name])
            self.mean[name].copy_(own)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average's values by the parameters' names."""
        return self.mean

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the values of an earlier `state_dict`.

        Raises:
            ValueError: it is of other parameters.
        """
        if state.keys() != self.mean.keys():
            raise ValueError("the running mean of the weights (train.ema_decay) is of other parameters")
        for name, value in state.items():
            self.mean[name].copy_(value)
