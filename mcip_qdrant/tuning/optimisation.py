"""AdamW as the two recipes of the paper use it: parameter groups, and the learning rate of every step."""

from __future__ import annotations

import math
from typing import Final

import torch

from mcip_qdrant.tuning.hyper import HyperParameters
from mcip_qdrant.tuning.trainees import PROXIES, Trainee

_PEAK: Final = "peak_lr"


def make_optimizer(trainee: Trainee, hyper: HyperParameters) -> torch.optim.AdamW:
    """AdamW over what moves: matrices with decay, vectors and scalars without, proxies at their own rate."""
    moving = [(name, value) for name, value in trainee.named_parameters() if value.requires_grad]
    proxies = [value for name, value in moving if name == PROXIES]
    matrices = [value for name, value in moving if value.ndim >= 2 and name != PROXIES]
    vectors = [value for _, value in moving if value.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": hyper.weight_decay, "lr": hyper.lr, _PEAK: hyper.lr},
        {"params": vectors, "weight_decay": 0.0, "lr": hyper.lr, _PEAK: hyper.lr},
        {"params": proxies, "weight_decay": hyper.weight_decay, "lr": hyper.proxy_lr, _PEAK: hyper.proxy_lr},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], betas=(hyper.beta1, hyper.beta2), eps=hyper.eps
    )


def learning_rate(peak: float, step: int, steps: int, hyper: HyperParameters) -> float:
    """Linear warm-up from `warmup_lr` to `peak`, then half a cosine down to `lr_min`, changing every step.

    Args:
        peak: the group's highest learning rate.
        step: 0..steps-1.
        steps: of the whole run.
        hyper: for the shape.
    """
    warmup = min(hyper.warmup_steps, steps)
    if step < warmup:
        return hyper.warmup_lr + (peak - hyper.warmup_lr) * step / warmup
    floor = min(hyper.lr_min, peak)
    share = (step - warmup) / max(1, steps - warmup)
    return floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * share))


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, steps: int, hyper: HyperParameters) -> float:
    """Set every group's rate for a step; returns that of the towers."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(group[_PEAK], step, steps, hyper)
    return float(optimizer.param_groups[0]["lr"])
