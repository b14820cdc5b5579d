"""What torch gives for the samples of an export: token sizes, GFLOPs and the comparison share it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import NamedTuple

import torch

from export.artifact.manifest import Gflops
from export.build.gflops import FLOP_SAMPLES, model_gflops
from export.build.prepare import Prepared
from export.build.traced_part import TracedPart
from export.validate.comparator import run_batch
from export.validate.model_runner import Inputs, TorchModelRunner
from export.validate.run_result import LayerTokens, RunResult
from export.validate.tolerances import tolerance_of
from madtp.checkpoint.loading import Model
from madtp.data.samples import Config, SampleSet, collate
from madtp.tasks.requests import COUNTS_SUFFIX, Outputs

PAIRED = ("sim",)  # outputs of a request that the others of its batch are part of


class Batch(NamedTuple):
    """Samples, by index, that run together at a temperature; zero is dense."""

    samples: tuple[int, ...]
    temperature: float

    @property
    def requests(self) -> list["Batch"]:
        """Each of its samples alone."""
        return [Batch((index,), self.temperature) for index in self.samples]


class TorchResults:
    """Results of torch by batch, each made once and kept when the model is not in memory any more.

    Dense, no request depends on the others of its batch: such a batch is not run where the results of its requests
    alone are there and can be joined. Not so where activations are quantized: they share a scale.

    Args:
        context: of a model, the context in which it computes weight products as the artifact does; None: plainly.
        counts: count GFLOPs on the way: a float32 model that computes plainly, without a margin.
    """

    def __init__(
        self,
        load_model: Callable[[], Model],
        dtype: torch.dtype,
        config: Config,
        samples: SampleSet,
        context: Callable[[Model], Callable[[], AbstractContextManager[None]]] | None = None,
        *,
        counts: bool = True,
    ) -> None:
        self._load_model, self._dtype, self._config, self._samples = load_model, dtype, config, samples
        self._context, self._counts = context, counts
        self._results: dict[Batch, RunResult] = {}
        self._gflops: dict[Batch, float] = {}
        self._runner: TorchModelRunner | None = None

    def inputs(self, batch: Batch) -> Inputs:
        """The batch's requests, collated."""
        return collate([self._samples.requests[index] for index in batch.samples], self._config)

    def result(self, batch: Batch) -> RunResult:
        """The result of a batch, as `run_batch` gives it; a joined one is without token counts of requests."""
        if batch not in self._results:
            self._results[batch] = self._joined(batch) or self._run(batch)
        return self._results[batch]

    def outputs_alone(self, temperature: float) -> list[Outputs]:
        """The outputs of every sample alone."""
        return [self.result(Batch((index,), temperature)).outputs for index in range(len(self._samples))]

    def mean_gflops(self, temperature: float) -> float:
        """As `export.build.gflops.mean_gflops`."""
        batches = Batch(tuple(range(len(self._samples)))[:FLOP_SAMPLES], temperature).requests
        for batch in batches:
            self.result(batch)
        return sum(self._gflops[batch] for batch in batches) / len(batches)

    def gflops(self, temperature: float) -> Gflops:
        """Of the float32 model, dense and at a temperature; counted anew where another model was run."""
        if not self._counts:
            return model_gflops(self._load_model(), self._samples, temperature)
        return Gflops(self.mean_gflops(0.0), self.mean_gflops(temperature))

    def free_model(self) -> None:
        """Let go of the model; it is loaded again for what has no result yet."""
        self._runner = None

    def _joined(self, batch: Batch) -> RunResult | None:
        alone = [self._results[request] for request in batch.requests if request in self._results]
        joins = batch.temperature <= 0 and self._context is None and len(alone) == len(batch.samples)
        return joined_results(alone) if joins else None

    def _run(self, batch: Batch) -> RunResult:
        if self._runner is None:
            model = self._load_model()
            context = nullcontext if self._context is None else self._context(model)
            self._runner = TorchModelRunner("torch", model, self._dtype, context, counts=self._counts)
        result = run_batch(self._runner, self.inputs(batch), batch.temperature)
        self._gflops[batch] = self._runner.gflops
        return result


def torch_results(prepared: Prepared, traced: Mapping[str, TracedPart]) -> TorchResults:
    """Torch in the artifact's precision."""
    options, context = prepared.options, None
    if prepared.quantization is not None:
        quantized = frozenset[str]().union(*(part.quantized for part in traced.values()))
        context = replace(prepared.quantization.quantizer, products=quantized).in_torch
    counts = options.precision == "fp32" and not options.keep_margin
    dtype = tolerance_of(options.precision).dtype
    return TorchResults(prepared.load_model, dtype, prepared.config, prepared.samples, context, counts=counts)


def joined_results(alone: Sequence[RunResult]) -> RunResult | None:
    """A dense batch's result, without token counts of requests, from those of its requests alone.

    None where that is not their rows one below the other: texts of different lengths, or outputs of pairs.
    """
    outputs: Outputs = {}
    for name, first in alone[0].outputs.items():
        if name.endswith(COUNTS_SUFFIX):
            continue
        rows = [result.outputs[name] for result in alone]
        if name in PAIRED or any(row.shape != first.shape for row in rows):
            return None
        outputs[name] = torch.cat(rows)
    # Texts are padded to the longest, and a layer that prunes nothing leaves what entered it.
    layers = [
        LayerTokens(same[0].encoder, same[0].index, max(layer.tokens for layer in same))
        for same in zip(*(result.layers for result in alone), strict=True)
    ]
    return RunResult(outputs, layers)
