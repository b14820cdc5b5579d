"""The function bodies of the packed ops: standard ONNX, equal to the torch ops."""

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from export.graph.functions import OPSET, functions, op_schema
from madtp.ops.packed import packed_aligned_attention, packed_token_compact, varlen_attention
from madtp.ops.spec import (
    DOMAIN,
    FLOAT,
    INCOMING,
    KEEP_MARGIN,
    PACKED_ATTENTION,
    PACKED_COMPACT,
    PACKED_OPS,
    VARLEN_ATTENTION,
    VERSION,
    OpSpec,
)
from tests.helpers.packed_calls import attention_call, compact_call, varlen_call

TYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "int64": TensorProto.INT64, FLOAT: TensorProto.FLOAT}
LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=5)


@cache
def session(spec: OpSpec, **attributes: float) -> onnxruntime.InferenceSession:
    inputs, outputs = (
        [helper.make_tensor_value_info(e.name, TYPES[e.dtype], [None] * len(e.dims)) for e in part]
        for part in (spec.inputs, spec.outputs)
    )
    node = helper.make_node(
        spec.onnx_name, [e.name for e in spec.inputs], [e.name for e in spec.outputs], domain=DOMAIN, **attributes
    )
    model = helper.make_model(
        helper.make_graph([node], "one", inputs, outputs),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)],
        functions=functions(keep_margin=KEEP_MARGIN in attributes, ops=[spec]),
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def run(spec: OpSpec, arguments: tuple[Any, ...]) -> list[np.ndarray]:
    tensors = len(spec.inputs)
    given_attributes = zip(spec.attributes, arguments[tensors:], strict=True)
    attributes = {attribute.name: value for attribute, value in given_attributes if value != attribute.default}
    feed = {entry.name: tensor.numpy() for entry, tensor in zip(spec.inputs, arguments, strict=False)}
    return session(spec, **attributes).run(None, feed)


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 10**6), spare=st.integers(0, 3))
def test_attention_body_equals_the_op(lengths: list[int], seed: int, spare: int) -> None:
    call = attention_call(lengths, 2, 4, seed, spare)
    rows = sum(lengths)
    for array, tensor in zip(run(PACKED_ATTENTION, call), packed_aligned_attention(*call), strict=True):
        assert array.shape == tuple(tensor.shape)
        assert array.dtype == tensor.numpy().dtype
        np.testing.assert_allclose(array[:rows], tensor.numpy()[:rows], atol=2e-6, rtol=1e-5)


@settings(max_examples=100, deadline=None)
@given(
    pairs=LENGTHS,
    group=st.integers(1, 2),
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.0, -1.0, 0.3, 1.0, 4.0, float("nan")]),
    min_keep=st.integers(1, 4),
    margin=st.sampled_from([0.0, 0.3]),
    room=st.sampled_from([None, -3, 0, 4, "incoming"]),
)
@example([20, 20], 2, 0, 1.0, 1, 0.0, None)
@example([20, 20], 2, 0, 1.0, 1, 0.0, -15)
def test_compaction_body_equals_the_op(
    pairs: list[int], group: int, seed: int, temperature: float, min_keep: int, margin: float, room: int | str | None
) -> None:
    options: dict[str, Any] = {"temperature": temperature, "min_keep": min_keep, "group": group, "margin": margin}
    call = compact_call(pairs * group, seed, **options, spare=2)
    if room == "incoming":
        call = compact_call(pairs * group, seed, **options, spare=2, capacity=INCOMING)
    elif isinstance(room, int):
        needed = int(packed_token_compact(*call)[4])
        call = compact_call(pairs * group, seed, **options, spare=2, capacity=max(1, needed + room))
    found, expected = run(PACKED_COMPACT, call), packed_token_compact(*call)
    rows = int(expected[3][-1])
    for array, tensor in zip(found, expected, strict=True):
        assert array.shape == tuple(tensor.shape)
        assert array.dtype == tensor.numpy().dtype
    for array, tensor in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_allclose(array[:rows], tensor.numpy()[:rows], atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(found[3], expected[3].numpy())
    assert int(found[4]) == int(expected[4])


@settings(max_examples=40, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 20)), min_size=1, max_size=5), seed=st.integers(0, 99)
)
def test_attention_to_other_sequences_equals_the_op(pairs: list[tuple[int, int]], seed: int) -> None:
    lengths, keys = [(length + 1) if i == 0 else length for i, (length, _) in enumerate(pairs)], [k for _, k in pairs]
    if not sum(keys):
        keys[0] = 1
    call = varlen_call(lengths, keys, 2, 4, seed, spare=2)
    (found,), expected = run(VARLEN_ATTENTION, call), varlen_attention(*call)
    np.testing.assert_allclose(found[: sum(lengths)], expected.numpy()[: sum(lengths)], atol=2e-6, rtol=1e-5)


def test_schema_names_what_the_specification_names() -> None:
    for spec in PACKED_OPS:
        schema = op_schema(spec)
        assert [entry.name for entry in schema.inputs] == [entry.name for entry in spec.inputs]
        assert [entry.name for entry in schema.outputs] == [entry.name for entry in spec.outputs]
        assert set(schema.attributes) == {entry.name for entry in spec.attributes}
