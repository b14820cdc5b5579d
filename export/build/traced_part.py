"""The second stage: every part as an ONNX file."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from torch import nn

from export.artifact.manifest import TensorInfo
from export.build.files import artifact_name, is_single_file
from export.build.prepare import Prepared
from export.graph.capacities import add_overflow
from export.graph.custom_nodes import custom_nodes
from export.graph.fuse import fuse_products
from export.graph.inline import inline_functions
from export.graph.precision import needs_rounding, precision_pass, write_runnable
from export.graph.trace import write_part
from madtp.files.inputs import sha256
from madtp.files.staging import write_errors
from madtp.models.parts import Part, parts_of
from madtp.models.weight_products import part_weight_names


@dataclass(frozen=True)
class TracedPart:
    """A part as an ONNX file.

    Attributes:
        part: without its weights.
        files: name of `source`, and of its external weights if it has some.
        runnable: what ONNX Runtime runs of it: `source`, but for a plan in bfloat16.
        custom_nodes: custom op -> number of nodes.
        quantized: names of the weight products that were quantized.
        float32_nodes: why nodes stayed in float32 -> how many; None in fp32.
    """

    part: Part
    source: Path
    runnable: Path
    files: tuple[str, ...]
    sha256: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    custom_nodes: dict[str, int]
    quantized: frozenset[str] = frozenset()
    float32_nodes: dict[str, int] | None = None


def trace_parts(prepared: Prepared, folder: Path, on_detail: Callable[[str], None]) -> dict[str, TracedPart]:
    """Trace every part into an ONNX file in `folder`."""
    options = prepared.options
    target = options.engine
    single_file = is_single_file(options, prepared.weight_bytes)
    traced = {}
    model = prepared.load_model()
    if options.packed:
        model = model.packed_copy(sized=options.sized)
    quantizer = None if prepared.quantization is None else prepared.quantization.quantizer
    for name, part in parts_of(model).items():
        on_detail(name)
        reasons: dict[str, int] = {}
        source = folder / Path(artifact_name(target, name, len(prepared.parts))).with_suffix(".onnx")
        with write_errors(target):
            quantized: set[str] = set()
            quantize = [] if quantizer is None else [quantizer.graph_pass(part_weight_names(model, part), quantized)]
            change = precision_pass(options.precision, options.io_dtype, target.suffix == ".onnx", reasons.__setitem__)
            fuse = [fuse_products] if target.suffix == ".onnx" else []
            room = [add_overflow] if options.sized else []
            write_part(part, source, external_data=not single_file, passes=[*room, *fuse, *quantize, change])
            if target.suffix == ".onnx" and options.plugins == "none":
                inline_functions(source, source)
            runnable = source
            if target.suffix == ".plan" and needs_rounding(options.precision):
                runnable = source.with_name(f"runnable-{source.name}")
                write_runnable(source, runnable)
        for why, nodes in reasons.items():
            on_detail(f"{name}: {nodes} nodes stay in float32: {why}")
        graph = onnx.load(str(source), load_external_data=False).graph
        traced[name] = TracedPart(
            part=replace(part, module=nn.Module()),  # or all weights would stay in memory while engines are built
            source=source,
            runnable=runnable,
            files=(source.name,) if single_file else (source.name, f"{source.name}.data"),
            sha256=sha256(source),
            inputs=tuple(_tensor(value) for value in graph.input),
            outputs=tuple(_tensor(value) for value in graph.output),
            custom_nodes=custom_nodes(source),
            quantized=frozenset(quantized),
            float32_nodes=reasons or None,
        )
    return traced


def _tensor(value: onnx.ValueInfoProto) -> TensorInfo:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = (dim.dim_param if dim.HasField("dim_param") else dim.dim_value for dim in tensor.shape.dim)
    return TensorInfo(value.name, dtype, tuple(shape))
