"""The graph pass of a precision, and the form of its result that ONNX Runtime runs."""

from collections.abc import Callable
from pathlib import Path

from onnxscript import ir

from export.graph.bfloat16_rounding import round_bfloat16
from export.graph.functions import OLDEST_ONNXRUNTIME
from export.graph.half_precision import half_precision

# ONNX Runtime 1.17.3 and 1.18.1 plan the memory of these graphs wrongly (two values in one place, unless
# SessionOptions.enable_mem_pattern is off) and fail or give other answers; 1.19.2, 1.20.1 and 1.32.0 run them.
OLDEST_NARROW_ONNXRUNTIME = "1.19"


def oldest_onnxruntime(precision: str) -> str:
    """The oldest version that runs a file of this precision."""
    return OLDEST_ONNXRUNTIME if precision == "fp32" else OLDEST_NARROW_ONNXRUNTIME


def precision_pass(
    precision: str,
    io_dtype: str = "fp32",
    runnable: bool = False,
    on_reason: Callable[[str, int], None] = lambda why, nodes: None,
) -> Callable[[ir.Model], None]:
    """What turns a traced float32 graph into a precision: "fp16" or "bf16"; others change nothing here.

    Args:
        io_dtype: of inputs and outputs, "fp32" or `precision`.
        runnable: in the form that ONNX Runtime runs; else in that which TensorRT takes.
        on_reason: told why nodes stayed in float32, and how many.
    """

    def change(model: ir.Model) -> None:
        if precision not in ("fp16", "bf16"):
            return
        for why, nodes in half_precision(model, precision, narrow_io=io_dtype != "fp32").items():
            on_reason(why, nodes)
        if runnable and needs_rounding(precision):
            round_bfloat16(model)

    return change


def needs_rounding(precision: str) -> bool:
    """Whether ONNX Runtime does not run what TensorRT takes."""
    return precision == "bf16"


def write_runnable(source: Path, target: Path) -> None:
    """Write a bfloat16 file for TensorRT as ONNX Runtime runs it; its weights lie beside it."""
    model = ir.load(source)
    round_bfloat16(model)
    ir.save(model, target, external_data=f"{target.name}.data")
