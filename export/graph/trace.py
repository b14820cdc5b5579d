"""From a part of a torch model to an ONNX file with the custom ops as nodes, their bodies as functions."""

import gc
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import onnxscript
import torch
from onnx import checker
from onnxscript import ir, optimizer
from torch.export import Dim

from export.graph.functions import BIASED, OPSET, functions, op_schema
from export.graph.lowering import TRANSLATIONS, light_lowering
from export.graph.source_ids import COMPACTIONS, IDS_OUTPUT, SOURCE_IDS
from madtp.models.parts import BATCH, NEW, PAST, SOURCE, TEXT, TEXTS, Part
from madtp.ops.spec import (
    ALIGNED_ATTENTION,
    ALL_OPS,
    DOMAIN,
    KEEP_MARGIN,
    MARGIN_NAMESPACE,
    MARGIN_VERSION,
    OPS,
    PACKED_OPS,
    TOKEN_COMPACT,
    VERSION,
    OpSpec,
)

# Any numbers but 0 and 1, which torch.export would take for constants, and all different.
TRACED_SIZES = {BATCH: 2, TEXT: 8, SOURCE: 7, TEXTS: 3, NEW: 4, PAST: 5}
MIN_TEXT = 3  # for the tracer alone; the graph itself runs with two tokens, [ENC] and [SEP]
EXTERNAL_DATA_LIMIT = 2_000_000_000  # bytes of weights; a protobuf file holds at most 2 GiB
TRANSPOSED = ".T"  # behind a weight's name: its initializer holds the weight transposed
IR_VERSION = 9  # the oldest that has opset 20: ONNX Runtime 1.17 reads it, of what torch writes only 1.18


def trace_part(part: Part) -> torch.onnx.ONNXProgram:
    """A part, in eval mode, as an ONNX program: what varies is dynamic, temperature an input, custom ops are nodes.

    The program's weights share the model's memory; see `save_onnx`.
    """
    dims = {name: Dim(name, min=MIN_TEXT if name == TEXT else None, max=part.limits.get(name)) for name in TRACED_SIZES}
    # A tensor each: torch.export takes arguments that are one object for one input.
    examples = tuple(torch.ones(spec.sized(TRACED_SIZES), dtype=spec.dtype) for spec in part.inputs)
    dynamic_shapes = {
        spec.name: {axis: dims[dim] for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}
        for spec in part.inputs
    }
    with _quiet_tracing(), light_lowering():
        program = torch.export.export(part.module, examples, dynamic_shapes=dynamic_shapes)
        traced = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=OPSET,
            optimize=False,  # its rewriting takes a fifth of the time and finds nothing here but constants to fold
            custom_translation_table=TRANSLATIONS
            | {getattr(torch.ops.madtp, spec.torch_name).default: _translation(spec) for spec in ALL_OPS},
            dynamic_shapes=dynamic_shapes,  # again, to name the dimensions
            input_names=[spec.name for spec in part.inputs],
            output_names=list(part.outputs),
            verbose=False,
        )
    assert traced is not None
    _multiply_rows(traced.model)
    _name_transposed(traced.model)
    optimizer.fold_constants(traced.model)
    optimizer.remove_unused_nodes(traced.model)
    _attach_functions(traced.model)
    return traced


def _multiply_rows(model: ir.Model) -> None:
    """Of a packed graph, products with weights as the dynamic layout has them: x W^T + b of rows is written as Gemm.

    Passes that join, quantize and narrow products look for MatMul and Add, and ONNX Runtime has fast kernels for these.
    """
    packed = {spec.onnx_name for spec in PACKED_OPS}
    if not any(node.domain == DOMAIN and node.op_type in packed for node in model.graph):
        return
    for node in [node for node in model.graph if node.op_type == "Gemm"]:
        rows, weight, *bias = node.inputs
        assert node.attributes.get_int("transB") == 1
        assert not node.attributes.get_int("transA", 0)
        output = node.outputs[0]
        transpose = ir.node("Transpose", [weight], {"perm": [1, 0]})
        product = ir.node("MatMul", [rows, transpose.outputs[0]])
        nodes = [transpose, product]
        if bias:
            nodes.append(ir.node("Add", [product.outputs[0], bias[0]]))
        new = nodes[-1].outputs[0]
        new.name, new.shape, new.type, output.name = output.name, output.shape, output.type, None
        if bias:
            product.outputs[0].shape, product.outputs[0].type = new.shape, new.type
            product.outputs[0].name = f"{new.name}.product"
        transpose.outputs[0].name = f"{new.name}.weight"
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], nodes, [output], [new])


def _name_transposed(model: ir.Model) -> None:
    """Give every transposed weight, which folding makes an initializer, its weight's name and one copy of its data."""
    transposed: dict[str, ir.Value] = {}
    for node in list(model.graph):
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        if weight is None or weight.name not in model.graph.initializers:
            continue
        name = f"{weight.name}{TRANSPOSED}"
        if name in transposed:
            ir.convenience.replace_all_uses_with(node.outputs[0], transposed[name])
        else:
            transposed[name] = node.outputs[0]
            node.outputs[0].name = name


