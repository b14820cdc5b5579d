"""Multiply-adds of one node, from ONNX Runtime's profile: of shapes, and of packed ops of the sequences in the rows."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import onnx

from madtp.ops.spec import (
    ALIGNED_ATTENTION,
    ALL_OPS,
    DOMAIN,
    PACKED_ATTENTION,
    PACKED_COMPACT,
    PACKED_OPS,
    TOKEN_COMPACT,
)

MULTIPLY = {"MatMul", "Gemm", "FusedGemm", "FusedMatMul", "Conv", "FusedConv"}
CUSTOM = {spec.onnx_name for spec in ALL_OPS}  # of nodes that kernels computed as wholes
ENDS = "sequence_ends"  # in the arguments of a packed node's event: the values of `ends_of`
_PACKED = {spec.onnx_name: spec for spec in PACKED_OPS}
_OF_SEQUENCES = ("S+1",)  # dimensions of ends


def ends_of(node: onnx.NodeProto) -> list[str]:
    """Names of the values [S + 1] that say where the sequences of a packed node lie, inputs first; none of others."""
    if node.domain != DOMAIN or node.op_type not in _PACKED:
        return []
    spec = _PACKED[node.op_type]
    named = (*zip(spec.inputs, node.input, strict=True), *zip(spec.outputs, node.output, strict=True))
    return [name for tensor, name in named if tensor.dims == _OF_SEQUENCES]


def multiply_adds(operator: str, arguments: Mapping[str, Any]) -> float:
    """Those of one node. (Weights that the runtime repacks are not among its inputs.)

    Args:
        operator: its type.
        arguments: of its event in the profile; for a packed op with ENDS.
    """
    if operator not in MULTIPLY and operator not in CUSTOM:
        return 0.0
    first, output = (next(iter(arguments[key][0].values())) for key in ("input_type_shape", "output_type_shape"))
    if operator in _PACKED:
        return _of_sequences(operator, arguments[ENDS]) * output[1]
    if operator == ALIGNED_ATTENTION.onnx_name:  # scores and context, [B, L, 3C] given
        return 2 * math.prod(output) * first[1]
    if operator == TOKEN_COMPACT.onnx_name:  # the merge
        return math.prod(first) if output[1] < first[1] else 0
    if operator == "MatMul":
        return math.prod(output) * first[-1]
    if operator in ("Conv", "FusedConv"):  # of these models: patches that do not overlap
        return math.prod(first) * output[1]
    return math.prod(first) * output[-1]  # the first factor may be transposed


def _of_sequences(operator: str, ends: Sequence[Sequence[int]]) -> int:
    """Of a packed op, for one column of its result: rows that no sequence has cost nothing."""
    lengths = [[end - begin for begin, end in pairwise(one)] for one in ends]
    if operator == PACKED_ATTENTION.onnx_name:  # scores and context
        return 2 * sum(length**2 for length in lengths[0])
    if operator == PACKED_COMPACT.onnx_name:  # the merge, of what is dropped
        return sum(before - (after - 1) for before, after in zip(*lengths, strict=True) if after < before)
    return 2 * sum(queries * keys for queries, keys in zip(*lengths, strict=True))
