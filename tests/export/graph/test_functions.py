"""The ONNX function bodies: standard ONNX, run by ONNX Runtime with nothing registered, equal to the torch ops."""

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor

from export.graph.functions import BIASED, OPSET, functions, op_schema
from madtp.ops.spec import ALIGNED_ATTENTION, DOMAIN, FLOAT, KEEP_MARGIN, OPS, TOKEN_COMPACT, VERSION, OpSpec
from tests.helpers.kernel_calls import compact_inputs

TYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "int64": TensorProto.INT64}


def one_node_model(spec: OpSpec, attributes: dict[str, float], data_type: int = TensorProto.FLOAT) -> onnx.ModelProto:
    types = {**TYPES, FLOAT: data_type}
    inputs, outputs = (
        [helper.make_tensor_value_info(e.name, types[e.dtype], list(e.dims)) for e in part]
        for part in (spec.inputs, spec.outputs)
    )
    if spec is ALIGNED_ATTENTION:
        attributes = {BIASED: 1, **attributes}
    node = helper.make_node(
        spec.onnx_name, [e.name for e in spec.inputs], [e.name for e in spec.outputs], domain=DOMAIN, **attributes
    )
    return helper.make_model(
        helper.make_graph([node], "one", inputs, outputs),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)],
        functions=functions(keep_margin=KEEP_MARGIN in attributes),
        ir_version=10,
    )


@cache
def session(spec: OpSpec, **attributes: float) -> onnxruntime.InferenceSession:
    model = one_node_model(spec, attributes)
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def run(spec: OpSpec, inputs: dict[str, Tensor], **attributes: float) -> list[np.ndarray]:
    return session(spec, **attributes).run(None, {name: tensor.numpy() for name, tensor in inputs.items()})


def assert_same(actual: list[np.ndarray], expected: Any, atol: float = 2e-6) -> None:
    for array, tensor in zip(actual, expected, strict=True):
        assert array.shape == tuple(tensor.shape)
        assert array.dtype == tensor.numpy().dtype
        np.testing.assert_allclose(array, tensor.numpy(), atol=atol, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 4),
    length=st.integers(2, 30),
    size=st.integers(1, 9),
    causal=st.integers(0, 1),
    seed=st.integers(0, 10**6),
)
def test_attention_body_equals_the_op(batch: int, length: int, size: int, causal: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    qkv = torch.randn(batch, length, 3 * 4 * size, generator=g)
    mask = -10000.0 * (torch.rand(batch, length, generator=g) < 0.3)
    expected = torch.ops.madtp.aligned_attention(qkv, mask, causal, 4)
    assert_same(run(ALIGNED_ATTENTION, {"qkv": qkv, "key_mask": mask}, causal=causal, heads=4), expected)


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 3), length=st.integers(2, 30), seed=st.integers(0, 10**6))
def test_attention_body_without_a_bias_equals_the_op_without_a_mask(batch: int, length: int, seed: int) -> None:
    qkv = torch.randn(batch, length, 3 * 32, generator=torch.Generator().manual_seed(seed))
    expected = torch.ops.madtp.aligned_attention(qkv, torch.zeros(batch, length), 0, 4)
    ignored = torch.full((batch, length), float("nan"))
    assert_same(run(ALIGNED_ATTENTION, {"qkv": qkv, "key_mask": ignored}, causal=0, heads=4, biased=0), expected)


def compare_compact(inputs: dict[str, Tensor], tau: float, min_keep: int = 1, margin: float = 0.0) -> int:
    """Run op and body on the same input; returns the tokens that are left."""
    scalars = {"temperature": torch.tensor(tau), "min_keep": torch.tensor(min_keep)}
    expected = torch.ops.madtp.token_compact(*inputs.values(), *scalars.values(), 3, margin)
    actual = run(TOKEN_COMPACT, {**inputs, **scalars}, layer=3, **({KEEP_MARGIN: margin} if margin else {}))
    assert_same(actual, expected, atol=1e-5)
    return int(actual[3])


@settings(max_examples=120, deadline=None)
@given(
    batch=st.integers(1, 5),
    tokens=st.integers(1, 60),
    tau=st.sampled_from([0.0, -1.0, float("nan"), 0.05, 0.5, 2.0, float("inf")]),
    min_keep=st.integers(0, 4),
    margin=st.sampled_from([0.0, 0.1, 0.5]),
    seed=st.integers(0, 10**6),
)
def test_compaction_body_equals_the_op(
    batch: int, tokens: int, tau: float, min_keep: int, margin: float, seed: int
) -> None:
    compare_compact(compact_inputs(batch, tokens, seed), tau, min_keep, margin)


@pytest.mark.parametrize("batch", [1, 3])
def test_compaction_body_breaks_ties_like_the_op(batch: int) -> None:
    inputs = compact_inputs(batch, 12, seed=2)
    inputs["column_score"] = torch.tensor([[1.0, 2.0] * 6]).repeat(batch, 1)
    inputs["class_score"] = torch.zeros(batch, 12)
    inputs["alignment"] = torch.zeros(batch, 12, 4)
    assert compare_compact(inputs, 1.0) == 8


