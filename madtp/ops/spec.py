"""The one definition of the custom ops: names, inputs, outputs, attributes, dtypes and dimensions.

The torch op's schema, the ONNX operator schema and function signature, and the fields of the TensorRT creators are
generated from these tables or checked against them in `tests/export/graph/test_functions.py` and
`tests/plugins/test_plugins.py`.

Dimension symbols: B batch, L tokens with the class token at index 0, N = L - 1 tokens without it, C width,
T alignment tokens (rows of `space_dict`), n tokens after compaction. In the packed layout: S sequences of Q requests, R
rows that hold their tokens end to end, sequence s from row `cu_seqlens[s]` to the one before `cu_seqlens[s + 1]`. What
the ops compute: `docs/semantics.md`.
"""

from dataclasses import dataclass

DOMAIN = "madtp"
VERSION = 1
KEEP_MARGIN = "keep_margin"  # attribute of TokenCompact
CAPACITY = "capacity"  # attribute of PackedTokenCompact: how many rows its result has, or one of these
EXACT = 0  # as many as the sequences need, which depends on data
INCOMING = -1  # as many as came in: always enough, and no size depends on data
# The plugin of a node with a margin has a version of its own: TensorRT passes no attribute that a plugin does not name,
# so a library from before margins would ignore one, but it lacks the version. It has a namespace of its own because
# TensorRT for RTX 1.7 cannot load a library again that has two versions of a plugin in one.
MARGIN_VERSION = 2
MARGIN_NAMESPACE = f"{DOMAIN}.margin"

FLOAT = "T"  # the engine's data type: float32, float16 or bfloat16
FLOAT32 = "float32"
INT32 = "int32"
INT64 = "int64"

