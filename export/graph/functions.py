"""The two custom ops in standard ONNX: their executable specification, and what ONNX Runtime runs.

The bodies follow the reference in `madtp/ops/reference.py`. They use only ops that TensorRT imports too, and get the
data-dependent size from a Slice whose end is computed; so a plan without plugins is built from the same text.
"""

import onnx.parser
from onnx import FunctionProto
from onnx.defs import OpSchema

from madtp.ops.reference import EPSILON
from madtp.ops.spec import (
    ALIGNED_ATTENTION,
    DOMAIN,
    FLOAT,
    INT32,
    KEEP_MARGIN,
    OPS,
    TOKEN_COMPACT,
    VERSION,
    OpSpec,
)

OPSET = 20
OLDEST_ONNXRUNTIME = "1.17"  # that has it; 1.17.3 to 1.20.1 and 1.32.0 were tried, 1.16.3 refuses the file

_ALIGNED_ATTENTION_BODY = """
    heads = Constant <value_int: int = @heads> ()
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    at_0 = Constant <value = int64[1] {0}> ()
    at_1 = Constant <value = int64[1] {1}> ()
    at_2 = Constant <value = int64[1] {2}> ()
    at_last = Constant <value = int64[1] {-1}> ()
    at_1_2 = Constant <value = int64[2] {1, 2}> ()
    rest = Constant <value = int64[1] {9223372036854775807}> ()

    # query [B, H, L, D], key [B, H, D, L], value [B, H, L, D]
    heads_dim = Reshape (heads, at_1)
    copy = Constant <value = int64[2] {0, 0}> ()
    by_head = Concat <axis = 0> (copy, heads_dim, at_last)
    query_rows, key_rows, value_rows = Split <axis = -1, num_outputs = 3> (qkv)
    query_heads = Reshape (query_rows, by_head)
    key_heads = Reshape (key_rows, by_head)
    value_heads = Reshape (value_rows, by_head)
    query = Transpose <perm = [0, 2, 1, 3]> (query_heads)
    key = Transpose <perm = [0, 2, 3, 1]> (key_heads)
    value = Transpose <perm = [0, 2, 1, 3]> (value_heads)

    head_size = Shape <start = 3> (query)
    head_size_float = Cast <to = 1> (head_size)
    root = Sqrt (head_size_float)
    scale = CastLike (root, qkv)
    scaled = Div (query, scale)
    raw_scores = MatMul (scaled, key)

    # [B, 1, L, L]: the key mask, and minus infinity on later keys where causal
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
    key_bias = Unsqueeze (key_mask, at_1_2)
    bias_float = Add (key_bias, causal_bias)
    bias = CastLike (bias_float, qkv)
    scores = Add (raw_scores, bias)

    scores_float = Cast <to = 1> (scores)
    probabilities = Softmax <axis = -1> (scores_float)
    attention = CastLike (probabilities, qkv)
    head_context = MatMul (attention, value)
    context_rows = Transpose <perm = [0, 2, 1, 3]> (head_context)
    rows = Concat <axis = 0> (copy, at_last)
    context = Reshape (context_rows, rows)

    # sum over non-class queries of the maximum over heads
    head_maximum = ReduceMax <keepdims = 0> (probabilities, at_1)
    non_class_queries = Slice (head_maximum, at_1, rest, at_1)
    column_sum = ReduceSum <keepdims = 0> (non_class_queries, at_1)
    column_score = Slice (column_sum, at_1, rest, at_1)

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
    at_last = Constant <value = int64[1] {-1}> ()
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
    magnitude = Abs (importance)
    magnitude_sum = ReduceSum <keepdims = 1> (magnitude, at_1)
    threshold_magnitude = Abs (threshold)
    total_magnitude = Add (magnitude_sum, threshold_magnitude)
    not_a_number = IsNaN (total_magnitude)
    infinite = IsInf (total_magnitude)
    not_finite = Or (not_a_number, infinite)
    sample_count = Where (not_finite, body_length, above_count)
    largest_count = ReduceMax <keepdims = 0> (sample_count)
    keep = Where (prunes, largest_count, body_length)
    dropped = Sub (body_length, keep)
    enough = GreaterOrEqual (keep, min_keep)
    worthwhile = GreaterOrEqual (dropped, two)
    pruned = And (enough, worthwhile)

    # rank: 0 for the most important token, of equal ones the lower index first (TopK's tie rule)
    batch_dim = Shape <end = 1> (importance)
    body_shape = Shape (importance)
    body_index = Range (zero, body_length, one)
    body_indices = Expand (body_index, body_shape)
    sorted_importance, order = TopK <axis = 1, largest = 1, sorted = 1> (importance, body_dim)
    rank = ScatterElements <axis = 1> (body_indices, order, body_indices)

    # slot of every token in [class, K - 1 best by position, K-th best, merged, dropped ones]
    last_rank = Sub (keep, one)
    is_best = Less (rank, last_rank)
    is_last = Equal (rank, last_rank)
    is_best_int = Cast <to = 7> (is_best)
    best_slot = CumSum (is_best_int, one)
    dropped_slot = Add (rank, two)
    best_or_dropped = Where (is_best, best_slot, dropped_slot)
    pruned_slot = Where (is_last, keep, best_or_dropped)
    unpruned_slot = Add (body_indices, one)
    body_slot = Where (pruned, pruned_slot, unpruned_slot)
    length = Add (body_length, one)
    keep_and_one = Add (keep, one)
    merged_slot = Where (pruned, keep_and_one, length)
    column_shape = Concat <axis = 0> (batch_dim, at_1)
    class_slots = Expand (zero, column_shape)
    merged_slots = Expand (merged_slot, column_shape)
    slots = Concat <axis = 1> (class_slots, body_slot, merged_slots)

    # the tokens that fill the first `count` slots, as indices into [tokens, merged token]
    extended_length = Add (length, one)
    extended_index = Range (zero, extended_length, one)
    slots_shape = Shape (slots)
    extended_indices = Expand (extended_index, slots_shape)
    origin = ScatterElements <axis = 1> (extended_indices, slots, extended_indices)
    pruned_count = Add (keep, two)
    count = Where (pruned, pruned_count, length)
    # the sum of one number: TensorRT evaluates CumSum on the device alone, so it does not ask for `temperature`, a
    # float, on the host to size the slice
    count_dim = Reshape (count, at_1)
    output_length = CumSum (count_dim, zero)
    chosen = Slice (origin, at_0, output_length, at_1)

    # merged token: importance-weighted mean of the dropped ones; its mask is that of the best of them
    is_dropped = GreaterOrEqual (rank, keep)
    is_dropped_float = Cast <to = 1> (is_dropped)
    dropped_importance = Mul (importance, is_dropped_float)
    dropped_sum = ReduceSum <keepdims = 1> (dropped_importance, at_1)
    dropped_total = Add (dropped_sum, epsilon)
    merge_weight = Div (dropped_importance, dropped_total)
    merge_row = Unsqueeze (merge_weight, at_1)
    body = Slice (tokens, at_1, rest, at_1)
    body_float = Cast <to = 1> (body)
    merged_float = MatMul (merge_row, body_float)
    merged = CastLike (merged_float, tokens)
    extended = Concat <axis = 1> (tokens, merged)
    body_mask = Slice (key_mask, at_1, rest, at_1)
    is_swallowed_best = Equal (rank, keep)
    is_swallowed_best_float = Cast <to = 1> (is_swallowed_best)
    swallowed_mask = Mul (body_mask, is_swallowed_best_float)
    merged_mask = ReduceSum <keepdims = 1> (swallowed_mask, at_1)
    extended_mask = Concat <axis = 1> (key_mask, merged_mask)
    layer = Constant <value_int: int = @layer> ()
    layer_number = Add (layer, one)
    merged_id_wide = Neg (layer_number)
    merged_id = Cast <to = 6> (merged_id_wide)
    merged_ids = Expand (merged_id, column_shape)
    extended_ids = Concat <axis = 1> (source_ids, merged_ids)

    # gather: tokens as rows of one matrix, which every runtime does fast
    batch = Squeeze (batch_dim)
    batch_index = Range (zero, batch, one)
    batch_column = Unsqueeze (batch_index, at_1)
    first_row = Mul (batch_column, extended_length)
    chosen_row = Add (chosen, first_row)
    width_dim = Shape <start = 2> (tokens)
    matrix_shape = Concat <axis = 0> (at_last, width_dim)
    matrix = Reshape (extended, matrix_shape)
    compacted = Gather <axis = 0> (matrix, chosen_row)
    compacted_mask = GatherElements <axis = 1> (extended_mask, chosen)
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


def _token_compact_body(keep_margin: bool) -> str:
    """Without a margin there is nothing of it: every node costs time in every layer."""
    learned, margin = ("learned_threshold", _MARGIN) if keep_margin else ("threshold", "")
    return _TOKEN_COMPACT_BODY.replace("{LEARNED}", learned).replace("{MARGIN}", margin)


def _function(spec: OpSpec, body: str, keep_margin: bool) -> FunctionProto:
    inputs, outputs = (", ".join(entry.name for entry in part) for part in (spec.inputs, spec.outputs))
    attributes = ", ".join(entry.name for entry in spec.attributes if keep_margin or entry.name != KEEP_MARGIN)
    return onnx.parser.parse_function(
        f'<opset_import: ["" : {OPSET}], domain: "{DOMAIN}">\n'
        f"{spec.onnx_name} <{attributes}> ({inputs}) => ({outputs}) {{{body.replace('{EPSILON}', f'{{{EPSILON}}}')}}}"
    )


def functions(*, keep_margin: bool = False) -> list[FunctionProto]:
    """The function bodies of all custom ops, in the order of `madtp.ops.spec.OPS`.

    Args:
        keep_margin: for nodes that have this attribute; all of a file have it, or none.
    """
    bodies = {ALIGNED_ATTENTION: _ALIGNED_ATTENTION_BODY, TOKEN_COMPACT: _token_compact_body(keep_margin)}
    return [_function(spec, bodies[spec], keep_margin) for spec in OPS]


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
