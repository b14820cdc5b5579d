"""The custom ops of the packed layout in standard ONNX: their executable specification.

The bodies follow the reference in `madtp/ops/packed.py`. They fill every sequence up to the longest, compute as
`export.graph.functions` does, and take the rows that count; what fills a sequence is its own class token, so nothing of
a sequence, NaN neither, reaches another.
"""

_CONSTANTS = """
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    at_0 = Constant <value = int64[1] {0}> ()
    at_1 = Constant <value = int64[1] {1}> ()
    at_2 = Constant <value = int64[1] {2}> ()
    at_last = Constant <value = int64[1] {-1}> ()
    rest = Constant <value = int64[1] {9223372036854775807}> ()
    nothing = Constant <value = float {0.0}> ()
    minus_infinity = Constant <value = float {-inf}> ()
    epsilon = Constant <value = float {EPSILON}> ()
"""

# Of sequences whose tokens are rows of `{ROWS}`: starts, ends and lengths [S]; how many tokens the longest has; and for
# every place [S, L] whether the sequence has it, and its row (where it has not, that of its class token).
_PADDED = """
    {P}cu = Cast <to = 7> ({CU})
    {P}starts = Slice ({P}cu, at_0, at_last, at_0)
    {P}ends = Slice ({P}cu, at_1, rest, at_0)
    {P}lengths = Sub ({P}ends, {P}starts)
    {P}longest = ReduceMax <keepdims = 0> ({P}lengths)
    {P}place = Range (zero, {P}longest, one)
    {P}lengths_column = Unsqueeze ({P}lengths, at_1)
    {P}valid = Less ({P}place, {P}lengths_column)
    {P}valid_place = Where ({P}valid, {P}place, zero)
    {P}starts_column = Unsqueeze ({P}starts, at_1)
    {P}any_row = Add ({P}starts_column, {P}valid_place)
    {P}rows_dim = Shape <end = 1> ({ROWS})
    {P}rows = Squeeze ({P}rows_dim)
    {P}last_row = Sub ({P}rows, one)
    {P}row = Min ({P}any_row, {P}last_row)
"""

# For every one of `{COUNT}` rows: its sequence and its place in it, in tables of {WIDE} places a sequence. Rows behind
# the last sequence get places of the last.
_SEQUENCE_OF_ROW = """
    {P}row_number = Range (zero, {COUNT}, one)
    {P}row_column = Unsqueeze ({P}row_number, at_1)
    {P}is_behind = GreaterOrEqual ({P}row_column, {ENDS})
    {P}is_behind_int = Cast <to = 7> ({P}is_behind)
    {P}ends_before = ReduceSum <keepdims = 0> ({P}is_behind_int, at_1)
    {P}sequences_dim = Shape ({ENDS})
    {P}sequences = Squeeze ({P}sequences_dim)
    {P}last_sequence = Sub ({P}sequences, one)
    {P}sequence = Min ({P}ends_before, {P}last_sequence)
    {P}row_start = Gather <axis = 0> ({STARTS}, {P}sequence)
    {P}far_place = Sub ({P}row_number, {P}row_start)
    {P}last_place = Sub ({WIDE}, one)
    {P}row_place = Min ({P}far_place, {P}last_place)
    {P}table_row = Mul ({P}sequence, {WIDE})
    {P}table_place = Add ({P}table_row, {P}row_place)
"""


def _padded(prefix: str, cu_seqlens: str, rows: str) -> str:
    return _PADDED.replace("{P}", prefix).replace("{CU}", cu_seqlens).replace("{ROWS}", rows)


def _sequence_of_row(prefix: str, count: str, starts: str, ends: str, wide: str) -> str:
    text = _SEQUENCE_OF_ROW.replace("{P}", prefix).replace("{COUNT}", count)
    return text.replace("{STARTS}", starts).replace("{ENDS}", ends).replace("{WIDE}", wide)


_HEADS = """
    heads = Constant <value_int: int = @heads> ()
    heads_dim = Reshape (heads, at_1)
    copy = Constant <value = int64[2] {0, 0}> ()
    context_shape = Constant <value = int64[3] {0, 0, -1}> ()
"""

