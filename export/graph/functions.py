"""The custom ops in standard ONNX: their executable specification, and what ONNX Runtime runs.

The bodies follow the reference in `madtp/ops/reference.py`; those of the packed layout are in
`export.graph.packed_functions`. They use only ops that TensorRT imports too, and get the
data-dependent size from a Slice whose end is computed; so a plan without plugins is built from the same text.
"""

from collections.abc import Iterable

import onnx.parser
from onnx import FunctionProto
from onnx.defs import OpSchema

from export.graph.packed_functions import (
    PACKED_ATTENTION_BODY,
    PACKED_COMPACT_BODY,
    PACKED_MARGIN,
    VARLEN_ATTENTION_BODY,
)
from madtp.ops.reference import EPSILON
from madtp.ops.spec import (
    ALIGNED_ATTENTION,
    DOMAIN,
    FLOAT,
    INT32,
    KEEP_MARGIN,
    OPS,
    PACKED_ATTENTION,
    PACKED_COMPACT,
    TOKEN_COMPACT,
    VARLEN_ATTENTION,
    VERSION,
    OpSpec,
)

OPSET = 20
BIASED = "biased"  # attribute of AlignedAttention nodes, for its body alone; 0: not causal, and no key is masked
OLDEST_ONNXRUNTIME = "1.17"  # that has it; 1.17.3 to 1.20.1 and 1.32.0 were tried, 1.16.3 refuses the file

_ALIGNED_ATTENTION_BODY = """
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    two = Constant <value = int64 {2}> ()
    at_1 = Constant <value = int64[1] {1}> ()
    at_last = Constant <value = int64[1] {-1}> ()
    rest = Constant <value = int64[1] {9223372036854775807}> ()

    # [3, B, H, L, D], and of it query, value [B, H, L, D] and key [B, H, D, L]; Gather, not Split: ONNX Runtime would
    # move the transpositions behind it, and multiply with a key that it has transposed element by element
    heads = Constant <value_int: int = @heads> ()
    heads_dim = Reshape (heads, at_1)
    copy = Constant <value = int64[2] {0, 0}> ()
    three = Constant <value = int64[1] {3}> ()
    by_head = Concat <axis = 0> (copy, three, heads_dim, at_last)
    qkv_rows = Reshape (qkv, by_head)
    qkv_heads = Transpose <perm = [2, 0, 3, 1, 4]> (qkv_rows)
    query = Gather <axis = 0> (qkv_heads, zero)
    key_heads = Gather <axis = 0> (qkv_heads, one)
    value = Gather <axis = 0> (qkv_heads, two)
    key = Transpose <perm = [0, 1, 3, 2]> (key_heads)

    head_size = Shape <start = 3> (query)
    head_size_float = Cast <to = 1> (head_size)
    root = Sqrt (head_size_float)
    scale = CastLike (root, qkv)
    scaled = Div (query, scale)
    raw_scores = MatMul (scaled, key)

    # probabilities [B, H, L, L]; the bias is the key mask [B, 1, 1, L], and minus infinity on later keys where causal
    biased_int = Constant <value_int: int = @biased> ()
    biased = Cast <to = 9> (biased_int)
    probabilities = If (biased) <
        then_branch = with_bias () => (float[b1, h1, l1, k1] biased_probabilities) {
            length_dim = Shape <start = 1, end = 2> (qkv)
            length = Squeeze (length_dim)
            position = Range (zero, length, one)
            query_position = Unsqueeze (position, at_1)
            later = Greater (position, query_position)
            causal_int = Constant <value_int: int = @causal> ()
            causal = Cast <to = 9> (causal_int)
            hidden = And (later, causal)
            minus_infinity = Constant <value = float {-inf}> ()
            nothing = Constant <value = float {0.0}> ()
            causal_bias = Where (hidden, minus_infinity, nothing)
            at_1_2 = Constant <value = int64[2] {1, 2}> ()
            key_bias = Unsqueeze (key_mask, at_1_2)
            bias_float = Add (key_bias, causal_bias)
            bias = CastLike (bias_float, qkv)
            scores = Add (raw_scores, bias)
            scores_float = Cast <to = 1> (scores)
            biased_probabilities = Softmax <axis = -1> (scores_float)
        },
        else_branch = without_bias () => (float[b2, h2, l2, k2] plain_probabilities) {
            raw_scores_float = Cast <to = 1> (raw_scores)
            plain_probabilities = Softmax <axis = -1> (raw_scores_float)
        }
    >
    attention = CastLike (probabilities, qkv)
    head_context = MatMul (attention, value)
    context_rows = Transpose <perm = [0, 2, 1, 3]> (head_context)
    rows = Concat <axis = 0> (copy, at_last)
    context = Reshape (context_rows, rows)

    # sum over non-class queries of the maximum over heads
    head_maximum = ReduceMax <keepdims = 0> (probabilities, at_1)
    at_1_1 = Constant <value = int64[2] {1, 1}> ()
    ends = Constant <value = int64[2] {9223372036854775807, 9223372036854775807}> ()
    both = Constant <value = int64[2] {1, 2}> ()
    non_class = Slice (head_maximum, at_1_1, ends, both)
    column_score = ReduceSum <keepdims = 0> (non_class, at_1)

    # the class query's probabilities, heads weighted by the norm of their context
    class_row = Gather <axis = 2> (probabilities, zero)
    context_float = Cast <to = 1> (head_context)
    norm = ReduceL2 <keepdims = 0> (context_float, at_last)
    norm_sum = ReduceSum <keepdims = 1> (norm, at_1)
    epsilon = Constant <value = float {EPSILON}> ()
    norm_total = Add (norm_sum, epsilon)
    head_weight = Div (norm, norm_total)
    weighted_row = Mul (class_row, head_weight)
    class_sum = ReduceSum <keepdims = 0> (weighted_row, at_1)
    class_score = Slice (class_sum, at_1, rest, at_1)
"""