_TORCH_TYPES = {INT32: "int", FLOAT32: "float"}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. `dtype` is FLOAT (whatever the engine computes in) or a fixed type."""

    name: str
    dtype: str
    dims: tuple[str, ...]
    doc: str


@dataclass(frozen=True)
class AttributeSpec:
    """One attribute: INT32 or FLOAT32 (TensorRT takes float, int32 and string attributes only).

    One with a `default` is the last, and a node may lack it.
    """

    name: str
    doc: str
    dtype: str = INT32
    default: float | None = None

    @property
    def torch_schema(self) -> str:
        """The argument of the torch op."""
        default = "" if self.default is None else f"={self.default}"
        return f"{_TORCH_TYPES[self.dtype]} {self.name}{default}"


@dataclass(frozen=True)
class OpSpec:
    """A custom op. `onnx_name` is its name in ONNX and TensorRT, `torch_name` in `torch.ops.madtp`."""

    onnx_name: str
    torch_name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    attributes: tuple[AttributeSpec, ...]

    @property
    def torch_schema(self) -> str:
        """The schema of the torch op: tensors, then attributes; one tensor for each of `outputs`."""
        arguments = [f"Tensor {spec.name}" for spec in self.inputs] + [spec.torch_schema for spec in self.attributes]
        return f"({', '.join(arguments)}) -> ({', '.join('Tensor' for _ in self.outputs)})"


ALIGNED_ATTENTION = OpSpec(
    onnx_name="AlignedAttention",
    torch_name="aligned_attention",
    inputs=(
        TensorSpec("qkv", FLOAT, ("B", "L", "3C"), "query, key, value rows, each split into heads of C / heads"),
        TensorSpec("key_mask", FLOAT32, ("B", "L"), "added to the scores of that key: 0 to attend, -10000 not to"),
    ),
    outputs=(
        TensorSpec("context", FLOAT, ("B", "L", "C"), "softmax(q k^T / sqrt(D) + mask) v, heads side by side"),
        TensorSpec("column_score", FLOAT32, ("B", "N"), "sum over non-class queries of the maximum over heads"),
        TensorSpec("class_score", FLOAT32, ("B", "N"), "class query's row, heads weighted by the key's |context|"),
    ),
    attributes=(
        AttributeSpec("causal", "1: a query sees no key after itself"),
        AttributeSpec("heads", "number of attention heads"),
    ),
)

TOKEN_COMPACT = OpSpec(
    onnx_name="TokenCompact",
    torch_name="token_compact",
    inputs=(
        TensorSpec("tokens", FLOAT, ("B", "L", "C"), "what is compacted, class token first"),
        TensorSpec("key_mask", FLOAT32, ("B", "L"), "travels with its token"),
        TensorSpec("source_ids", INT32, ("B", "L"), "original position of each token; negative: a merged one"),
        TensorSpec("column_score", FLOAT32, ("B", "N"), "from AlignedAttention"),
        TensorSpec("class_score", FLOAT32, ("B", "N"), "from AlignedAttention"),
        TensorSpec("alignment", FLOAT32, ("B", "N", "T"), "tokens entering the layer times space_dict^T"),
        TensorSpec("temperature", FLOAT32, (), "tau; zero or less: nothing is pruned"),
        TensorSpec("min_keep", INT64, (), "fewer tokens to keep than this leave the layer unchanged"),
    ),
    outputs=(
        TensorSpec("compacted", FLOAT, ("B", "n", "C"), "class token, kept tokens, merged token"),
        TensorSpec("compacted_mask", FLOAT32, ("B", "n"), "key mask of `compacted`"),
        TensorSpec("compacted_ids", INT32, ("B", "n"), "source ids of `compacted`; the merged one is -(layer + 1)"),
        TensorSpec("count", INT64, (), "n, the same for the whole batch"),
    ),
    attributes=(
        AttributeSpec("layer", "index of the encoder layer, written into the merged token's id"),
        AttributeSpec(KEEP_MARGIN, "lowers the threshold, in units of the mean |importance|", FLOAT32, 0.0),
    ),
)

OPS = (ALIGNED_ATTENTION, TOKEN_COMPACT)

_CU_SEQLENS = TensorSpec("cu_seqlens", INT32, ("S+1",), "first row of every sequence, and the end of the last")

# Rows behind the last sequence, which a fixed capacity leaves, may hold anything, NaN included; nothing that they hold
# reaches a row of a sequence, and what an output holds there is not defined. A sequence may have no rows.
PACKED_ATTENTION = OpSpec(
    onnx_name="PackedAlignedAttention",
    torch_name="packed_aligned_attention",
    inputs=(
        TensorSpec("qkv", FLOAT, ("R", "3C"), "query, key, value rows, each split into heads of C / heads"),
        TensorSpec("key_mask", FLOAT32, ("R",), "added to the scores of that key: 0 to attend, -10000 not to"),
        _CU_SEQLENS,
    ),
    outputs=(
        TensorSpec("context", FLOAT, ("R", "C"), "of every sequence what AlignedAttention gives"),
        TensorSpec("column_score", FLOAT32, ("R",), "likewise; 0 for class tokens"),
        TensorSpec("class_score", FLOAT32, ("R",), "likewise; 0 for class tokens"),
    ),
    attributes=ALIGNED_ATTENTION.attributes,
)

PACKED_COMPACT = OpSpec(
    onnx_name="PackedTokenCompact",
    torch_name="packed_token_compact",
    inputs=(
        TensorSpec("tokens", FLOAT, ("R", "C"), "what is compacted, each sequence's class token first"),
        TensorSpec("key_mask", FLOAT32, ("R",), "travels with its token"),
        TensorSpec("source_ids", INT32, ("R",), "position of each token in its sequence; negative: a merged one"),
        TensorSpec("column_score", FLOAT32, ("R",), "from PackedAlignedAttention"),
        TensorSpec("class_score", FLOAT32, ("R",), "from PackedAlignedAttention"),
        TensorSpec(
            "alignment", FLOAT32, ("R", "T"), "tokens entering the layer times space_dict^T; not read at class rows"
        ),
        _CU_SEQLENS,
        TensorSpec("temperature", FLOAT32, (), "tau; zero or less: nothing is pruned"),
        TensorSpec("min_keep", INT64, ("Q",), "fewer tokens to keep than this leave the request's sequences unchanged"),
    ),
    outputs=(
        TensorSpec("compacted", FLOAT, ("n", "C"), "of every sequence: class token, kept tokens, merged token"),
        TensorSpec("compacted_mask", FLOAT32, ("n",), "key mask of `compacted`"),
        TensorSpec("compacted_ids", INT32, ("n",), "source ids of `compacted`; merged ones are -(layer + 1)"),
        TensorSpec("compacted_cu_seqlens", INT32, ("S+1",), "of `compacted`; at most n"),
        TensorSpec("count", INT64, (), "rows that all sequences need; more than a capacity is an overflow"),
    ),
    attributes=(
        AttributeSpec(CAPACITY, "n where it is fixed; 0: n is the rows that the sequences need; -1: n is R"),
        AttributeSpec("group", "sequences of a request: S / Q; sequence s is of request s % Q. They keep equally many"),
        AttributeSpec("layer", "index of the encoder layer, written into the merged tokens' ids"),
        AttributeSpec(KEEP_MARGIN, "lowers the threshold, in units of the mean |importance|", FLOAT32, 0.0),
    ),
)

VARLEN_ATTENTION = OpSpec(
    onnx_name="VarlenAttention",
    torch_name="varlen_attention",
    inputs=(
        TensorSpec("query", FLOAT, ("R", "C"), "rows of the sequences that look, split into heads of C / heads"),
        TensorSpec("key_value", FLOAT, ("M", "2C"), "key and value rows of what each of them looks at"),
        TensorSpec("cu_seqlens", INT32, ("S+1",), "of `query`"),
        TensorSpec("cu_keys", INT32, ("S+1",), "of `key_value`"),
    ),
    outputs=(TensorSpec("context", FLOAT, ("R", "C"), "softmax(q k^T / sqrt(D)) v; 0 where there are no keys"),),
    attributes=(AttributeSpec("heads", "number of attention heads"),),
)

PACKED_OPS = (PACKED_ATTENTION, PACKED_COMPACT, VARLEN_ATTENTION)
ALL_OPS = OPS + PACKED_OPS
PLUGINS = (  # name, version and namespace of each that a library has
    *((spec.onnx_name, str(VERSION), DOMAIN) for spec in ALL_OPS),
    (TOKEN_COMPACT.onnx_name, str(MARGIN_VERSION), MARGIN_NAMESPACE),
)