PACKED_ATTENTION_BODY = (
    _CONSTANTS
    + _padded("q_", "cu_seqlens", "qkv")
    + _HEADS
    + """
    padded = Gather <axis = 0> (qkv, q_row)
    three = Constant <value = int64[1] {3}> ()
    two = Constant <value = int64 {2}> ()
    by_head = Concat <axis = 0> (copy, three, heads_dim, at_last)
    qkv_rows = Reshape (padded, by_head)
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

    # keys that are not there, and later ones where causal
    padded_mask = Gather <axis = 0> (key_mask, q_row)
    bias_row = Where (q_valid, padded_mask, minus_infinity)
    at_1_2 = Constant <value = int64[2] {1, 2}> ()
    key_bias = Unsqueeze (bias_row, at_1_2)
    query_place = Unsqueeze (q_place, at_1)
    later = Greater (q_place, query_place)
    causal_int = Constant <value_int: int = @causal> ()
    causal = Cast <to = 9> (causal_int)
    hidden = And (later, causal)
    causal_bias = Where (hidden, minus_infinity, nothing)
    bias_float = Add (key_bias, causal_bias)
    bias = CastLike (bias_float, qkv)
    scores = Add (raw_scores, bias)
    scores_float = Cast <to = 1> (scores)
    probabilities = Softmax <axis = -1> (scores_float)
    attention = CastLike (probabilities, qkv)
    head_context = MatMul (attention, value)

    # sum over queries that are there, but the class token's, of the maximum over heads
    head_maximum = ReduceMax <keepdims = 0> (probabilities, at_1)
    is_body_place = Greater (q_place, zero)
    is_body = And (q_valid, is_body_place)
    is_query = Unsqueeze (is_body, at_2)
    of_queries = Where (is_query, head_maximum, nothing)
    column_sum = ReduceSum <keepdims = 0> (of_queries, at_1)
    column_table = Where (is_body, column_sum, nothing)

    # the class query's probabilities, heads weighted by the norm of their context
    class_row = Gather <axis = 2> (probabilities, zero)
    context_float = Cast <to = 1> (head_context)
    norm = ReduceL2 <keepdims = 0> (context_float, at_last)
    norm_sum = ReduceSum <keepdims = 1> (norm, at_1)
    norm_total = Add (norm_sum, epsilon)
    head_weight = Div (norm, norm_total)
    weighted_row = Mul (class_row, head_weight)
    class_sum = ReduceSum <keepdims = 0> (weighted_row, at_1)
    class_table = Where (is_body, class_sum, nothing)
"""
    + _sequence_of_row("r_", "q_rows", "q_starts", "q_ends", "q_longest")
    + """
    context_rows = Transpose <perm = [0, 2, 1, 3]> (head_context)
    wide_context = Reshape (context_rows, context_shape)
    width = Shape <start = 2> (wide_context)
    flat_shape = Concat <axis = 0> (at_last, width)
    flat_context = Reshape (wide_context, flat_shape)
    context = Gather <axis = 0> (flat_context, r_table_place)
    column_flat = Reshape (column_table, at_last)
    column_score = Gather <axis = 0> (column_flat, r_table_place)
    class_flat = Reshape (class_table, at_last)
    class_score = Gather <axis = 0> (class_flat, r_table_place)
"""
)

