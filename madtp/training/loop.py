"""The training loop: an optimiser with its schedule, one step at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Stage:
    """One run of the optimiser: a learning rate that warms up and then falls to zero along a cosine."""

    steps: int
    learning_rate: float  # the highest
    warm_up: float = 0.05  # share of the steps
    weight_decay: float = 0.05
    gradient_norm: float = 1.0


def optimise(parameters: list[nn.Parameter], stage: Stage) -> Iterator[Callable[[Tensor], None]]:
    """Yield, for every step of `stage`, the function that takes its loss and updates `parameters`."""
    optimizer = torch.optim.AdamW(
        parameters, lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=stage.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, stage.learning_rate, total_steps=stage.steps, pct_start=stage.warm_up, cycle_momentum=False
    )

    def update(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, stage.gradient_norm)
        optimizer.step()
        schedule.step()

    for _ in range(stage.steps):
        yield update
