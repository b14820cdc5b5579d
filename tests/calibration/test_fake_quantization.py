"""Rounding as runtimes round: bounds of the error, and products that are and are not touched."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import madtp
from calibration.fake_quantization import FakeQuantization, channel_maxima, round_fp8, round_int8, round_uint8
from calibration.products import ProductMode
from madtp.data.samples import collate
from madtp.data.synthetic import synthetic_samples
from madtp.models.parts import parts_of
from madtp.models.weight_products import weight_products
from madtp.tasks.requests import run_request, torch_runners
from tests.helpers.checkpoints import TAU, write_task_checkpoint

VALUES = arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.floats(-1e4, 1e4, width=32))


@settings(max_examples=50, deadline=None)
@given(VALUES)
def test_uint8_moves_nothing_by_more_than_a_step(values: np.ndarray) -> None:
    x = torch.from_numpy(values)
    step = (max(values.max(), 0) - min(values.min(), 0)) / 255
    assert (round_uint8(x) - x).abs().max() <= step * (1 + 1e-3) + 1e-37


@settings(max_examples=50, deadline=None)
@given(VALUES)
def test_int8_per_channel_moves_nothing_by_more_than_half_a_step_of_the_channel(values: np.ndarray) -> None:
    x = torch.from_numpy(values)
    moved = (round_int8(x, channel_maxima(x, 0)) - x).abs()
    assert (moved <= x.abs().amax(dim=1, keepdim=True) / 254 * (1 + 1e-3) + 1e-37).all()


@settings(max_examples=50, deadline=None)
@given(VALUES)
def test_fp8_keeps_three_bits(values: np.ndarray) -> None:
    x = torch.from_numpy(values)
    largest = float(x.abs().max())
    moved = (round_fp8(x, largest) - x).abs()
    assert (moved <= torch.clamp(x.abs() / 16, min=largest / 448 / 1024) * (1 + 1e-3) + 1e-37).all()


def test_a_range_clips() -> None:
    x = torch.tensor([-3.0, 0.5, 3.0])
    assert round_int8(x, 1.0).tolist() == pytest.approx([-1, 0.5, 1], abs=1 / 254)
    assert round_fp8(x, 1.0).tolist() == [-1, 0.5, 1]


@pytest.mark.parametrize("seed", range(3))
def test_uint8_is_what_onnx_runtime_makes_of_a_tensor(seed: int) -> None:
    x = np.random.default_rng(seed).normal(seed - 1, 3, (7, 9)).astype(np.float32)
    helper = onnx.helper
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [7, 9]) for name in "xy"]
    graph = helper.make_graph(nodes, "quantize", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(round_uint8(torch.from_numpy(x)).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("task", ["vqa", "clip"])
def test_only_the_given_products_are_rounded(task: str, tmp_path: Path) -> None:
    model = madtp.load(write_task_checkpoint(task, tmp_path / "tiny.pt"))
    inputs = collate(synthetic_samples(model.config).requests[:1], model.config)
    chosen = sorted(weight_products(model))[::3]
    quantization = FakeQuantization(model, "int8")
    untouched = set[str]()
    # The outer context comes last: weights that were rounded are none of the model's any more.
    see = ProductMode(model, lambda product: untouched.add(product.name))
    with torch.no_grad(), see, quantization.of(chosen):
        run_request(model.config, torch_runners(parts_of(model)), inputs, TAU)
    assert untouched == weight_products(model).keys() - set(chosen)
