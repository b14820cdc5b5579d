"""What only a GPU can show: that a plan gives the model's answers. Skipped, with the reason, where there is none."""

import json
from pathlib import Path

import pytest
import torch

from export.engine.backends import choose_backend, no_gpu
from export.errors import BackendError
from tests import golden
from tests.helpers.paths import CARRIED


def why_not() -> str:
    """Why no plan can run here; empty where one can."""
    try:
        backend = choose_backend("auto", ".plan")
    except BackendError as error:
        return error.what
    return "" if backend.can_run else no_gpu(backend.name)


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(why_not()), reason=why_not())]


def test_a_plan_gives_the_models_answers_and_tokens(tmp_path: Path) -> None:
    from export import ExportOptions, Range, export  # needs more than some machines have: tests/helpers/bare_machine.py

    model = golden.load_model(CARRIED)
    config = json.loads((CARRIED / "config.json").read_text())
    checkpoint = tmp_path / "tiny.pt"
    torch.save({"model": model.state_dict(), "epoch": 1, "temperature": 0.5, "config": config}, checkpoint)
    options = ExportOptions(checkpoint=checkpoint, engine=tmp_path / "out.plan", batch=Range(1, 2, 4))
    result = export(options)
    assert result.validation.validated == "artifact"
    assert result.validation.passed, [parity.failures for parity in result.validation.parity]
