"""AdamW's parameter groups, the learning rate's schedule and gradient clipping.

Source: the recipes in appendix C of the EgoVLPv2 paper.
"""
import math

import torch

from egokit.config.schema import OptimConfig


def param_groups(model, config: OptimConfig) -> list[dict]:
    """Return AdamW's groups of the trainable parameters.

    Projections, heads, cross-modal parameters and a task's own modules learn at optim.head_lr_scale times the rate.
    Biases, parameters of norms, and vectors and numbers of a task's head and own modules have no weight decay.

    Returns:
        At most four groups; "scale" is the factor on the learning rate, which `set_rate` reads.
    """
    roles = model.parameters_by_role()
    heads = {name for role in ("fusion", "projection", "head", "own") for name in roles[role]}
    of_task = {*roles["head"], *roles["own"]}
    groups: dict[tuple[bool, bool], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            no_decay = (name.endswith("bias") or "norm" in name.rpartition(".")[0].rpartition(".")[2]
                        or (parameter.ndim < 2 and name in of_task))
            groups.setdefault((name in heads, no_decay), []).append(parameter)
    return [{"params": parameters, "scale": config.head_lr_scale if is_head else 1.0,
             "weight_decay": 0.0 if no_decay else config.weight_decay}
            for (is_head, no_decay), parameters in sorted(groups.items())]


def optimizer(model, config: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW, as one fused kernel, over `param_groups`."""
    return torch.optim.AdamW(param_groups(model, config), lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def clip_grad_norm(model, max_norm: float) -> torch.Tensor:
    """Return the norm of all gradients together, and clip it to `max_norm`.

    Args:
        max_norm: largest norm that is kept; 0 changes no gradient.
    """
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    if max_norm:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)
    return norm


def learning_rate(step: int, steps: int, steps_per_epoch: int, config: OptimConfig, peak: float = 0.0) -> float:
    """Return the learning rate of a step.

    The rate rises linearly to its peak over optim.warmup_epochs, then falls to optim.final_lr, linearly or along a
    cosine (optim.schedule).

    Args:
        step: number of the step, from 0.
        steps: number of steps of the whole run.
        peak: the rate after the warm-up, as scaled to the batch (`batch_plan.peak_rate`); 0 takes optim.lr.
    """
    peak = peak or config.lr
    warmup = min(int(config.warmup_epochs * steps_per_epoch), steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    factor = 1 - progress if config.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return config.final_lr + (peak - config.final_lr) * factor


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group to `rate` times the group's "scale"."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
