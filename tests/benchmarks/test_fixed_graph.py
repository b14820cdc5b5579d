"""Packed graphs whose sizes are numbers: nothing is left that ONNX Runtime would compute on the host."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from benchmarks.kit.fixed_graph import fix_sizes
from benchmarks.kit.stages.models import SMALL
from export.artifact.manifest import OVERFLOW
from export.graph.capacities import add_overflow
from export.graph.trace import write_part
from export.runtime.execution import Execution
from export.runtime.onnx_runner import OnnxRunner
from madtp.models.nlvr import NlvrModel
from madtp.models.parts import parts_of
from tests.helpers.generate import generated_state
from tests.helpers.op_library import real_library

BATCH, TEXT, TEMPERATURE = 2, 7, 1.0
ROWS = {"vision": [144, 96], "text": [16, 14]}
# Of sizes, or of types that the CUDA provider has no kernel for: they would run on the host, and be copied.
ON_THE_HOST = {"Shape", "Size", "Range", "ConstantOfShape", "Expand", "NonZero", "Clip", "ReduceMax"}


@dataclass(frozen=True)
class Fixed:
    """A packed graph, and the same with fixed sizes."""

    model: NlvrModel
    source: Path
    path: Path
    inputs: dict[str, Tensor]


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Fixed:
    folder = tmp_path_factory.mktemp("fixed")
    model = NlvrModel(SMALL).eval()
    model.load_state_dict(generated_state(model, seed=0))
    write_part(parts_of(model.packed_copy(sized=True))["model"], folder / "sized.onnx", True, [add_overflow])
    fix_sizes(folder / "sized.onnx", folder / "fixed.onnx", ROWS, {"batch": BATCH, "text": TEXT})
    torch.manual_seed(0)
    images = (torch.randn(BATCH, 3, SMALL.image_size, SMALL.image_size) for _ in range(2))
    mask = torch.tensor([[1] * TEXT, [1] * (TEXT - 3) + [0] * 3])
    ids = torch.randint(4, 200, (BATCH, TEXT)) * mask
    given = (*images, ids, mask)
    names = ("image0", "image1", "input_ids", "attention_mask")
    return Fixed(model, folder / "sized.onnx", folder / "fixed.onnx", dict(zip(names, given, strict=True)))


def dims(values: Any) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for value in values for dim in value.type.tensor_type.shape.dim]


def test_inputs_and_outputs_have_numbers_for_sizes(fixed: Fixed) -> None:
    graph = onnx.load(str(fixed.path), load_external_data=False).graph
    assert all(isinstance(dim, int) and dim > 0 for dim in dims([*graph.input, *graph.output]))
    by_name = {value.name: dims([value]) for value in graph.value_info}
    compactions = [node for node in graph.node if node.op_type == "PackedTokenCompact"]
    assert [by_name[node.output[0]][0] for node in compactions] == [*ROWS["vision"], *ROWS["text"]]


def test_what_computes_sizes_is_folded(fixed: Fixed, tmp_path: Path) -> None:
    options = Execution(library=real_library()).session_options(1)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(str(fixed.path), options, providers=["CPUExecutionProvider"])
    left = {node.op_type for node in onnx.load(str(tmp_path / "optimized.onnx"), load_external_data=False).graph.node}
    assert {"PackedTokenCompact", "Min"} <= left
    assert not ON_THE_HOST & left


def test_layers_with_too_little_room_are_told(fixed: Fixed) -> None:
    path = fixed.path.with_name("short.onnx")
    fix_sizes(fixed.source, path, {**ROWS, "text": [16, 3]}, {"batch": BATCH, "text": TEXT})
    found = OnnxRunner(path, 1, Execution(library=real_library())).run(fixed.inputs, TEMPERATURE)
    assert int(found[OVERFLOW]) == 1


def test_it_gives_what_it_gave(fixed: Fixed) -> None:
    execution = Execution(library=real_library())
    expected, found = (
        OnnxRunner(path, 1, execution).run(fixed.inputs, TEMPERATURE) for path in (fixed.source, fixed.path)
    )
    assert int(found[OVERFLOW]) == 0
    assert torch.equal(found["vision_token_counts"], expected["vision_token_counts"])
    assert int(found["vision_token_counts"][:, -1].sum()) < ROWS["vision"][1]
    assert torch.equal(found["text_token_counts"], expected["text_token_counts"])
    torch.testing.assert_close(found["logits"], expected["logits"], atol=1e-5, rtol=0)
