"""The library of ops for ONNX Runtime, called through models of one node."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx.helper
import onnxruntime
import torch
from onnx import TensorProto
from torch import Tensor

from export.graph.functions import OPSET, functions
from madtp.ops.spec import ALIGNED_ATTENTION, DOMAIN, FLOAT, KEEP_MARGIN, TOKEN_COMPACT, VERSION, OpSpec, TensorSpec
from tests.helpers.kernels import Compacted
from tests.helpers.native_build import build

CPU = "MADTP_CPU"  # environment variable: the instruction set, read at the first call of a loaded library
FLAGS = {"baseline": set(), "avx2": {"avx2", "fma", "bmi2"}, "avx512": {"avx512bw", "avx512vl", "avx512dq"}}
ENGINE_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
}
_TYPES = {
    FLOAT: TensorProto.FLOAT,
    "float32": TensorProto.FLOAT,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
}


def instruction_sets() -> list[str]:
    """Those that this processor has."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    flags = set(next((line for line in text.splitlines() if line.startswith("flags")), "").split())
    return [name for name, needed in FLAGS.items() if needed <= flags]


@contextmanager
def library(instruction_set: str, folder: Path) -> Iterator[Path]:
    """A copy of the library for its instruction set: one file, loaded once, takes one."""
    path = folder / f"libmadtp_onnxruntime_{instruction_set}.so"
    shutil.copy(build().onnxruntime, path)
    earlier = os.environ.get(CPU)
    os.environ[CPU] = instruction_set
    try:
        OnnxRuntimeOps(path).aligned_attention(torch.zeros(1, 1, 3), torch.zeros(1, 1), 0, 1)
    finally:
        os.environ.pop(CPU)
        if earlier is not None:
            os.environ[CPU] = earlier
    yield path


def model(spec: OpSpec, bodies: bool = False, dtype: torch.dtype = torch.float32, **attributes: Any) -> bytes:
    """A model of one node, all of whose sizes are free; with `bodies` it has the function bodies too.

    A node of another `dtype` stands between casts from and to float32, which change nothing: numpy has no bfloat16.
    """
    narrow = dtype != torch.float32

    def inner(entry: TensorSpec) -> str:
        return f"{entry.name}_inner" if narrow and entry.dtype == FLOAT else entry.name

    def casts(entries: tuple[TensorSpec, ...], to: int, inward: bool) -> list[onnx.NodeProto]:
        ends = [(entry.name, inner(entry)) for entry in entries if inner(entry) != entry.name]
        return [onnx.helper.make_node("Cast", [e[not inward]], [e[inward]], to=to) for e in ends]

    node = onnx.helper.make_node(
        spec.onnx_name, list(map(inner, spec.inputs)), list(map(inner, spec.outputs)), domain=DOMAIN, **attributes
    )
    before, after = casts(spec.inputs, ENGINE_TYPES[dtype], True), casts(spec.outputs, TensorProto.FLOAT, False)
    inputs, outputs = (
        [onnx.helper.make_tensor_value_info(entry.name, _TYPES[entry.dtype], None) for entry in part]
        for part in (spec.inputs, spec.outputs)
    )
    graph = onnx.helper.make_graph([*before, node, *after], "one", inputs, outputs)
    opsets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(DOMAIN, VERSION)]
    made = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
    if bodies:
        made.functions.extend(functions(keep_margin=KEEP_MARGIN in attributes))
    content: bytes = made.SerializeToString()
    return content


class OnnxRuntimeOps:
    """Both ops with the results of ONNX Runtime; the interface is that of `tests.helpers.kernels.Kernels`.

    Args:
        path: the library; None runs the function bodies.
        threads: of a session.
        bodies: whether the models have the function bodies, too.
    """

    def __init__(self, path: Path | None, threads: int = 1, bodies: bool = False) -> None:
        self.path, self.threads, self.bodies = path, threads, bodies or path is None
        self.session = cache(self._session)

    def _session(
        self, spec: OpSpec, dtype: torch.dtype = torch.float32, **attributes: Any
    ) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 4  # what goes wrong is raised too
        options.enable_cpu_mem_arena = False  # so that a sanitizer sees the ends of tensors
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self.path is not None:
            options.register_custom_ops_library(str(self.path))
        content = model(spec, self.bodies, dtype, **attributes)
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(self, spec: OpSpec, inputs: Any, **attributes: Any) -> list[Tensor]:
        """The outputs of one call, in the type of its first input."""
        dtype = torch.as_tensor(inputs[0]).dtype
        tensors = [torch.as_tensor(entry) for entry in inputs]
        arrays = [np.ascontiguousarray((x.float() if x.dtype == dtype else x).numpy()) for x in tensors]
        feeds = {entry.name: array for entry, array in zip(spec.inputs, arrays, strict=True)}
        results = [torch.from_numpy(np.asarray(x)) for x in self.session(spec, dtype, **attributes).run(None, feeds)]
        kinds = [entry.dtype for entry in spec.outputs]
        return [x.to(dtype) if kind == FLOAT else x for kind, x in zip(kinds, results, strict=True)]

    def call(self, spec: OpSpec, arguments: Sequence[Any]) -> list[Tensor]:
        """The outputs of one call with the arguments of the torch op; one at its default is no attribute."""
        tensors = len(spec.inputs)
        attributes = zip(spec.attributes, arguments[tensors:], strict=True)
        named = {attribute.name: value for attribute, value in attributes if value != attribute.default}
        return self.run(spec, arguments[:tensors], **named)

    def aligned_attention(self, qkv: Tensor, key_mask: Tensor, causal: int, heads: int) -> tuple[Tensor, ...]:
        """Like `madtp.ops.reference.aligned_attention`."""
        return tuple(self.run(ALIGNED_ATTENTION, (qkv, key_mask), causal=causal, heads=heads, biased=1))

    def token_compact(self, *inputs: Any) -> Compacted:
        """Like `madtp.ops.reference.token_compact`; a margin of zero is no attribute."""
        layer, margin = inputs[8], inputs[9] if len(inputs) > 9 else 0.0
        attributes = {"layer": layer, **({KEEP_MARGIN: margin} if margin else {})}
        tokens, mask, ids, count = self.run(TOKEN_COMPACT, inputs[:8], **attributes)
        assert tokens.shape[1] == mask.shape[1] == ids.shape[1] == int(count)
        return Compacted(tokens, mask, ids, int(count))
