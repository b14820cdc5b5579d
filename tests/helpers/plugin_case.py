"""Shared by tests of plugin objects: the plugins with valid fields, inputs and outputs; libraries; messages."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from madtp.ops.spec import ALL_OPS, FLOAT, OpSpec
from tests.helpers.harness import BUILD, HALF, INT32, INT64, Plugin, PluginLibrary, descriptions
from tests.helpers.harness import FLOAT as FP32
from tests.helpers.native_build import build, cuda_library

B, L, C, HEADS, T = 2, 21, 64, 4, 8
R, S, Q, M, CAPACITY = 40, 4, 2, 30, 28  # of the packed layout
GOOD: dict[str, dict[str, float]] = {
    "AlignedAttention": {"causal": 0, "heads": HEADS},
    "TokenCompact": {"layer": 3, "keep_margin": 0.0, "opt_tokens": 12, "max_tokens": 0},
    "PackedAlignedAttention": {"causal": 0, "heads": HEADS},
    "PackedTokenCompact": {"capacity": CAPACITY, "group": S // Q, "layer": 3, "keep_margin": 0.0},
    "VarlenAttention": {"heads": HEADS},
}
TENSORRT_TYPES = {"float32": FP32, "int32": INT32, "int64": INT64}
IDS = [spec.onnx_name for spec in ALL_OPS]


def sizes_of(spec: OpSpec, **changed: int) -> list[tuple[int, ...]]:
    """Dimensions of the inputs of an op, with other values for these symbols."""
    known = {"B": B, "L": L, "N": L - 1, "C": C, "2C": 2 * C, "3C": 3 * C, "T": T}
    known |= {"R": R, "S+1": S + 1, "Q": Q, "M": M, **changed}
    return [tuple(known[symbol] for symbol in tensor.dims) for tensor in spec.inputs]


@dataclass(frozen=True)
class Case:
    """One plugin with its inputs and outputs."""

    spec: OpSpec
    library: PluginLibrary

    @property
    def name(self) -> str:
        return self.spec.onnx_name

    @property
    def counts(self) -> tuple[int, int]:
        return len(self.spec.inputs), len(self.spec.outputs)

    def sizes(self, **changed: int) -> list[tuple[int, ...]]:
        """Dimensions of the inputs."""
        return sizes_of(self.spec, **changed)

    def types(self, dtype: int = HALF) -> list[int]:
        tensors = (*self.spec.inputs, *self.spec.outputs)
        return [dtype if tensor.dtype == FLOAT else TENSORRT_TYPES[tensor.dtype] for tensor in tensors]

    def tensors(self, dtype: int = HALF, **changed: int) -> Any:
        """Descriptions of inputs and outputs; those of the outputs say nothing of sizes."""
        sizes = [*self.sizes(**changed), *((),) * self.counts[1]]
        return descriptions(zip(sizes, self.types(dtype), strict=True))

    def create(self, phase: int = BUILD, **fields: float) -> Plugin:
        plugin = self.library.create(self.name, {**GOOD[self.name], **fields}, phase)
        assert plugin is not None, self.library.messages()
        return plugin


def libraries() -> list[Any]:
    cuda = cuda_library("plugins")
    unbuilt = pytest.mark.skip(reason="the plugin library is not built for CUDA here (./build.sh plugins)")
    return [pytest.param("host"), pytest.param("cuda", marks=() if cuda else unbuilt)]


def path_of(kind: str) -> Path:
    path = build().plugins if kind == "host" else cuda_library("plugins")
    assert path is not None
    return path


def the_message(library: PluginLibrary, plugin: str) -> str:
    """The one message of a refusal: it names the plugin and says what is wrong, why, and what to do."""
    messages = library.messages()
    assert len(messages) == 1, messages
    prefix, _, text = messages[0].partition(": ")
    assert prefix == plugin
    assert text.endswith(".")
    what, why, *advice = re.split(r"(?<=\.) (?=[A-Z])", text)
    assert len(what) > 10
    assert len(why) > 10
    assert advice, messages[0]
    assert any(re.match(r"(Export|Use|Keep|Free) ", sentence) for sentence in advice), messages[0]
    return text
