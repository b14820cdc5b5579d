"""The margin of a model reaches every layer that prunes."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from madtp.checkpoint.loading import MODELS, Model
from madtp.models.config import CONFIGS
from madtp.models.parts import BATCH, NEW, PAST, SOURCE, TEXT, TEXTS, parts_of
from tests.helpers.checkpoints import TASK_SIZES, TINY

SIZES = {BATCH: 2, TEXT: 8, SOURCE: 7, TEXTS: 3, NEW: 4, PAST: 5}


class Margins(TorchDispatchMode):
    """Collects the margins that TokenCompact is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.madtp.token_compact.default:
            self.seen.append(args[9] if len(args) > 9 else 0.0)
        return func(*args, **(kwargs or {}))


def margins_of(model: Model) -> list[float]:
    with Margins() as margins, torch.no_grad():
        for part in parts_of(model).values():
            if part.encoders:
                part.module(*(torch.ones(spec.sized(SIZES), dtype=spec.dtype) for spec in part.inputs))
    return margins.seen


@pytest.mark.parametrize("task", MODELS)
def test_every_layer_of_a_model_has_its_margin(task: str) -> None:
    model = MODELS[task](CONFIGS[task](**(TINY if task == "nlvr" else TASK_SIZES[task]))).eval()
    layers = sum(sum(part.encoders.values()) for part in parts_of(model).values())
    for margin in (0.25, 0.0):
        model.set_keep_margin(margin)
        assert model.keep_margin == margin
        assert margins_of(model) == [margin] * layers
    assert layers > 0


def test_a_model_has_no_margin_unless_it_is_given_one() -> None:
    with torch.device("meta"):
        one, other = (MODELS["caption"](CONFIGS["caption"](**TASK_SIZES["caption"])) for _ in range(2))
    one.set_keep_margin(0.5)
    assert (one.visual_encoder.keep_margin, other.visual_encoder.keep_margin) == (0.5, 0.0)