def _translation(spec: OpSpec) -> Callable[..., Any]:
    """What writes the node of a torch op; an op (not an onnxscript function) is what torch.onnx does not inline."""
    op = onnxscript.values.Op(onnxscript.values.Opset(DOMAIN, VERSION), spec.onnx_name, op_schema(spec))
    tensors = len(spec.inputs)

    def translate(*arguments: Any) -> Any:
        # Attributes by name: the schema keeps them unordered, and torch.onnx would hand them over by position.
        given = zip(spec.attributes, arguments[tensors:], strict=False)  # torch leaves out what is the default
        attributes = {attribute.name: value for attribute, value in given if value != attribute.default}
        return op(*arguments[:tensors], **attributes)

    return translate


def _attach_functions(model: ir.Model) -> None:
    """Give the custom nodes their bodies (ONNX Runtime inlines them) and their plugin namespace (TensorRT's key).

    Source ids get names of ours, by which they are found where a file holds bodies in the place of the nodes.
    """
    used = {node.op_type for node in model.graph if node.domain == DOMAIN}
    margins = {KEEP_MARGIN in node.attributes for node in model.graph if node.op_type in COMPACTIONS}
    ops = OPS if used <= {spec.onnx_name for spec in OPS} else [spec for spec in ALL_OPS if spec.onnx_name in used]
    for function in functions(keep_margin=margins == {True}, ops=ops):
        body = ir.serde.deserialize_function(function)
        model.functions[body.identifier()] = body
    model.opset_imports[DOMAIN] = VERSION
    model.ir_version = IR_VERSION
    layers = count()
    for node in model.graph:
        node.metadata_props.clear()  # stack traces: paths of the machine that exported
        if node.domain == DOMAIN:
            margin = node.op_type == TOKEN_COMPACT.onnx_name and KEEP_MARGIN in node.attributes
            node.attributes.add(ir.AttrString("plugin_namespace", MARGIN_NAMESPACE if margin else DOMAIN))
            node.attributes.add(ir.AttrString("plugin_version", str(MARGIN_VERSION if margin else VERSION)))
        if (node.domain, node.op_type) == (DOMAIN, ALIGNED_ATTENTION.onnx_name):
            node.attributes.add(ir.AttrInt64(BIASED, int(not _is_unbiased(node))))
        if node.domain == DOMAIN and node.op_type in COMPACTIONS:
            node.outputs[IDS_OUTPUT].name = f"{SOURCE_IDS}{next(layers)}"


def _is_unbiased(node: ir.Node) -> bool:
    """Whether an AlignedAttention node adds nothing to its scores, whatever the inputs of the graph."""
    return node.attributes["causal"].as_int() == 0 and _is_zero(node.inputs[1])


def _is_zero(value: ir.Value | None) -> bool:
    """Whether a key mask is zero everywhere: made so, and compacted by any number of layers."""
    maker = None if value is None else value.producer()
    if maker is None:
        return False
    if maker.op_type == TOKEN_COMPACT.onnx_name:
        return _is_zero(maker.inputs[1])
    if maker.op_type in ("Cast", "Expand", "Reshape"):
        return _is_zero(maker.inputs[0])
    fill = maker.attributes.get("value")
    return maker.op_type == "ConstantOfShape" and (fill is None or not fill.as_tensor().numpy().any())


def write_part(
    part: Part, path: Path, external_data: bool | None = None, passes: Iterable[Callable[[ir.Model], None]] = ()
) -> None:
    """Trace a part, change its graph by `passes` in turn, and write it; see `trace_part` and `save_onnx`."""
    program = trace_part(part)
    for change in passes:
        change(program.model)
    save_onnx(program, path, external_data)


def save_onnx(program: torch.onnx.ONNXProgram, path: Path, external_data: bool | None = None) -> None:
    """Write a program of `trace_part` and check it.

    Args:
        external_data: weights go to `<path>.data` beside the file. None: when they are over 2 GB.

    Raises:
        onnx.checker.ValidationError: the graph is invalid; a defect of this package.
    """
    weights = sum(value.const_value.nbytes for value in program.model.graph.initializers.values() if value.const_value)
    external = weights > EXTERNAL_DATA_LIMIT if external_data is None else external_data
    program.save(str(path), external_data=external)
    checker.check_model(str(path), full_check=True)


@contextmanager
def _quiet_tracing() -> Iterator[None]:
    """No gradients, no remarks of torch about its own internals, and no garbage collection.

    Tracing makes millions of objects and next to no garbage; looking for it costs a tenth of the time.
    """
    logger, collects = logging.getLogger("torch.onnx"), gc.isenabled()
    level = logger.level
    gc.disable()
    logger.setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if collects:
            gc.enable()
