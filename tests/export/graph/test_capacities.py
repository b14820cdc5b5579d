"""Packed graphs in which no size depends on data: rooms of the layers, and the output that says whether they did."""

from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor

from export.artifact.manifest import OVERFLOW
from export.graph.capacities import add_overflow, set_capacities
from export.graph.trace import write_part
from export.runtime.onnx_runner import OnnxRunner
from madtp.models.parts import Part, parts_of
from madtp.ops.spec import CAPACITY, INCOMING, PACKED_COMPACT
from madtp.tasks.requests import Outputs
from tests import golden
from tests.helpers.packed_batches import PruningRunner
from tests.helpers.paths import golden_folders

FOLDER = next(folder for folder in golden_folders() if (folder.parent.name, folder.name) == ("nlvr", "tiny"))
SIZED_BY_DATA = {"NonZero", "Unique", "NonMaxSuppression", "Loop", "If", "Scan", "Compress"}


@dataclass(frozen=True)
class Traced:
    """A part whose layers have room for all that comes in, as a file, and a batch for it.

    Attributes:
        needed: by encoder, rows that the batch needs after each layer.
    """

    part: Part
    path: Path
    inputs: dict[str, Tensor]
    temperature: float
    expected: Outputs
    needed: dict[str, list[int]]

    def run(self, rows: dict[str, list[int]] | None) -> Outputs:
        """With room for as many rows after each layer."""
        path = self.path
        if rows is not None:
            path = self.path.with_name("fixed.onnx")
            set_capacities(self.path, path, rows)
        return OnnxRunner(path).run(self.inputs, self.temperature)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    model = golden.load_model(FOLDER)
    case = next(c for c in golden.load_cases(FOLDER, model.config.image_size) if c.name == "b3_pad_prune")
    exact, sized = (parts_of(model.packed_copy(sized=sized))["model"] for sized in (False, True))
    path = tmp_path_factory.mktemp("sized") / "model.onnx"
    write_part(sized, path, external_data=True, passes=[add_overflow])
    inputs = {spec.name: case.inputs[spec.name] for spec in exact.inputs if spec.name in case.inputs}
    expected = PruningRunner(exact).run(inputs, case.temperature)
    needed = {encoder: expected[f"{encoder}_token_counts"].sum(dim=0).tolist() for encoder in exact.encoders}
    return Traced(sized, path, inputs, case.temperature, expected, needed)


def check_equal(found: Outputs, expected: Outputs) -> None:
    assert int(found[OVERFLOW]) == 0
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0)


def test_with_room_for_what_comes_in_nothing_overflows(traced: Traced) -> None:
    check_equal(traced.run(None), traced.expected)
    dense = OnnxRunner(traced.path).run(traced.inputs, 0.0)
    assert int(dense[OVERFLOW]) == 0
    assert len(set(dense["vision_token_counts"].flatten().tolist())) == 1


def test_exactly_enough_room_is_enough(traced: Traced) -> None:
    check_equal(traced.run(traced.needed), traced.expected)


def test_one_row_less_in_any_layer_is_told(traced: Traced) -> None:
    for encoder, rows in traced.needed.items():
        for layer in range(len(rows)):
            short = {name: list(of) for name, of in traced.needed.items()}
            short[encoder][layer] -= 1
            assert int(traced.run(short)[OVERFLOW]) == 1, (encoder, layer)


def test_room_for_two_rows_is_told(traced: Traced) -> None:
    assert int(traced.run({name: [2] * len(rows) for name, rows in traced.needed.items()})[OVERFLOW]) == 1


def test_no_node_has_a_size_that_depends_on_data(traced: Traced) -> None:
    graph = onnx.load(str(traced.path)).graph
    compactions = [node for node in graph.node if node.op_type == PACKED_COMPACT.onnx_name]
    assert len(compactions) == sum(traced.part.encoders.values())
    assert all({entry.name: entry for entry in node.attribute}[CAPACITY].i == INCOMING for node in compactions)
    assert not SIZED_BY_DATA & {node.op_type for node in graph.node}
    assert [output.name for output in graph.output] == [*traced.part.outputs, OVERFLOW]


def test_a_graph_without_layers_that_prune_stays_as_it_is(tmp_path: Path) -> None:
    folder = next(folder for folder in golden_folders() if (folder.parent.name, folder.name) == ("vqa", "tiny"))
    part = parts_of(golden.load_model(folder).packed_copy(sized=True))["decoder"]
    path = tmp_path / "decoder.onnx"
    write_part(part, path, external_data=True, passes=[add_overflow])
    assert [output.name for output in onnx.load(str(path)).graph.output] == list(part.outputs)
