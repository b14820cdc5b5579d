"""Replays recorded cases: the parts of a model in torch or as exported graphs, with every encoder call recorded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from madtp.models.parts import Part, parts_of
from madtp.ops.recorder import PruningRecorder
from madtp.tasks.requests import COUNTS_SUFFIX, Outputs, Runner

TOWERS = {"vision": "vision", "text": "text", "match": "text"}  # encoder -> its name in the recordings


@dataclass(frozen=True)
class LayerTrace:
    """What one layer did: tokens after it, K (None where the recording has none), the source ids of its tokens."""

    tokens_out: int
    keep: int | None
    source_ids: Tensor | None  # [B, tokens_out]: class token 0, patch p is p + 1, merged at layer l is -(l + 1)


@dataclass
class Towers:
    """The layers of every encoder call, named as the recordings name them: vision, vision_1, ..., text, text_1, ..."""

    layers: dict[str, list[LayerTrace]] = field(default_factory=dict)

    def add(self, part: Part, layers: list[LayerTrace]) -> None:
        """Record the layers of one call of a part, all of its encoders end to end."""
        for encoder, depth in part.encoders.items():
            tower = TOWERS[encoder]
            before = sum(name.split("_")[0] == tower for name in self.layers)
            self.layers[f"{tower}_{before}" if before else tower] = layers[:depth]
            layers = layers[depth:]
        assert not layers


def counted_layers(part: Part, outputs: Outputs) -> list[LayerTrace]:
    """Layers of a call according to its token counts."""
    counts = [value for name, value in outputs.items() if name.endswith(COUNTS_SUFFIX)]
    return [LayerTrace(int(count), None, None) for encoder in counts for count in encoder[0]]


@dataclass
class TorchPart:
    """A part in torch, temperature as a tensor, so that a temperature of zero runs the pruning ops too."""

    part: Part
    towers: Towers

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        arguments: dict[str, Any] = dict(inputs)
        if self.part.encoders:
            arguments["temperature"] = torch.tensor(temperature)
        with PruningRecorder() as recorder:
            outputs = self.part.module(**arguments)._asdict()
        self.towers.add(self.part, [LayerTrace(r.tokens_out, r.keep, r.source_ids) for r in recorder.records])
        return outputs


@dataclass
class DensePart:
    """A part in torch without any pruning machinery; for cases at temperature zero."""

    part: Part
    towers: Towers

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        assert temperature <= 0
        arguments: dict[str, Any] = {**inputs, "temperature": 0.0} if self.part.encoders else dict(inputs)
        with PruningRecorder() as recorder:
            outputs = self.part.module(**arguments)._asdict()
        assert not recorder.records
        self.towers.add(self.part, counted_layers(self.part, outputs))
        return outputs


@dataclass
class OnnxPart:
    """An exported part in ONNX Runtime; `ids` are outputs that its TokenCompact nodes were given."""

    part: Part
    runner: Runner
    ids: list[str]
    towers: Towers

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        outputs = self.runner.run({name: tensor.contiguous() for name, tensor in inputs.items()}, temperature)
        ids = [outputs.pop(name) for name in self.ids]
        layers = counted_layers(self.part, outputs)
        if ids and ids[0].dim() == 1:  # packed, of sequences that are equally long
            sequences = [
                len(value) for name, value in outputs.items() if name.endswith(COUNTS_SUFFIX) for _ in value[0]
            ]
            ids = [own.unflatten(0, (count, -1)) for own, count in zip(ids, sequences, strict=True)]
        self.towers.add(
            self.part, [LayerTrace(layer.tokens_out, None, i) for layer, i in zip(layers, ids, strict=True)]
        )
        return outputs


class TorchRuntime:
    """The torch model, with or without (`dense`) its pruning ops."""

    def __init__(self, model: Any, dense: bool = False, name: str = "") -> None:
        self.name = name or ("torch-dense" if dense else "torch")
        self._kind = DensePart if dense else TorchPart
        self._parts = parts_of(model)

    def runners(self) -> tuple[dict[str, Runner], Towers]:
        """Return runners of all parts, and their record."""
        towers = Towers()
        return {name: self._kind(part, towers) for name, part in self._parts.items()}, towers


class OnnxRuntime:
    """The exported graphs in ONNX Runtime; the source ids of every TokenCompact node are made outputs.

    Args:
        parts: of the model.
        files: the ONNX file of every part.
    """

    name = "onnx"

    def __init__(self, parts: Mapping[str, Part], files: Mapping[str, Path]) -> None:
        from export.graph.onnx_graph import OnnxGraph
        from export.graph.source_ids import kept_ids

        graphs = {name: OnnxGraph.read(path) for name, path in files.items()}
        ids = {name: kept_ids(graph) for name, graph in graphs.items()}
        self._parts = [(parts[name], self._open(graph, ids[name]), ids[name]) for name, graph in graphs.items()]

    def _open(self, graph: Any, ids: list[str]) -> Runner:
        """A runner of a graph that gives these source ids too."""
        from export.runtime.intermediates_runner import IntermediatesRunner

        return IntermediatesRunner(graph, ids)

    def runners(self) -> tuple[dict[str, Runner], Towers]:
        """Return runners of all parts, and their record."""
        towers = Towers()
        return {part.name: OnnxPart(part, runner, ids, towers) for part, runner, ids in self._parts}, towers


class KernelsRuntime(OnnxRuntime):
    """The same graphs on the kernels of the op library."""

    name = "kernels"

    def _open(self, graph: Any, ids: list[str]) -> Runner:
        from export.runtime.execution import Execution
        from export.runtime.intermediates_runner import IntermediatesRunner
        from tests.helpers.op_library import real_library

        return IntermediatesRunner(graph, ids, execution=Execution("cpu", real_library(), ""))


class OpenVinoRuntime(OnnxRuntime):
    """The same graphs as standard ONNX, without custom ops, in OpenVINO in float32."""

    name = "openvino"

    def _open(self, graph: Any, ids: list[str]) -> Runner:
        from export.graph.expose_outputs import expose_outputs
        from export.graph.inline import inline_functions
        from tests.helpers.openvino_runner import OpenVinoRunner

        path = graph.folder / f"openvino-{len(list(graph.folder.glob('openvino-*')))}.onnx"
        path.write_bytes(expose_outputs(graph.model, ids))
        inline_functions(path, path)
        return OpenVinoRunner(path)