PACKED_COMPACT_BODY = (
    _CONSTANTS
    + _padded("t_", "cu_seqlens", "tokens")
    + """
    two = Constant <value = int64 {2}> ()
    is_body_place = Greater (t_place, zero)
    is_body = And (t_valid, is_body_place)
    body_int = Cast <to = 7> (is_body)
    body_length = ReduceSum <keepdims = 0> (body_int, at_1)
    body_length_column = Unsqueeze (body_length, at_1)

    # importance s [S, L]; 0 for class tokens and where there is no token
    padded_column = Gather <axis = 0> (column_score, t_row)
    body_column = Where (is_body, padded_column, nothing)
    column_sum = ReduceSum <keepdims = 1> (body_column, at_1)
    column_total = Add (column_sum, epsilon)
    column = Div (body_column, column_total)
    padded_alignment = Gather <axis = 0> (alignment, t_row)
    best_of_row = ReduceMax <keepdims = 0> (padded_alignment, at_2)
    best_alignment = Where (is_body, best_of_row, nothing)
    alignment_sum = ReduceSum <keepdims = 1> (best_alignment, at_1)
    alignment_total = Add (alignment_sum, epsilon)
    aligned = Div (best_alignment, alignment_total)
    padded_class = Gather <axis = 0> (class_score, t_row)
    body_class = Where (is_body, padded_class, nothing)
    two_scores = Add (column, aligned)
    three_scores = Add (two_scores, body_class)
    three = Constant <value = float {3.0}> ()
    importance = Div (three_scores, three)

    # threshold theta [S, 1]; a temperature of zero or less must not divide
    warm = Constant <value = float {1.0}> ()
    prunes = Greater (temperature, nothing)
    safe_temperature = Where (prunes, temperature, warm)
    sharpened = Div (padded_alignment, safe_temperature)
    is_body_row = Unsqueeze (is_body, at_2)
    body_sharpened = Where (is_body_row, sharpened, minus_infinity)
    weights = Softmax <axis = 1> (body_sharpened)
    importance_row = Unsqueeze (importance, at_1)
    weighted = MatMul (importance_row, weights)
    {LEARNED} = ReduceMin <keepdims = 0> (weighted, at_2)
    magnitude = ReduceL1 <keepdims = 1> (importance, at_1)
{MARGIN}
    # K [S]: the largest count of the request; a sequence whose scores are not finite asks for all its tokens
    is_above = Greater (importance, threshold)
    above = And (is_above, is_body)
    above_int = Cast <to = 7> (above)
    above_count = ReduceSum <keepdims = 1> (above_int, at_1)
    threshold_magnitude = Abs (threshold)
    total_magnitude = Add (magnitude, threshold_magnitude)
    largest_float = Constant <value = float {3.4028234663852886e38}> ()
    finite = LessOrEqual (total_magnitude, largest_float)
    finite_count = Where (finite, above_count, body_length_column)
    sequence_count = Where (prunes, finite_count, body_length_column)
    group = Constant <value_int: int = @group> ()
    group_dim = Reshape (group, at_1)
    by_request = Concat <axis = 0> (group_dim, at_last)
    request_counts = Reshape (sequence_count, by_request)
    request_count = ReduceMax <keepdims = 1> (request_counts, at_0)
    request_shape = Shape (request_counts)
    all_counts = Expand (request_count, request_shape)
    keep = Reshape (all_counts, at_last)
    all_least = Expand (min_keep, request_shape)
    least = Reshape (all_least, at_last)
    dropped = Sub (body_length, keep)
    enough = GreaterOrEqual (keep, least)
    worthwhile = GreaterOrEqual (dropped, two)
    pruned = And (enough, worthwhile)

    # place 1 for the most important token, of equal ones the lower index first (TopK's tie rule)
    ranked = Where (is_body, importance, minus_infinity)
    table_shape = Shape (ranked)
    t_longest_and_one = Add (t_longest, one)
    from_one = Range (one, t_longest_and_one, one)
    numbers = Expand (from_one, table_shape)
    longest_dim = Reshape (t_longest, at_1)
    sorted_importance, order = TopK <axis = 1, largest = 1, sorted = 1> (ranked, longest_dim)
    rank = ScatterElements <axis = 1> (numbers, order, numbers)

    # slot of every token in [class, K - 1 best by position, K-th best, merged, dropped ones]; where nothing is pruned,
    # no token is the last or behind it. Places without a token come behind all others.
    last_rank = Where (pruned, keep, t_longest_and_one)
    last_rank_column = Unsqueeze (last_rank, at_1)
    is_before = Less (rank, last_rank_column)
    is_best = And (is_before, is_body)
    is_best_int = Cast <to = 7> (is_best)
    best_slot = CumSum (is_best_int, one)
    is_behind_last = Greater (rank, last_rank_column)
    is_dropped = And (is_behind_last, is_body)
    is_behind_int = Cast <to = 7> (is_behind_last)
    other_slot = Add (rank, is_behind_int)
    body_slot = Where (is_best, best_slot, other_slot)
    is_class = Equal (t_place, zero)
    slot = Where (is_class, zero, body_slot)

    # the tokens that fill the slots, as places; `longest` is the merged token
    two_more = Constant <value = int64[2] {0, 2}> ()
    slots_shape = Add (table_shape, two_more)
    merged_everywhere = Expand (t_longest, slots_shape)
    places = Expand (t_place, table_shape)
    origin = ScatterElements <axis = 1> (merged_everywhere, slot, places)

    # rows of the result
    kept_and_merged = Add (keep, two)
    new_lengths = Where (pruned, kept_and_merged, t_lengths)
    new_ends_wide = CumSum (new_lengths, zero)
    new_starts = Sub (new_ends_wide, new_lengths)
    count = ReduceMax <keepdims = 0> (new_ends_wide)
    capacity = Constant <value_int: int = @capacity> ()
    is_fixed = Greater (capacity, zero)
    is_needed = Equal (capacity, zero)
    any_rows = Where (is_needed, count, t_rows)
    result_rows = Where (is_fixed, capacity, any_rows)
    first_cu = Constant <value = int64[1] {0}> ()
    new_cu = Concat <axis = 0> (first_cu, new_ends_wide)
    fitting_cu = Min (new_cu, result_rows)
    compacted_cu_seqlens = Cast <to = 6> (fitting_cu)
    slots = Add (t_longest, two)
"""
    + _sequence_of_row("n_", "result_rows", "new_starts", "new_ends_wide", "slots")
    + """
    origin_flat = Reshape (origin, at_last)
    chosen = Gather <axis = 0> (origin_flat, n_table_place)
    is_merged = Equal (chosen, t_longest)
    sequence_start = Gather <axis = 0> (t_starts, n_sequence)
    token_row = Add (sequence_start, chosen)
    some_row = Min (token_row, t_last_row)
    merged_row = Add (t_rows, n_sequence)
    chosen_row = Where (is_merged, merged_row, some_row)

    # merged token: importance-weighted mean of the dropped ones
    dropped_importance = Where (is_dropped, importance, nothing)
    dropped_sum = ReduceSum <keepdims = 1> (dropped_importance, at_1)
    dropped_total = Add (dropped_sum, epsilon)
    merge_weight = Div (dropped_importance, dropped_total)
    merge_row = Unsqueeze (merge_weight, at_1)
    padded_tokens = Gather <axis = 0> (tokens, t_row)
    tokens_float = Cast <to = 1> (padded_tokens)
    merged_float = MatMul (merge_row, tokens_float)
    merged_wide = Squeeze (merged_float, at_1)
    merged = CastLike (merged_wide, tokens)
    extended = Concat <axis = 0> (tokens, merged)
    compacted = Gather <axis = 0> (extended, chosen_row)

    # its mask is that of the best of them
    merged_rank = Add (last_rank_column, one)
    is_next = Equal (rank, merged_rank)
    is_swallowed_best = And (is_next, is_body)
    padded_mask = Gather <axis = 0> (key_mask, t_row)
    swallowed_mask = Where (is_swallowed_best, padded_mask, nothing)
    merged_mask = ReduceSum <keepdims = 0> (swallowed_mask, at_1)
    extended_mask = Concat <axis = 0> (key_mask, merged_mask)
    compacted_mask = Gather <axis = 0> (extended_mask, chosen_row)

    layer = Constant <value_int: int = @layer> ()
    layer_number = Add (layer, one)
    merged_id_wide = Neg (layer_number)
    merged_id = Cast <to = 6> (merged_id_wide)
    sequences_shape = Shape (t_lengths)
    merged_ids = Expand (merged_id, sequences_shape)
    extended_ids = Concat <axis = 0> (source_ids, merged_ids)
    compacted_ids = Gather <axis = 0> (extended_ids, chosen_row)
"""
)