@pytest.mark.parametrize("margin", [0.0, 0.1])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_compaction_body_prunes_nothing_where_a_score_is_not_finite(value: float, margin: float) -> None:
    inputs = compact_inputs(3, 40, seed=1)
    assert compare_compact(inputs, 0.7, margin=margin) < 41
    inputs["class_score"][1, 4] = value
    assert compare_compact(inputs, 0.7, margin=margin) == 41


@pytest.mark.parametrize("data_type", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
@pytest.mark.parametrize(
    ("spec", "attributes"),
    [
        (ALIGNED_ATTENTION, {"causal": 0, "heads": 4}),
        (TOKEN_COMPACT, {"layer": 0}),
        (TOKEN_COMPACT, {"layer": 0, KEEP_MARGIN: 0.1}),
    ],
)
def test_bodies_are_valid_in_half_precision(spec: OpSpec, attributes: dict[str, float], data_type: int) -> None:
    onnx.checker.check_model(one_node_model(spec, attributes, data_type), full_check=True)


def test_attention_body_runs_in_float16() -> None:
    model = one_node_model(ALIGNED_ATTENTION, {"causal": 0, "heads": 4}, TensorProto.FLOAT16)
    half = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    qkv = torch.randn(2, 9, 96, generator=torch.Generator().manual_seed(0)).half()
    mask = torch.zeros(2, 9)
    actual = half.run(None, {"qkv": qkv.numpy(), "key_mask": mask.numpy()})
    for array, tensor in zip(actual, torch.ops.madtp.aligned_attention(qkv, mask, 0, 4), strict=True):
        np.testing.assert_allclose(array, tensor.numpy(), atol=5e-3)


@pytest.mark.parametrize("spec", OPS, ids=lambda spec: spec.onnx_name)
def test_one_definition_makes_op_schema_and_function(spec: OpSpec) -> None:
    schema = getattr(torch.ops.madtp, spec.torch_name).default._schema
    assert [a.name for a in schema.arguments] == [e.name for e in (*spec.inputs, *spec.attributes)]
    assert len(schema.returns) == len(spec.outputs)
    function = next(f for f in functions(keep_margin=True) if f.name == spec.onnx_name)
    assert list(function.input) == [e.name for e in spec.inputs]
    assert list(function.output) == [e.name for e in spec.outputs]
    body_alone = [BIASED] if spec is ALIGNED_ATTENTION else []
    assert sorted(function.attribute) == sorted([*(e.name for e in spec.attributes), *body_alone])
    onnx_schema = op_schema(spec)
    assert (onnx_schema.name, onnx_schema.domain, onnx_schema.since_version) == (spec.onnx_name, DOMAIN, VERSION)
    assert sorted(onnx_schema.attributes) == sorted(e.name for e in spec.attributes)
    required = {name for name, attribute in onnx_schema.attributes.items() if attribute.required}
    assert required == {entry.name for entry in spec.attributes if entry.default is None}


def test_without_a_margin_the_body_has_nothing_of_it() -> None:
    plain, with_margin = (
        next(f for f in functions(keep_margin=margin) if f.name == TOKEN_COMPACT.onnx_name) for margin in (False, True)
    )
    assert list(plain.attribute) == ["layer"]
    assert len(with_margin.node) == len(plain.node) + 5


def test_fake_functions_give_the_shapes_and_types_of_the_definition() -> None:
    inputs = [*compact_inputs(2, 9, seed=0).values(), torch.tensor(0.7), torch.tensor(1)]
    torch.library.opcheck(torch.ops.madtp.token_compact.default, (*inputs, 0), test_utils="test_faketensor")
    qkv = torch.randn(2, 9, 24)
    torch.library.opcheck(
        torch.ops.madtp.aligned_attention.default, (qkv, torch.zeros(2, 9), 0, 4), test_utils="test_faketensor"
    )
    for outputs, spec in (
        (torch.ops.madtp.token_compact(*inputs, 0), TOKEN_COMPACT),
        (torch.ops.madtp.aligned_attention(qkv, torch.zeros(2, 9), 0, 4), ALIGNED_ATTENTION),
    ):
        for tensor, entry in zip(outputs, spec.outputs, strict=True):
            wanted = torch.float32 if entry.dtype == FLOAT else getattr(torch, entry.dtype)
            assert tensor.dtype == wanted
            assert tensor.dim() == len(entry.dims)


@pytest.mark.parametrize("keep_margin", [False, True])
def test_every_node_of_a_body_has_a_name_of_its_own(keep_margin: bool) -> None:
    for function in functions(keep_margin=keep_margin):
        names = [node.name for node in function.node]
        assert all(names)
        assert len(set(names)) == len(names)