_TOKEN_COMPACT_BODY = """
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    two = Constant <value = int64 {2}> ()
    at_0 = Constant <value = int64[1] {0}> ()
    at_1 = Constant <value = int64[1] {1}> ()
    at_2 = Constant <value = int64[1] {2}> ()
    rest = Constant <value = int64[1] {9223372036854775807}> ()
    epsilon = Constant <value = float {EPSILON}> ()

    # importance s [B, N]
    column_sum = ReduceSum <keepdims = 1> (column_score, at_1)
    column_total = Add (column_sum, epsilon)
    column = Div (column_score, column_total)
    best_alignment = ReduceMax <keepdims = 0> (alignment, at_2)
    alignment_sum = ReduceSum <keepdims = 1> (best_alignment, at_1)
    alignment_total = Add (alignment_sum, epsilon)
    aligned = Div (best_alignment, alignment_total)
    two_scores = Add (column, aligned)
    three_scores = Add (two_scores, class_score)
    three = Constant <value = float {3.0}> ()
    importance = Div (three_scores, three)

    # threshold theta [B, 1]; a temperature of zero or less must not divide
    cold = Constant <value = float {0.0}> ()
    warm = Constant <value = float {1.0}> ()
    prunes = Greater (temperature, cold)
    safe_temperature = Where (prunes, temperature, warm)
    sharpened = Div (alignment, safe_temperature)
    weights = Softmax <axis = 1> (sharpened)
    importance_row = Unsqueeze (importance, at_1)
    weighted = MatMul (importance_row, weights)
    {LEARNED} = ReduceMin <keepdims = 0> (weighted, at_2)
{MARGIN}
    # K: the largest count of the batch; a sample whose scores are not finite asks for all N tokens
    body_dim = Shape <start = 1> (importance)
    body_length = Squeeze (body_dim)
    above = Greater (importance, threshold)
    above_int = Cast <to = 7> (above)
    above_count = ReduceSum <keepdims = 1> (above_int, at_1)
    magnitude = ReduceL1 <keepdims = 1> (importance, at_1)
    threshold_magnitude = Abs (threshold)
    total_magnitude = Add (magnitude, threshold_magnitude)
    largest_float = Constant <value = float {3.4028234663852886e38}> ()
    finite = LessOrEqual (total_magnitude, largest_float)
    sample_count = Where (finite, above_count, body_length)
    largest_count = ReduceMax <keepdims = 0> (sample_count)
    keep = Where (prunes, largest_count, body_length)
    dropped = Sub (body_length, keep)
    enough = GreaterOrEqual (keep, min_keep)
    worthwhile = GreaterOrEqual (dropped, two)
    pruned = And (enough, worthwhile)

    # place 1 for the most important token, of equal ones the lower index first (TopK's tie rule)
    length = Add (body_length, one)
    body_shape = Shape (importance)
    position = Range (one, length, one)
    positions = Expand (position, body_shape)
    sorted_importance, order = TopK <axis = 1, largest = 1, sorted = 1> (importance, body_dim)
    place = ScatterElements <axis = 1> (positions, order, positions)

    # slot of every token in [class, K - 1 best by position, K-th best, merged, dropped ones]; where nothing is
    # pruned, no place is the last or behind it, and the slot of the merged token is behind all others
    last_place = Where (pruned, keep, length)
    is_best = Less (place, last_place)
    is_best_int = Cast <to = 7> (is_best)
    best_slot = CumSum (is_best_int, one)
    is_dropped = Greater (place, last_place)
    is_dropped_int = Cast <to = 7> (is_dropped)
    other_slot = Add (place, is_dropped_int)
    slot = Where (is_best, best_slot, other_slot)

    # the tokens that fill the first `count` slots, as indices into [tokens, merged token]
    one_more = Constant <value = int64[2] {0, 1}> ()
    slots_shape = Add (body_shape, one_more)
    merged_everywhere = Expand (length, slots_shape)
    before = Constant <value = int64[4] {0, 1, 0, 0}> ()
    class_first = Pad (merged_everywhere, before)
    origin = ScatterElements <axis = 1> (class_first, slot, positions)
    pruned_count = Add (keep, two)
    count = Where (pruned, pruned_count, length)
    # the sum of one number: TensorRT evaluates CumSum on the device alone, so it does not ask for `temperature`, a
    # float, on the host to size the slice
    count_dim = Reshape (count, at_1)
    output_length = CumSum (count_dim, zero)
    chosen = Slice (origin, at_0, output_length, at_1)

    # merged token: importance-weighted mean of the dropped ones
    dropped_importance = Where (is_dropped, importance, cold)
    dropped_sum = ReduceSum <keepdims = 1> (dropped_importance, at_1)
    dropped_total = Add (dropped_sum, epsilon)
    merge_weight = Div (dropped_importance, dropped_total)
    token_weight = Pad (merge_weight, before)
    merge_row = Unsqueeze (token_weight, at_1)
    tokens_float = Cast <to = 1> (tokens)
    merged_float = MatMul (merge_row, tokens_float)
    merged = CastLike (merged_float, tokens)
    extended = Concat <axis = 1> (tokens, merged)
    chosen_column = Unsqueeze (chosen, at_2)
    compacted = GatherND <batch_dims = 1> (extended, chosen_column)

    # its mask is that of the best of them
    merged_place = Add (last_place, one)
    is_swallowed_best = Equal (place, merged_place)
    body_mask = Slice (key_mask, at_1, rest, at_1)
    swallowed_mask = Where (is_swallowed_best, body_mask, cold)
    merged_mask = ReduceSum <keepdims = 1> (swallowed_mask, at_1)
    extended_mask = Concat <axis = 1> (key_mask, merged_mask)
    compacted_mask = GatherElements <axis = 1> (extended_mask, chosen)

    layer = Constant <value_int: int = @layer> ()
    layer_number = Add (layer, one)
    merged_id_wide = Neg (layer_number)
    merged_id = Cast <to = 6> (merged_id_wide)
    column_shape = Shape (dropped_total)
    merged_ids = Expand (merged_id, column_shape)
    extended_ids = Concat <axis = 1> (source_ids, merged_ids)
    compacted_ids = GatherElements <axis = 1> (extended_ids, chosen)
"""