PACKED_MARGIN = """
    # a margin below it, in units of the mean |s|
    body_length_float = Cast <to = 1> (body_length_column)
    some_length = Max (body_length_float, warm)
    mean_size = Div (magnitude, some_length)
    keep_margin = Constant <value_float: float = @keep_margin> ()
    margin = Mul (mean_size, keep_margin)
    threshold = Sub (learned_threshold, margin)
"""

VARLEN_ATTENTION_BODY = (
    _CONSTANTS
    + _padded("q_", "cu_seqlens", "query")
    + _padded("k_", "cu_keys", "key_value")
    + _HEADS
    + """
    padded_query = Gather <axis = 0> (query, q_row)
    query_shape = Concat <axis = 0> (copy, heads_dim, at_last)
    query_rows = Reshape (padded_query, query_shape)
    query_heads = Transpose <perm = [0, 2, 1, 3]> (query_rows)
    padded_keys = Gather <axis = 0> (key_value, k_row)
    pair = Constant <value = int64[1] {2}> ()
    key_shape = Concat <axis = 0> (copy, pair, heads_dim, at_last)
    key_rows = Reshape (padded_keys, key_shape)
    key_heads = Transpose <perm = [2, 0, 3, 1, 4]> (key_rows)
    key_wide = Gather <axis = 0> (key_heads, zero)
    value = Gather <axis = 0> (key_heads, one)
    key = Transpose <perm = [0, 1, 3, 2]> (key_wide)
    head_size = Shape <start = 3> (query_heads)
    head_size_float = Cast <to = 1> (head_size)
    root = Sqrt (head_size_float)
    scale = CastLike (root, query)
    scaled = Div (query_heads, scale)
    raw_scores = MatMul (scaled, key)
    raw_scores_float = Cast <to = 1> (raw_scores)
    at_1_2 = Constant <value = int64[2] {1, 2}> ()
    is_key = Unsqueeze (k_valid, at_1_2)
    scores = Where (is_key, raw_scores_float, minus_infinity)
    any_probabilities = Softmax <axis = -1> (scores)
    probabilities = Where (is_key, any_probabilities, nothing)
    attention = CastLike (probabilities, query)
    head_context = MatMul (attention, value)
"""
    + _sequence_of_row("r_", "q_rows", "q_starts", "q_ends", "q_longest")
    + """
    context_rows = Transpose <perm = [0, 2, 1, 3]> (head_context)
    wide_context = Reshape (context_rows, context_shape)
    width = Shape <start = 2> (wide_context)
    flat_shape = Concat <axis = 0> (at_last, width)
    flat_context = Reshape (wide_context, flat_shape)
    any_context = Gather <axis = 0> (flat_context, r_table_place)
    key_count = Gather <axis = 0> (k_lengths, r_sequence)
    has_keys = Greater (key_count, zero)
    has_keys_column = Unsqueeze (has_keys, at_1)
    none = CastLike (nothing, query)
    context = Where (has_keys_column, any_context, none)
"""
)
