"""Packed graphs with rooms, of every task: each request of a recorded batch gets what torch gives it alone."""

from pathlib import Path
from typing import Any

import pytest

from export.graph.capacities import OVERFLOW, add_overflow
from export.graph.trace import write_part
from export.runtime.onnx_runner import OnnxRunner
from madtp.models.parts import Part, parts_of
from madtp.tasks.requests import Outputs, Runner
from tests import golden
from tests.helpers.packed_batches import Inputs, PruningRunner, alone, differences, inputs_of
from tests.helpers.paths import golden_folders

TASKS = ("vqa", "caption", "retrieval", "clip")  # nlvr: test_capacities.py
FOLDERS = [folder for folder in golden_folders() if folder.name == "tiny" and folder.parent.name in TASKS]


class SizedRunner:
    """A part's graph in ONNX Runtime, whose room is always enough."""

    def __init__(self, part: Part, path: Path) -> None:
        write_part(part, path, external_data=True, passes=[add_overflow])
        self._runner = OnnxRunner(path)

    def run(self, inputs: Inputs, temperature: float) -> Outputs:
        outputs = self._runner.run(inputs, temperature)
        assert not int(outputs.pop(OVERFLOW))
        return outputs


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
def test_a_batch_gives_what_every_request_gets_alone(folder: Any, tmp_path: Path) -> None:
    model = golden.load_model(folder)
    parts = parts_of(model.packed_copy(sized=True))
    sized: dict[str, Runner] = {
        name: SizedRunner(part, tmp_path / f"{name}.onnx") if part.encoders else PruningRunner(part)
        for name, part in parts.items()
    }
    dynamic = {name: PruningRunner(part) for name, part in parts_of(model).items()}
    cases = [case for case in golden.load_cases(folder, model.config.image_size) if not case.evaluates]
    batches = [case for case in cases if case.requests > 1 and case.temperature > 0]
    assert batches
    for case in batches:
        inputs = inputs_of(case)
        expected = alone(model.config, dynamic, inputs, case.temperature)
        worst, wrong = differences(model.config, parts, sized, inputs, case.temperature, expected)
        assert not wrong, (case.name, wrong)
        assert worst <= 1e-5, case.name
