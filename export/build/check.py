"""The check after a build: parity at the default temperature and dense, GFLOPs and latency of both."""

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from export.bench.environment import Neighbours, activity, machine, warnings
from export.bench.latency import Latency, ratio_of, summarize, time_rounds
from export.bench.statistics import Ratio
from export.engine.range import Range
from export.validate.parity import ParityResult, compare
from madtp.data.samples import SampleSet, collate
from madtp.models.config import BlipConfig, ClipConfig
from madtp.models.parts import Part
from madtp.ops.flops import count_call
from madtp.tasks.requests import Runners, run_request, torch_runners

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
        speed_ups: dense over pruned latency, "torch" and "artifact".
        caveats: what makes latencies worth less, a sentence each.
    """

    samples: str
    parity: list[ParityResult]
    gflops: dict[str, float]
    latency: dict[str, Latency]
    validated: str = "artifact"
    speed_ups: dict[str, Ratio] = field(default_factory=dict)
    caveats: list[str] = field(default_factory=list)

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
            "latency": {name: _latency_to_json(latency) for name, latency in self.latency.items()},
            "machine": "; ".join([f"{platform.machine()}, {torch.get_num_threads()} threads", *self.caveats]),
        }


def _latency_to_json(latency: Latency) -> dict[str, float]:
    return {"median_ms": latency.p50, "p10_ms": latency.p10, "p90_ms": latency.p90, "calls": latency.calls}


def validate_runners(
    config: BlipConfig | ClipConfig,
    parts: Mapping[str, Part],
    candidate: Runners,
    samples: SampleSet,
    temperature: float,
    batch: Range,
    on_detail: Callable[[str], None],
) -> Validation:
    """Compare `candidate` with the model on all samples, and time both.

    Args:
        config: of the model.
        parts: of the torch model.
        candidate: runs the artifact's parts.
        samples: prepared requests.
        temperature: the default one; the dense model (zero) is always checked too.
        batch: of the artifact's profile.
        on_detail: told what is being done.
    """
    parity = []
    for tau in sorted({temperature, 0.0}, reverse=True):
        on_detail(f"comparing {len(samples)} samples at temperature {tau:g}")
        parity.append(compare(config, parts, candidate, samples, tau, batch))
    on_detail("counting GFLOPs")
    gflops = {
        "dense": mean_gflops(config, parts, samples, 0.0),
        "pruned": mean_gflops(config, parts, samples, temperature),
    }
    on_detail("timing")
    inputs = collate(samples.requests[: batch.min], config)
    reference = torch_runners(parts)
    here, before, neighbours = machine(None), activity(), Neighbours()
    times = time_rounds(
        {
            "torch dense": lambda: run_request(config, reference, inputs, 0.0),
            "artifact dense": lambda: run_request(config, candidate, inputs, 0.0),
            "torch pruned": lambda: run_request(config, reference, inputs, temperature),
            "artifact pruned": lambda: run_request(config, candidate, inputs, temperature),
        },
        seconds=LATENCY_SECONDS,
    )
    caveats = warnings(here, before, activity(), neighbours.share())
    speed_ups = {name: ratio_of(times[f"{name} dense"], times[f"{name} pruned"]) for name in ("torch", "artifact")}
    latency = {name: summarize(values) for name, values in times.items()}
    return Validation(samples.origin, parity, gflops, latency, speed_ups=speed_ups, caveats=caveats)


def mean_gflops(
    config: BlipConfig | ClipConfig, parts: Mapping[str, Part], samples: SampleSet, temperature: float
) -> float:
    """Mean GFLOPs of single requests; of a text that is written, as long as it became."""
    runners = torch_runners(parts)
    requests = samples.requests[:FLOP_SAMPLES]
    total = 0.0
    for request in requests:
        inputs = collate([request], config)
        total += count_call(partial(run_request, config, runners, inputs, temperature)).giga
    return total / len(requests)