_MARGIN = """
    # a margin below it, in units of the mean |s|
    importance_size = Abs (importance)
    mean_size = ReduceMean <keepdims = 1> (importance_size, at_1)
    keep_margin = Constant <value_float: float = @keep_margin> ()
    margin = Mul (mean_size, keep_margin)
    threshold = Sub (learned_threshold, margin)
"""


def _body(spec: OpSpec, keep_margin: bool) -> str:
    """Without a margin there is nothing of it: every node costs time in every layer."""
    body, margin = _BODIES[spec]
    learned, margin = ("learned_threshold", margin) if keep_margin else ("threshold", "")
    return body.replace("{LEARNED}", learned).replace("{MARGIN}", margin)


def _function(spec: OpSpec, body: str, keep_margin: bool) -> FunctionProto:
    inputs, outputs = (", ".join(entry.name for entry in part) for part in (spec.inputs, spec.outputs))
    attributes = [entry.name for entry in spec.attributes if keep_margin or entry.name != KEEP_MARGIN]
    if spec is ALIGNED_ATTENTION:
        attributes.append(BIASED)
    function = onnx.parser.parse_function(
        f'<opset_import: ["" : {OPSET}], domain: "{DOMAIN}">\n'
        f"{spec.onnx_name} <{', '.join(attributes)}> ({inputs}) => ({outputs}) "
        f"{{{body.replace('{EPSILON}', f'{{{EPSILON}}}')}}}"
    )
    for node in function.node:
        # ONNX Runtime 1.18 to 1.20 give what they fuse the name of one of its nodes, and names have to differ.
        node.name = node.output[0]
    for branch in (attribute.g for node in function.node for attribute in node.attribute if attribute.HasField("g")):
        for dimension in branch.output[0].type.tensor_type.shape.dim:
            dimension.ClearField("dim_param")  # the parser wants names, which would be one size in all layers
    return function


