"""From a part of a torch model to an ONNX file with the custom ops as nodes, their bodies as functions."""

import gc
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import onnxscript
import torch
from onnx import checker
from onnxscript import ir, optimizer
from torch import Tensor
from torch.export import Dim

from export.graph.functions import OPSET, functions, op_schema
from export.graph.source_ids import IDS_OUTPUT, SOURCE_IDS
from madtp.models.parts import BATCH, NEW, PAST, SOURCE, TEXT, TEXTS, InputSpec, Part
from madtp.ops.spec import DOMAIN, OPS, TOKEN_COMPACT, VERSION, OpSpec

# Any numbers but 0 and 1, which torch.export would take for constants, and all different.
TRACED_SIZES = {BATCH: 2, TEXT: 8, SOURCE: 7, TEXTS: 3, NEW: 4, PAST: 5}
MIN_TEXT = 3  # for the tracer alone; the graph itself runs with two tokens, [ENC] and [SEP]
EXTERNAL_DATA_LIMIT = 2_000_000_000  # bytes of weights; a protobuf file holds at most 2 GiB
IR_VERSION = 9  # the oldest that has opset 20: ONNX Runtime 1.17 reads it, of what torch writes only 1.18


def trace_part(part: Part) -> torch.onnx.ONNXProgram:
    """A part as an ONNX program: what varies is dynamic, temperature an input, custom ops kept as nodes.

    Args:
        part: its module in eval mode.

    Returns:
        A program whose weights still share the model's memory; see `save_onnx`.
    """
    dims = {name: Dim(name, min=MIN_TEXT if name == TEXT else None, max=part.limits.get(name)) for name in TRACED_SIZES}
    # A tensor each: torch.export takes arguments that are one object for one input.
    examples = tuple(_example(spec) for spec in part.inputs)
    dynamic_shapes = {
        spec.name: {axis: dims[dim] for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}
        for spec in part.inputs
    }
    with torch.no_grad(), warnings.catch_warnings(), _Quiet("torch.onnx"), _no_garbage_collection():
        warnings.simplefilter("ignore")  # torch's remarks about its own internals
        program = torch.export.export(
            part.module,
            examples,
            dynamic_shapes=dynamic_shapes,
        )
        traced = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=OPSET,
            optimize=False,  # its rewriting takes a fifth of the time and finds nothing here but constants to fold
            custom_translation_table=_translations(),
            dynamic_shapes=dynamic_shapes,  # again, to name the dimensions
            input_names=[spec.name for spec in part.inputs],
            output_names=list(part.outputs),
            verbose=False,
        )
    assert traced is not None
    optimizer.fold_constants(traced.model)
    optimizer.remove_unused_nodes(traced.model)
    _attach_functions(traced.model)
    return traced


def _example(spec: InputSpec) -> Tensor:
    """An input to trace with; ones are ids, mask and temperature alike, and pixels."""
    return torch.ones(spec.sized(TRACED_SIZES), dtype=spec.dtype)


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Torch op -> what writes its node; an op (not an onnxscript function) is what torch.onnx does not inline."""
    return {getattr(torch.ops.madtp, spec.torch_name).default: _translation(spec) for spec in OPS}


def _translation(spec: OpSpec) -> Callable[..., Any]:
    op = onnxscript.values.Op(onnxscript.values.Opset(DOMAIN, VERSION), spec.onnx_name, op_schema(spec))
    tensors = len(spec.inputs)

    def translate(*arguments: Any) -> Any:
        # Attributes by name: the schema keeps them unordered, and torch.onnx would hand them over by position.
        names = (attribute.name for attribute in spec.attributes)
        return op(*arguments[:tensors], **dict(zip(names, arguments[tensors:], strict=True)))

    return translate


def _attach_functions(model: ir.Model) -> None:
    """Give the custom nodes their bodies (ONNX Runtime inlines them) and their plugin namespace (TensorRT's key).

    Source ids get names of ours, by which they are found where a file holds bodies in the place of the nodes.
    """
    for function in functions():
        body = ir.serde.deserialize_function(function)
        model.functions[body.identifier()] = body
    model.opset_imports[DOMAIN] = VERSION
    model.ir_version = IR_VERSION
    layers = count()
    for node in model.graph:
        node.metadata_props.clear()  # stack traces: paths of the machine that exported
        if node.domain == DOMAIN:
            node.attributes.add(ir.AttrString("plugin_namespace", DOMAIN))
            node.attributes.add(ir.AttrString("plugin_version", str(VERSION)))
        if (node.domain, node.op_type) == (DOMAIN, TOKEN_COMPACT.onnx_name):
            node.outputs[IDS_OUTPUT].name = f"{SOURCE_IDS}{next(layers)}"


def write_part(part: Part, path: Path, external_data: bool | None = None) -> None:
    """Trace a part and write it; see `trace_part` and `save_onnx`."""
    save_onnx(trace_part(part), path, external_data)


def save_onnx(program: torch.onnx.ONNXProgram, path: Path, external_data: bool | None = None) -> None:
    """Write `program` to `path` and check it.

    Args:
        program: from `trace_part`.
        path: the .onnx file.
        external_data: weights go to `<path>.data` beside it. None: when they are over 2 GB.

    Raises:
        onnx.checker.ValidationError: the graph is invalid; a defect of this package.
    """
    weights = sum(value.const_value.nbytes for value in program.model.graph.initializers.values() if value.const_value)
    external = weights > EXTERNAL_DATA_LIMIT if external_data is None else external_data
    program.save(str(path), external_data=external)
    checker.check_model(str(path), full_check=True)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Tracing makes millions of objects and next to no garbage; looking for it costs a tenth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Quiet:
    """Context in which a logger says nothing below an error."""

    def __init__(self, name: str) -> None:
        self._target = logging.getLogger(name)

    def __enter__(self) -> None:
        self._level = self._target.level
        self._target.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self._target.setLevel(self._level)
