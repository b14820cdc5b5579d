"""What the CPU kernels of the packed ops refuse, each in a sentence that says what is wrong."""

from typing import Any

import pytest
import torch
from torch import Tensor

from madtp.ops.spec import KEEP_MARGIN, PACKED_ATTENTION, PACKED_COMPACT, VARLEN_ATTENTION, OpSpec
from tests.helpers.native_build import build
from tests.helpers.onnxruntime_ops import OnnxRuntimeOps
from tests.helpers.packed_calls import attention_call, compact_call, varlen_call


@pytest.fixture(scope="module")
def best() -> OnnxRuntimeOps:
    """As it is loaded without a wish."""
    return OnnxRuntimeOps(build().onnxruntime)


def int32(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


BAD_SEQUENCES = {
    "starts late": (int32(2, 8), "has 2 at 0; it has to start at 0, never fall, and end within the 8 rows"),
    "negative": (int32(0, -3, 8), "has -3 at 1"),
    "falls": (int32(0, 5, 3, 8), "has 3 at 2"),
    "passes the rows": (int32(0, 5, 9), "has 9 at 2"),
    "far": (int32(0, 2**31 - 1), "has 2147483647 at 1"),
    "no sequences": (int32(), r"is \[0\]; it has to be \[sequences \+ 1\]"),
    "rank": (int32(0, 8)[None], r"is \[1, 2\]; it has to be \[sequences \+ 1\]"),
}


@pytest.mark.parametrize("bad", BAD_SEQUENCES)
def test_sequences_that_cannot_be_are_refused(best: OnnxRuntimeOps, bad: str) -> None:
    cu, message = BAD_SEQUENCES[bad]
    attention, compact = attention_call([8], 2, 4, 0), compact_call([8], 0, temperature=1.0)
    looking = varlen_call([8], [8], 2, 4, 0)
    calls: list[tuple[OpSpec, str, tuple[Any, ...]]] = [
        (PACKED_ATTENTION, "cu_seqlens", (*attention[:2], cu, *attention[3:])),
        (
            PACKED_COMPACT,
            "cu_seqlens",
            (*compact[:6], cu, compact[7], torch.ones(max(0, cu.numel() - 1)).long(), *compact[9:]),
        ),
        (VARLEN_ATTENTION, "cu_seqlens", (*looking[:2], cu, torch.zeros_like(cu), looking[4])),
    ]
    if cu.dim() == 1 and cu.numel():
        calls += [(VARLEN_ATTENTION, "cu_keys", (*looking[:2], torch.zeros_like(cu), cu, looking[4]))]
    for spec, name, call in calls:
        with pytest.raises(Exception, match=f"{name} of {spec.onnx_name} {message}"):
            best.call(spec, call)
    best.call(VARLEN_ATTENTION, looking)  # the next request is answered


BAD_SHAPES: dict[str, tuple[OpSpec, int, Tensor, str]] = {
    "qkv rank": (PACKED_ATTENTION, 0, torch.zeros(1, 8, 24), r"qkv of PackedAlignedAttention is \[1, 8, 24\]"),
    "qkv width": (PACKED_ATTENTION, 0, torch.zeros(8, 25), "the width a multiple of 2 heads"),
    "qkv mask": (
        PACKED_ATTENTION,
        1,
        torch.zeros(9),
        r"key_mask of PackedAlignedAttention is \[9\]; qkv asks for \[8\]",
    ),
    "tokens": (PACKED_COMPACT, 0, torch.zeros(1, 8, 8), r"tokens of PackedTokenCompact are \[1, 8, 8\]"),
    "mask": (PACKED_COMPACT, 1, torch.zeros(7), r"key_mask of PackedTokenCompact is \[7\]; its tokens ask for \[8\]"),
    "ids": (PACKED_COMPACT, 2, int32(1), r"source_ids of PackedTokenCompact is \[1\]"),
    "column": (PACKED_COMPACT, 3, torch.zeros(7), r"column_score of PackedTokenCompact is \[7\]"),
    "class": (PACKED_COMPACT, 4, torch.zeros(8, 1), r"class_score of PackedTokenCompact is \[8, 1\]"),
    "alignment": (PACKED_COMPACT, 5, torch.zeros(7, 4), r"alignment of PackedTokenCompact is \[7, 4\]"),
    "no alignments": (PACKED_COMPACT, 5, torch.zeros(8, 0), r"alignment of PackedTokenCompact is \[8, 0\]"),
    "temperature": (PACKED_COMPACT, 7, torch.ones(2), r"temperature of PackedTokenCompact is \[2\]"),
    "min_keep": (PACKED_COMPACT, 8, torch.ones(2).long(), r"min_keep of PackedTokenCompact is \[2\]; .* \[1\]"),
    "query": (VARLEN_ATTENTION, 0, torch.zeros(8, 7), "the width a multiple of 2 heads"),
    "keys": (VARLEN_ATTENTION, 1, torch.zeros(8, 8), r"key_value of VarlenAttention is \[8, 8\]; .* \[rows, 16\]"),
    "sequences": (VARLEN_ATTENTION, 3, int32(0, 4, 8), r"cu_keys of VarlenAttention is \[3\]; .* \[2\]"),
}


@pytest.mark.parametrize("bad", BAD_SHAPES)
def test_shapes_that_do_not_fit_are_refused(best: OnnxRuntimeOps, bad: str) -> None:
    spec, index, value, message = BAD_SHAPES[bad]
    calls = {
        PACKED_ATTENTION: attention_call([8], 2, 4, 0),
        PACKED_COMPACT: compact_call([8], 0, temperature=1.0),
        VARLEN_ATTENTION: varlen_call([8], [8], 2, 4, 0),
    }
    call = calls[spec]
    with pytest.raises(Exception, match=message):
        best.call(spec, (*call[:index], value, *call[index + 1 :]))
    best.call(spec, call)


def test_sequences_that_are_no_whole_requests_are_refused(best: OnnxRuntimeOps) -> None:
    call = compact_call([5, 5, 5], 0, temperature=1.0)
    with pytest.raises(
        Exception, match=r"cu_seqlens of PackedTokenCompact is \[4\]: 3 sequences, which are no requests of 2"
    ):
        best.call(PACKED_COMPACT, (*call[:10], 2, *call[11:]))


NODE = {"capacity": 0, "group": 1, "layer": 0}


@pytest.mark.parametrize(
    ("spec", "attributes", "message"),
    [
        (PACKED_ATTENTION, {"causal": 0, "heads": 0}, "PackedAlignedAttention has 0 heads"),
        (PACKED_ATTENTION, {"heads": 1}, "causal"),
        (PACKED_COMPACT, {**NODE, "capacity": -2}, "capacity of PackedTokenCompact is -2"),
        (PACKED_COMPACT, {**NODE, "capacity": 2**31}, "capacity of PackedTokenCompact is 2147483648"),
        (PACKED_COMPACT, {**NODE, "group": 0}, "group of PackedTokenCompact is 0"),
        (PACKED_COMPACT, {**NODE, "layer": -1}, "layer of PackedTokenCompact is -1"),
        (PACKED_COMPACT, {**NODE, KEEP_MARGIN: -0.5}, "keep_margin of PackedTokenCompact is -0.5"),
        (VARLEN_ATTENTION, {"heads": -2}, "VarlenAttention has -2 heads"),
    ],
)
def test_a_node_with_bad_attributes_is_refused(
    best: OnnxRuntimeOps, spec: OpSpec, attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(Exception, match=message):
        best.session(spec, torch.float32, **attributes)
