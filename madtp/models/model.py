"""What the models of all tasks have: sizes, the dictionary that tokens are aligned with, and a temperature."""

import copy
from typing import ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from madtp.models.config import BlipConfig, ClipConfig
from madtp.models.pruning import PruningModule, resolve_temperature

C = TypeVar("C", bound=BlipConfig | ClipConfig)


class PrunedModel(PruningModule, Generic[C]):
    """A model with MADTP, parameters named as in the official checkpoints.

    `model.half()` and `model.bfloat16()` work: images, embeddings and logits stay float32, and so do all pruning
    scores. The `temperature` argument of every call is a [] float32 tensor or a float; None is the model's own. A float
    of zero or less runs the dense model without any statistics, a tensor of zero or less computes them and prunes
    nothing.

    Attributes:
        temperature: the pruning temperature that the checkpoint was trained to.
    """

    task: ClassVar[str]

    def __init__(self, config: C, temperature: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.temperature = temperature
        self.space_dict = nn.Parameter(torch.zeros(config.sd_num, config.sd_dim))

    def set_keep_margin(self, keep_margin: float) -> None:
        """Have all encoders also keep tokens that are within a margin below the threshold.

        Args:
            keep_margin: at least 0, in units of the mean |importance| of the layer; 0 is MADTP as it was trained.
        """
        for module in self.modules():
            if isinstance(module, PruningModule):
                module.keep_margin = keep_margin

    def packed_copy(self, *, sized: bool = False) -> Self:
        """The model in the packed layout (`madtp.models.packed`), on the same weights.

        What it gives for a batch is what this one gives for every request alone.

        Args:
            sized: no size depends on data: every layer has room for all rows that come in, unless `capacities` of its
                encoders say otherwise.
        """
        shared = {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())}
        packed = copy.deepcopy(self, shared)
        for module in packed.modules():
            if isinstance(module, PruningModule):
                module.packed = True
                module.capacities = () if sized else None
        return packed

    def resolve(self, temperature: Tensor | float | None, device: torch.device) -> Tensor | None:
        """The [] float32 tensor of a call's temperature, or None for the dense model."""
        return resolve_temperature(temperature, self.temperature, device)
