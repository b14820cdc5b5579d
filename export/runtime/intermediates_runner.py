"""A part's ONNX graph in ONNX Runtime, with values inside it as outputs."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from export.graph.onnx_graph import OnnxGraph, open_graph
from export.runtime.execution import BODIES, Execution
from export.runtime.onnx_runner import float16_inputs
from export.runtime.runner import feed, running
from madtp.tasks.requests import Outputs, Runner, token_counts


class IntermediatesRunner:
    """A part's ONNX graph in ONNX Runtime; the `values` inside it are outputs too.

    Args:
        threads: of ONNX Runtime; None leaves the number to it.
        execution: of the graph.
    """

    def __init__(
        self, graph: OnnxGraph, values: Iterable[str], threads: int | None = None, execution: Execution = BODIES
    ) -> None:
        self._session = open_graph(graph, execution.session_options(threads), values, execution.providers)
        self._inputs = {value.name for value in self._session.get_inputs()}
        self._float16 = float16_inputs(self._session)
        self._outputs = [value.name for value in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        given = feed(inputs, temperature, self._inputs, self._float16)
        with running("ONNX Runtime cannot run a copy of the artifact whose intermediate values are outputs"):
            arrays = self._session.run(self._outputs, given)
        return {name: torch.from_numpy(array) for name, array in zip(self._outputs, arrays, strict=True)}


class KeptIdsRunner:
    """A part that keeps the source ids of its tokens, which are the outputs `names` of its runner.

    Attributes:
        ids: [sequences, tokens] int32 for each layer, from the latest call; in the packed layout those of all sequences
            end to end, [rows].
    """

    def __init__(self, runner: Runner, names: Sequence[str]) -> None:
        self._runner, self._names = runner, names
        self.ids: list[Tensor] = []

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        outputs = dict(self._runner.run(inputs, temperature))
        totals = [int(total) for counts in token_counts(outputs).values() for total in counts.sum(dim=0)]
        found = [outputs.pop(name) for name in self._names]
        # Where a layer has room for a number of rows, what is behind the last sequence is no token.
        self.ids = [ids if ids.dim() > 1 else ids[:total] for ids, total in zip(found, totals, strict=True)]
        return outputs
