"""The check after a build: parity at the default temperature and dense, GFLOPs and latency of both."""

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from export.latency import Latency, interleave
from export.options import Range
from export.parity import ParityResult, compare
from export.runner import Runner, TorchRunner
from madtp.flops import count_flops
from madtp.nlvr import NlvrModel
from madtp.samples import SampleSet, collate

LATENCY_SECONDS = 6.0
FLOP_SAMPLES = 8


@dataclass
class Validation:
    """Everything that was measured of an artifact.

    Attributes:
        parity: at the default temperature, then dense where that differs.
        gflops: mean multiply-adds (1e9) a request, "dense" and "pruned".
        latency: of one call with the smallest batch, "torch dense", "torch pruned", "artifact dense", ...
        validated: "artifact", or "onnx" where the plan cannot be executed on this machine.
    """

    samples: str
    parity: list[ParityResult]
    gflops: dict[str, float]
    latency: dict[str, Latency]
    validated: str = "artifact"

    @property
    def passed(self) -> bool:
        """Parity holds at every temperature."""
        return all(result.passed for result in self.parity)

    def to_manifest(self) -> dict[str, Any]:
        """The manifest's `validation` entry; only written when it passed."""
        return {
            "artifact": "passed" if self.validated == "artifact" else "not run",
            "validated": self.validated,
            "samples": self.samples,
            "parity": [asdict(result) for result in self.parity],
            "gflops": self.gflops,
            "latency": {name: asdict(latency) for name, latency in self.latency.items()},
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        }


def validate_runner(
    model: NlvrModel,
    runner: Runner,
    samples: SampleSet,
    temperature: float,
    batch: Range,
    on_detail: Callable[[str], None],
) -> Validation:
    """Compare `runner` with `model` on all samples, and time both.

    Args:
        temperature: the default one; the dense model (zero) is always checked too.
        on_detail: told what is being done.
    """
    parity = []
    for tau in sorted({temperature, 0.0}, reverse=True):
        on_detail(f"comparing {len(samples)} samples at temperature {tau:g}")
        parity.append(compare(model, runner, samples, tau, batch))
    on_detail("counting GFLOPs")
    gflops = {"dense": mean_gflops(model, samples, 0.0), "pruned": mean_gflops(model, samples, temperature)}
    on_detail("timing")
    inputs = collate(samples.requests[: batch.min], model.config)
    torch_runner = TorchRunner(model)
    latency = interleave(
        {
            "torch dense": lambda: torch_runner.run(inputs, 0.0),
            "artifact dense": lambda: runner.run(inputs, 0.0),
            "torch pruned": lambda: torch_runner.run(inputs, temperature),
            "artifact pruned": lambda: runner.run(inputs, temperature),
        },
        seconds=LATENCY_SECONDS,
    )
    return Validation(samples.origin, parity, gflops, latency)


def mean_gflops(model: NlvrModel, samples: SampleSet, temperature: float) -> float:
    """Mean GFLOPs of single requests; dense ones depend on the text length alone and are counted once a length."""
    known: dict[int, float] = {}
    total = 0.0
    requests = samples.requests[:FLOP_SAMPLES]
    for request in requests:
        length = len(request.ids)
        if temperature > 0 or length not in known:
            known[length] = count_flops(model, collate([request], model.config), temperature).giga
        total += known[length]
    return total / len(requests)
