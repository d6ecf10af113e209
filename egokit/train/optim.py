"""Parameter groups and schedules. Source: the recipes of the EgoVLPv2 paper, appendix C."""
from __future__ import annotations

import math

import torch

from egokit.config.schema import OptimConfig


def param_groups(model, config: OptimConfig) -> list[dict]:
    """AdamW groups: projections, heads and cross-modal parameters at a multiple of the rate; no decay on biases and norms."""
    faster = {name for role in ("fusion", "projection") for name in model.parameters_by_role()[role]}
    found: dict[tuple[bool, bool], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = name.endswith("bias") or "norm" in name.rpartition(".")[0].rpartition(".")[2]
            found.setdefault((name in faster, plain), []).append(parameter)
    return [{"params": parameters, "scale": config.head_lr_scale if fast else 1.0,
             "weight_decay": 0.0 if plain else config.weight_decay} for (fast, plain), parameters in sorted(found.items())]


def optimizer(model, config: OptimConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(param_groups(model, config), lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def clip_grad_norm(model, most: float) -> torch.Tensor:
    """The norm of all gradients together, which are shortened to `most` where they are longer; 0: they stay as they are."""
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    if most:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), most, norm)
    return norm


def learning_rate(step: int, steps: int, steps_per_epoch: int, config: OptimConfig) -> float:
    """Rate of step `step` (from 0) of `steps`: linear warm-up over warmup_epochs, then linear or cosine decay to final_lr."""
    warmup = min(int(config.warmup_epochs * steps_per_epoch), steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    keep = 1 - share if config.schedule == "linear" else (1 + math.cos(math.pi * share)) / 2
    return config.final_lr + (config.lr - config.final_lr) * keep


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