# Body of each op, and what a margin adds to it.
_BODIES = {
    ALIGNED_ATTENTION: (_ALIGNED_ATTENTION_BODY, ""),
    TOKEN_COMPACT: (_TOKEN_COMPACT_BODY, _MARGIN),
    PACKED_ATTENTION: (PACKED_ATTENTION_BODY, ""),
    PACKED_COMPACT: (PACKED_COMPACT_BODY, PACKED_MARGIN),
    VARLEN_ATTENTION: (VARLEN_ATTENTION_BODY, ""),
}


def functions(*, keep_margin: bool = False, ops: Iterable[OpSpec] = OPS) -> list[FunctionProto]:
    """The function bodies of custom ops, in their order.

    Args:
        keep_margin: for nodes that have this attribute; all of a file have it, or none.
    """
    return [_function(spec, _body(spec, keep_margin), keep_margin) for spec in ops]


def op_schema(spec: OpSpec) -> OpSchema:
    """The ONNX operator schema of a custom op, for `torch.onnx` to write nodes of it."""
    types = {FLOAT: FLOAT, **{name: f"tensor({_onnx_type(name)})" for name in ("float32", "int32", "int64")}}

    def parameter(name: str, dtype: str) -> OpSchema.FormalParameter:
        return OpSchema.FormalParameter(name, types[dtype])

    return OpSchema(
        spec.onnx_name,
        DOMAIN,
        VERSION,
        inputs=[parameter(entry.name, entry.dtype) for entry in spec.inputs],
        outputs=[parameter(entry.name, entry.dtype) for entry in spec.outputs],
        type_constraints=[(FLOAT, [f"tensor({t})" for t in ("float", "float16", "bfloat16")], "engine data type")],
        attributes=[
            OpSchema.Attribute(entry.name, _attribute_type(entry.dtype), entry.doc, required=entry.default is None)
            for entry in spec.attributes
        ],
    )


def _attribute_type(dtype: str) -> OpSchema.AttrType:
    return OpSchema.AttrType.INT if dtype == INT32 else OpSchema.AttrType.FLOAT


def _onnx_type(name: str) -> str:
    return "float" if name == "float32" else name
