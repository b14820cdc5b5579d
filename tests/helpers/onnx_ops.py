"""The two ops as nodes that ONNX Runtime runs through a library of ops, one at a time."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor

from madtp.ops.spec import ALIGNED_ATTENTION, DOMAIN, FLOAT, TOKEN_COMPACT, VERSION, OpSpec
from tests.helpers.kernels import Compacted

OPSET = 20
TYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "int64": TensorProto.INT64}
ENGINE_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
}


class OnnxOps:
    """Both ops in ONNX Runtime's CPU provider, with the methods of `tests.helpers.kernels.Kernels`.

    Args:
        library: of ops, which ONNX Runtime registers.
    """

    def __init__(self, library: Path) -> None:
        self._session = cache(lambda *key: _session(library, *key))

    def supports(self, dtype: torch.dtype) -> bool:
        """Whether AlignedAttention supports this type there."""
        return dtype in ENGINE_TYPES

    def aligned_attention(self, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Like `madtp.ops.reference.aligned_attention`; raises what ONNX Runtime does."""
        qkv, key_mask, causal, heads = inputs
        context, column, class_score = self._run(ALIGNED_ATTENTION, (qkv, key_mask), causal=causal, heads=heads)
        return context, column, class_score

    def token_compact(self, *inputs: Any) -> Compacted:
        """Like `madtp.ops.reference.token_compact`; raises what ONNX Runtime does."""
        layer, margin = inputs[8], inputs[9] if len(inputs) > 9 else 0.0
        tokens, mask, ids, count = self._run(TOKEN_COMPACT, inputs[:8], layer=layer, keep_margin=margin)
        return Compacted(tokens, mask, ids, int(count))

    def _run(self, spec: OpSpec, inputs: Sequence[Tensor], **attributes: float) -> list[Tensor]:
        dtype = inputs[0].dtype
        session = self._session(spec, dtype, tuple(attributes.items()))
        given = {
            entry.name: (value.float() if entry.dtype == FLOAT else value).contiguous().numpy()
            for entry, value in zip(spec.inputs, inputs, strict=True)
        }
        values = [torch.from_numpy(np.asarray(value)) for value in session.run(None, given)]
        return [
            value.to(dtype) if entry.dtype == FLOAT else value
            for entry, value in zip(spec.outputs, values, strict=True)
        ]


def _session(
    library: Path, spec: OpSpec, dtype: torch.dtype, attributes: tuple[tuple[str, float], ...]
) -> onnxruntime.InferenceSession:
    """A node between casts from and to float32, which change nothing: numpy has no bfloat16."""
    engine = ENGINE_TYPES[dtype]
    inputs, outputs = (
        [helper.make_tensor_value_info(entry.name, TYPES.get(entry.dtype, TensorProto.FLOAT), None) for entry in part]
        for part in (spec.inputs, spec.outputs)
    )
    names = [[f"{e.name}_engine" if e.dtype == FLOAT else e.name for e in part] for part in (spec.inputs, spec.outputs)]
    before = [
        helper.make_node("Cast", [entry.name], [name], to=engine)
        for entry, name in zip(spec.inputs, names[0], strict=True)
        if entry.dtype == FLOAT
    ]
    after = [
        helper.make_node("Cast", [name], [entry.name], to=TensorProto.FLOAT)
        for entry, name in zip(spec.outputs, names[1], strict=True)
        if entry.dtype == FLOAT
    ]
    node = helper.make_node(spec.onnx_name, *names, domain=DOMAIN, **dict(attributes))
    model = helper.make_model(
        helper.make_graph([*before, node, *after], "one", inputs, outputs),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=10,
    )
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library))
    options.log_severity_level = 4  # an error that a test asks for is not news
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
