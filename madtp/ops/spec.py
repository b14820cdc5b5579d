"""The one definition of the two custom ops: names, inputs, outputs, attributes, dtypes and dimensions.

The torch op's schema, the ONNX operator schema and function signature, and the fields of the TensorRT creators are
generated from these tables or checked against them in `tests/export/graph/test_functions.py` and
`tests/plugins/test_plugins.py`.

Dimension symbols: B batch, L tokens with the class token at index 0, N = L - 1 tokens without it, C width,
T alignment tokens (rows of `space_dict`), n tokens after compaction. What the ops compute: `docs/semantics.md`.
"""

from dataclasses import dataclass

DOMAIN = "madtp"
VERSION = 1
KEEP_MARGIN = "keep_margin"  # attribute of TokenCompact
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
PLUGINS = (  # name, version and namespace of each that a library has
    *((spec.onnx_name, str(VERSION), DOMAIN) for spec in OPS),
    (TOKEN_COMPACT.onnx_name, str(MARGIN_VERSION), MARGIN_NAMESPACE),
)
