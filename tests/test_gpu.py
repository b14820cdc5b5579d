"""What only a GPU can show: that a plan gives the model's answers. Skipped, with the reason, where there is none."""

import json
from pathlib import Path

import pytest
import torch

from export.backends import choose_backend
from export.options import ExportOptions, Range
from export.pipeline import export, prepare
from tests import golden
from tests.paths import CARRIED

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not choose_backend("auto", ".plan").can_run, reason="no GPU here can run a plan of the installed TensorRT"
    ),
]


class Silent:
    """A progress that nobody sees."""

    def stage(self, description: str) -> None: ...

    def detail(self, text: str) -> None: ...


def test_a_plan_gives_the_models_answers_and_tokens(tmp_path: Path) -> None:
    model = golden.load_model(CARRIED)
    config = json.loads((CARRIED / "config.json").read_text())
    checkpoint = tmp_path / "tiny.pt"
    torch.save({"model": model.state_dict(), "epoch": 1, "temperature": 0.5, "config": config}, checkpoint)
    options = ExportOptions(checkpoint=checkpoint, engine=tmp_path / "out.plan", batch=Range(1, 2, 4))
    result = export(prepare(options), Silent())
    assert result.validation.validated == "artifact"
    assert result.validation.passed, [parity.failures for parity in result.validation.parity]
