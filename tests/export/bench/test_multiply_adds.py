"""Arithmetic of a packed artifact as the profile counts it: that of its sequences, whatever rows there are."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import Tensor

from export.bench.operators import Operators, ProfiledRunner, summarize_events
from export.graph.trace import write_part
from export.runtime.execution import BODIES, Execution
from madtp.models.parts import Part, parts_of
from madtp.ops.flops import count_flops
from madtp.ops.spec import PACKED_OPS
from tests import golden
from tests.helpers.op_library import real_library
from tests.helpers.paths import CARRIED

REQUESTS = 3


@dataclass(frozen=True)
class Packed:
    """A part with more room for rows than its sequences need, as a file, and a batch of requests."""

    part: Part
    path: Path
    inputs: dict[str, Tensor]
    temperature: float

    def profile(self, execution: Execution) -> Operators:
        """One run."""
        runner = ProfiledRunner(self.path, self.path.parent, 1, execution)
        assert runner.run(self.inputs, self.temperature).keys() == set(self.part.outputs)
        return summarize_events(runner.events()[0], REQUESTS)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    model = golden.load_model(CARRIED)
    case = next(c for c in golden.load_cases(CARRIED, model.config.image_size) if c.name == "b3_pad_prune")
    part = parts_of(model.packed_copy(sized=True))["model"]
    path = tmp_path_factory.mktemp("packed") / "model.onnx"
    write_part(part, path, external_data=True)
    inputs = {spec.name: case.inputs[spec.name] for spec in part.inputs if spec.name in case.inputs}
    return Packed(part, path, inputs, case.temperature)


def test_kernels_of_packed_operators_are_counted_as_in_torch(packed: Packed) -> None:
    profiled = packed.profile(Execution(library=real_library()))
    assert {spec.onnx_name for spec in PACKED_OPS} <= profiled.milliseconds.keys()
    counted = count_flops(packed.part.module, packed.inputs, packed.temperature).by_operator
    products = sum(count for name, count in counted.items() if "layer_norm" not in name)
    assert profiled.gflops == pytest.approx(products / 1e9 / REQUESTS, rel=1e-9)


def test_bodies_of_packed_operators_are_shown_under_their_names(packed: Packed) -> None:
    names = packed.profile(BODIES).milliseconds.keys()
    assert {spec.onnx_name for spec in PACKED_OPS} <= names
    assert not {"AlignedAttention", "TokenCompact"} & names
