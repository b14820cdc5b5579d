"""What is timed: cases, the calls of each, and the tokens that these keep."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from export.artifact.manifest import Manifest
from export.engine.profile import batch_and_text
from export.errors import OptionError
from export.runtime.checked import finite_runners
from madtp.data.samples import Config, SampleSet, collate
from madtp.tasks.requests import Outputs, Runners, run_request, token_counts

DEMO_SAMPLES = 24
MAX_CALLS = 64  # different calls of a case; further samples are not used

Inputs = dict[str, Tensor]


@dataclass(frozen=True, order=True)
class Case:
    """A temperature, and a batch: the number of requests per call."""

    temperature: float
    batch: int

    def __str__(self) -> str:
        kind = "dense" if self.temperature == 0 else f"temperature {self.temperature!r}".removesuffix(".0")
        return f"{kind}, batch {self.batch}"


@dataclass(frozen=True)
class Kept:
    """Tokens that each call of a case keeps."""

    last: dict[str, list[float]]  # by encoder, mean tokens of a sequence after the last layer
    total: list[float]  # tokens per request, summed over sequences and layers of all encoders


def kept_of(counts: Sequence[Outputs], batch: int) -> Kept:
    """What calls of `batch` requests keep, given the token counts [sequences, layers] of each call by encoder."""
    last: dict[str, list[float]] = {}
    for call in counts:
        for encoder, tokens in call.items():
            last.setdefault(encoder, []).append(float(tokens[:, -1].double().mean()))
    return Kept(last, [sum(int(tokens.sum()) for tokens in call.values()) / batch for call in counts])


def cases_of(manifest: Manifest, temperatures: Sequence[float], batches: Sequence[int]) -> list[Case]:
    """Dense and pruned, for every batch; by default the manifest's temperature and the profile's opt.

    Raises:
        OptionError: a temperature below zero or not finite, or a batch outside the profile.
    """
    built, _ = batch_and_text(manifest)
    for batch in batches:
        if not built.min <= batch <= built.max:
            raise OptionError(
                f"--batch {batch} is outside the profile",
                f"The artifact was built for {built.min} to {built.max} requests per call.",
                "Give a number in that range, or export again with another --batch.",
            )
    for temperature in temperatures:
        if not 0 <= temperature <= torch.finfo(torch.float32).max:
            raise OptionError(
                f"--temperature is {temperature}", "It has to be a finite number of zero or more.", "E.g. 0.5."
            )
    wanted = {0.0, *(temperatures or [manifest.temperature])}
    return [Case(tau, batch) for batch in sorted(set(batches or [built.opt])) for tau in sorted(wanted)]


def samples_sha256(samples: SampleSet) -> str:
    """Hash of all pixels and ids: two series compare only if they are of the same requests."""
    digest = hashlib.sha256()
    for request in samples.requests:
        for image in request.images:
            digest.update(image.numpy().tobytes())
        digest.update(repr(request.ids).encode())
    return digest.hexdigest()


def calls_of(samples: SampleSet, config: Config, batch: int) -> list[Inputs]:
    """The calls that a case makes over and over: samples in order, wrapping around."""
    count = len(samples)
    calls = min(MAX_CALLS, -(-count // batch))
    rows = [[samples.requests[(call * batch + i) % count] for i in range(batch)] for call in range(calls)]
    return [collate(requests, config) for requests in rows]


def request_call(config: Config, runners: Runners, calls: Sequence[Inputs], case: Case) -> Callable[[int], object]:
    """A function that makes the call of a round, given the round's number."""
    return lambda number: run_request(config, runners, calls[number % len(calls)], case.temperature)


def probe(config: Config, runners: Runners, calls: Sequence[Inputs], case: Case) -> tuple[Kept, dict[str, float]]:
    """Make every call of a case once, untimed.

    Returns:
        Tokens, and how often a call runs each part on average: a decoder runs once for every id that it generates.

    Raises:
        InputError: an output is not finite, or the artifact was not built for these inputs.
    """
    counts = []
    runs = dict.fromkeys(runners, 0)
    for number, inputs in enumerate(calls):
        checked = finite_runners(runners, f"{case}, call {number}")
        counts.append(token_counts(run_request(config, checked, inputs, case.temperature)))
        for part, runner in checked.items():
            runs[part] += runner.runs
    return kept_of(counts, case.batch), {part: count / len(calls) for part, count in runs.items()}
