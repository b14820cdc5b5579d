"""Graph pass: weights and activations in float16 or bfloat16, with float32 islands where rounding would decide.

The rules are those of the torch model in that type (`model.half()`), so that it is what an artifact is compared with:

- Every value is in the narrow type, weights included, unless a rule below says otherwise.
- The scores of AlignedAttention, and the masks, alignment and temperature that TokenCompact takes, are float32
  (`madtp/ops/spec.py`). What makes them is computed in float32 too, back to the product that they start with.
- A softmax outside of the custom ops, and what divides an embedding by its length, are computed in float32.
- What takes weights that are too large for float16 stays in float32.
- In fp16 LayerNormalization reads and writes the narrow type and has its statistics in float32 (`stash_type`), as ONNX
  does by itself.
- In bf16, whose 8 bits would round every sum of a residual with what a layer adds to it, the tokens are float32 from
  layer to layer: the sums, LayerNormalization, TokenCompact, and the weights that only these take. So are the first
  product of pixels (patches) and of words (query, key and value of the first layer), whose rounding every layer would
  inherit. All other products are narrow, and so is what lies between two of them.

Inputs and outputs stay float32, or have the narrow type too (`narrow_io`).
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from onnx_ir.passes.common import LiftConstantsToInitializersPass, ShapeInferencePass
from onnxscript import ir

from madtp.ops.spec import ALL_OPS, DOMAIN, FLOAT, PACKED_COMPACT, TOKEN_COMPACT

NARROW_TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
TEMPERATURE = "temperature"  # the input that is float32 always
PRODUCTS = ("MatMul", "Gemm", "Conv")
SOFTMAXES = ("Softmax", "LogSoftmax")
LENGTHS = ("ReduceL2", "LpNormalization")
TOKEN_READERS = ("LayerNormalization", TOKEN_COMPACT.onnx_name, PACKED_COMPACT.onnx_name)
PIXELS_RANK = 4
TYPELESS = ("Shape", "Size")  # take a value of any type
BFLOAT16_OPSET = 22  # the first in which a Conv may be in bfloat16
LARGEST_FLOAT16 = float(np.finfo(np.float16).max)

SOFTMAX = "softmax"
ALIGNMENT = "alignment of tokens"
MASK = "key masks"
EMBEDDING = "length of an embedding"
TOKENS = "tokens from layer to layer"
FIRST = "first product of pixels or words"
OVERFLOW = "weights overflow float16 (bf16 holds them): "
_SPECS = {spec.onnx_name: spec for spec in ALL_OPS}


def half_precision(model: ir.Model, precision: str, narrow_io: bool = False) -> dict[str, int]:
    """Turn a float32 graph with the custom ops as nodes into `precision`, "fp16" or "bf16".

    Returns:
        Why nodes stayed in float32 -> how many of them.
    """
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    ShapeInferencePass()(model)  # what folding made has no type
    reasons = _float32_nodes(model.graph, precision)
    _retype(model.graph, _Types(NARROW_TYPES[precision], reasons), narrow_io)
    if precision == "bf16":
        set_opset(model, BFLOAT16_OPSET)
    return dict(Counter(reasons.values()))


def set_opset(model: ir.Model, version: int) -> None:
    """Declare a graph and its functions to be of another opset, which has the same ops for other types."""
    for opsets in (model.opset_imports, *(function.opset_imports for function in model.functions.values())):
        opsets[""] = version


def _float32_nodes(graph: ir.Graph, precision: str) -> dict[ir.Node, str]:
    """The nodes outside of the custom ops that compute in float32, and why."""
    reasons: dict[ir.Node, str] = {}
    for node in graph:
        assert not any(isinstance(attr.value, ir.Graph) for attr in node.attributes.values()), "a subgraph"
        if node.op_type in SOFTMAXES:
            reasons[node] = SOFTMAX
        elif node.op_type in LENGTHS:
            reasons |= dict.fromkeys([node, *_downstream(node)], EMBEDDING)
        elif node.domain == DOMAIN:
            for value in _fixed_float32(node):
                for source in _back_to_product(value):
                    reasons[source] = ALIGNMENT if source.op_type in PRODUCTS else reasons.get(source, MASK)
        if precision == "fp16":
            large = [value.name for value in node.inputs if value is not None and _overflows(value)]
            if large:
                reasons[node] = OVERFLOW + ", ".join(map(str, large))
    return _token_nodes(graph, reasons) | reasons if precision == "bf16" else reasons


def _token_nodes(graph: ir.Graph, others: Mapping[ir.Node, str]) -> dict[ir.Node, str]:
    """The nodes that carry tokens from layer to layer, and the products that make them of pixels and words."""
    found: dict[ir.Node, str] = {}
    for node in graph:
        if node.op_type in PRODUCTS and _is_outside(node.inputs[0]):
            biases = [use.node for use in node.outputs[0].uses() if _product_of(use.node) is node]
            found |= dict.fromkeys([node, *biases], FIRST)
    readers = [node for node in graph if node.op_type in TOKEN_READERS or others.get(node) == ALIGNMENT]
    pending = [node.inputs[0] for node in (*readers, *found)]
    found |= dict.fromkeys(readers, TOKENS)
    while pending:
        value = pending.pop()
        maker = None if value is None or value.dtype != ir.DataType.FLOAT else value.producer()
        if maker is not None and maker not in found and not _makes_narrow(maker):
            found[maker] = TOKENS
            pending += maker.inputs
    return found


def _is_outside(value: ir.Value | None) -> bool:
    """Whether a value is made of pixels [B, 3, S, S] or whole numbers, and weights, without a product."""
    if value is None or value.dtype != ir.DataType.FLOAT or value.const_value is not None:
        return True
    node = value.producer()
    if node is None:
        return value.shape is not None and len(value.shape) == PIXELS_RANK
    return not (node.domain == DOMAIN or node.op_type in PRODUCTS) and all(map(_is_outside, node.inputs))


def _makes_narrow(node: ir.Node) -> bool:
    """Whether what a layer adds to its tokens comes from here: a product with its bias, or an attention."""
    return node.domain == DOMAIN or node.op_type in PRODUCTS or _product_of(node) is not None


def _product_of(node: ir.Node) -> ir.Node | None:
    """The product to which a node adds a bias."""
    values = [value for value in node.inputs if value is not None]
    makers = [value.producer() for value in values if value.const_value is None]
    maker = makers[0] if node.op_type == "Add" and len(makers) == 1 else None
    return maker if maker is not None and maker.op_type in PRODUCTS else None


def _fixed_float32(node: ir.Node) -> Iterator[ir.Value]:
    """The inputs of a custom node that are float32 whatever the others are."""
    for value, spec in zip(node.inputs, _SPECS[node.op_type].inputs, strict=True):
        if value is not None and value.dtype == ir.DataType.FLOAT and spec.dtype != FLOAT:
            yield value


def _back_to_product(value: ir.Value) -> Iterator[ir.Node]:
    """The nodes that make a value out of products, other custom nodes' outputs, constants and whole numbers."""
    node = value.producer()
    if value.dtype != ir.DataType.FLOAT or node is None or node.domain == DOMAIN:
        return
    yield node
    if node.op_type not in PRODUCTS:
        for source in node.inputs:
            if source is not None:
                yield from _back_to_product(source)


