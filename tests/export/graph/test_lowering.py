"""Programs of torch whose nodes are written without being taken apart first.

That nothing of our models has to be is a part of `tests/test_golden.py`, which traces all of them.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.onnx._internal.exporter import _fx_passes

from export.graph.functions import OPSET
from export.graph.lowering import TRANSLATIONS, light_lowering


def test_slow_nodes_of_torch_are_not_there(tiny_program: torch.onnx.ONNXProgram) -> None:
    assert not [node.op_type for node in tiny_program.model.graph if node.op_type in ("Einsum", "Flatten")]


class Layers(nn.Module):
    """Whatever the lowering writes itself, with sizes that vary."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        heads = x.unflatten(-1, (2, -1))  # [batch, tokens, 2, width]
        return (
            heads,
            heads.flatten(2),
            heads[:, 0].flatten(1),
            (x * 2).flatten(0, 1),
            heads.mT,
            x[0, :, 0].diff(),
            2.5 - x,
            3 - x.to(torch.int32),
            x.to(torch.float32),
            x[0, 0, 0].to(torch.int64).to(torch.float16),
        )


class Changed(nn.Module):
    """What cannot be written as it is: a change in place, the differences of a matrix, a subtraction with a factor."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = x.clone()
        y.mul_(2)
        return y, x.diff(dim=1), x.diff(), torch.rsub(x, 1.0, alpha=3), x.flatten(start_dim=1)


def exported(module: nn.Module, tmp_path: Path) -> Callable[[Tensor], list[Tensor]]:
    shapes = ({0: Dim("batch"), 1: Dim("tokens", min=3)},)
    with torch.no_grad(), light_lowering():
        program = torch.export.export(module, (torch.ones(2, 5, 4),), dynamic_shapes=shapes)
        traced = torch.onnx.export(
            program, (), dynamo=True, opset_version=OPSET, optimize=False, custom_translation_table=TRANSLATIONS
        )
    assert traced is not None
    traced.save(str(tmp_path / "layers.onnx"))
    session = onnxruntime.InferenceSession(tmp_path / "layers.onnx", providers=["CPUExecutionProvider"])
    (name,) = [value.name for value in session.get_inputs()]
    return lambda x: [torch.from_numpy(np.asarray(value)) for value in session.run(None, {name: x.numpy()})]


@pytest.mark.parametrize("module", [Layers(), Changed()])
def test_the_graph_gives_what_torch_gives(tmp_path: Path, module: nn.Module) -> None:
    run = exported(module, tmp_path)
    for shape in ((2, 3, 4), (1, 5, 4), (3, 7, 4)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3
        for found, expected in zip(run(x), module(x), strict=True):
            assert found.dtype == expected.dtype
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_torch_is_left_as_it_was() -> None:
    before = _fx_passes.decompose_with_registry, _fx_passes.insert_type_promotion_nodes
    with pytest.raises(KeyError), light_lowering():
        raise KeyError
    assert (_fx_passes.decompose_with_registry, _fx_passes.insert_type_promotion_nodes) == before