def _downstream(node: ir.Node) -> Iterator[ir.Node]:
    for output in node.outputs:
        for use in output.uses():
            yield use.node
            yield from _downstream(use.node)


def _overflows(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return False
    array = tensor.numpy()
    return bool(array.size) and float(max(array.max(), -array.min())) > LARGEST_FLOAT16


@dataclass(frozen=True)
class _Types:
    """Which type every float32 value of a graph gets, and which each use wants."""

    narrow: ir.DataType
    float32: Collection[ir.Node]

    def made(self, value: ir.Value) -> ir.DataType:
        """Of what a node makes."""
        node, index = value.producer(), value.index()
        assert node is not None
        assert index is not None
        fixed = node.domain == DOMAIN and _SPECS[node.op_type].outputs[index].dtype != FLOAT
        return ir.DataType.FLOAT if fixed or node in self.float32 else self.narrow

    def held(self, weight: ir.Value) -> ir.DataType:
        """Of an initializer. Single numbers, such as a smallest length, do not take part in the rounding of weights."""
        single = weight.const_value is not None and weight.const_value.size <= 1
        wide = [self.taken(*use) is ir.DataType.FLOAT for use in weight.uses()]
        if (single and any(wide)) or (self.narrow == ir.DataType.BFLOAT16 and all(wide)):
            return ir.DataType.FLOAT
        return ir.DataType.FLOAT if self.narrow == ir.DataType.FLOAT16 and _overflows(weight) else self.narrow

    def taken(self, node: ir.Node, index: int) -> ir.DataType | None:
        """In which a node takes an input; None where any will do."""
        if node.op_type in TYPELESS:
            return None
        fixed = node.domain == DOMAIN and _SPECS[node.op_type].inputs[index].dtype != FLOAT
        return ir.DataType.FLOAT if fixed or node in self.float32 else self.narrow


def _retype(graph: ir.Graph, types: _Types, narrow_io: bool) -> None:
    """Give every float32 value its type, and cast it where a node takes another."""
    values = [value for node in graph for value in node.outputs if value.dtype == ir.DataType.FLOAT]
    weights = [value for value in graph.initializers.values() if value.dtype == ir.DataType.FLOAT]
    inputs = [value for value in graph.inputs if value.dtype == ir.DataType.FLOAT]
    wanted = {value: types.made(value) for value in values} | {weight: types.held(weight) for weight in weights}
    if narrow_io:
        wanted |= {value: types.narrow for value in inputs if value.name != TEMPERATURE}
    uses = [(value, use) for value in [*values, *weights, *inputs] for use in value.uses()]
    for value, dtype in wanted.items():
        if dtype != ir.DataType.FLOAT:
            _set_type(value, dtype)
    cast: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for value, (node, index) in uses:
        taken = types.taken(node, index)
        if taken is not None and taken != value.dtype:
            if (value, taken) not in cast:
                cast[value, taken] = insert_cast(graph, value, taken)
            node.replace_input_with(index, cast[value, taken])
    for index, value in enumerate(graph.outputs):
        if value.dtype == types.narrow and not narrow_io:
            name, value.name = value.name, f"{value.name}.{types.narrow.name.lower()}"
            graph.outputs[index] = insert_cast(graph, value, ir.DataType.FLOAT, name)


def _set_type(value: ir.Value, dtype: ir.DataType) -> None:
    node = value.producer()
    if value.const_value is not None:
        value.const_value = rounded(value.const_value, dtype)
    elif node is not None and node.op_type == "Cast":
        node.attributes["to"] = ir.AttrInt64("to", int(dtype))
    elif node is not None and node.op_type == "ConstantOfShape":
        fill = node.attributes.get("value")  # ONNX fills with a float32 zero where there is none
        tensor = ir.tensor(np.zeros(1, np.float32)) if fill is None else fill.as_tensor()
        node.attributes["value"] = ir.AttrTensor("value", rounded(tensor, dtype))
    value.dtype = dtype


def rounded(tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.LazyTensor:
    """A float32 tensor in a narrower type, made when it is written: the model's weights are not held twice."""
    return ir.LazyTensor(
        lambda: ir.Tensor(tensor.numpy().astype(dtype.numpy())),
        dtype=dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
    )


def insert_cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, name: str | None = None) -> ir.Value:
    """A value in another type, by a Cast behind what makes it."""
    name = name or f"{value.name}.{dtype.name.lower()}"
    output = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape)
    node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(dtype))], outputs=[output], name=f"cast_{name}")
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return output
