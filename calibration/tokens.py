"""Token statistics: how many tokens each encoder layer keeps of one request, as a distribution over real samples.

TensorRT tunes a layer for one size. With these numbers that is the size that really occurs.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from madtp.errors import OutputError, TokensError
from madtp.files.outputs import check_outputs, json_kind, write_output
from madtp.files.versioned import read_versioned
from madtp.models.config import BlipConfig, ClipConfig
from madtp.models.parts import Part
from madtp.tasks.requests import count_tokens, torch_runners

SCHEMA_VERSION = 1
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
TOKENS = json_kind("a file of token statistics", "schema", "checkpoint_sha256", "samples", "encoders")
SAVE_EVERY = 25  # samples, where collecting can be resumed
MAKE = "Make them with `python -m calibration tokens`."


@dataclass(frozen=True)
class Source:
    """What was run over what; two files with the same source hold the same distribution.

    Attributes:
        data_sha256: of their index, None where there is no such file.
    """

    checkpoint_sha256: str
    task: str
    temperature: float
    data: str
    data_sha256: str | None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Source":
        """Of a file's content; raises KeyError, TypeError, ValueError where it is not in there."""
        return cls(
            str(content["checkpoint_sha256"]),
            str(content["task"]),
            float(content["temperature"]),
            str(content["data"]),
            content["data_sha256"],
        )


@dataclass
class TokenStatistics:
    """Distributions of token counts, class token included.

    Attributes:
        layers: encoder -> a histogram {tokens: requests} for each layer, in order.
    """

    source: Source
    samples: int = 0
    layers: dict[str, list[Counter[int]]] = field(default_factory=dict)

    def add(self, outputs: Mapping[str, Tensor]) -> None:
        """Count one request: counts by encoder, [sequences, layers] int32, batch 1."""
        for name, counts in outputs.items():
            histograms = self.layers.setdefault(name, [Counter() for _ in counts[0]])
            for histogram, count in zip(histograms, counts.amax(dim=0).tolist(), strict=True):
                histogram[count] += 1
        self.samples += 1

    def quantile(self, encoder: str, layer: int, share: float) -> int:
        """The least count that at least `share` of the requests do not exceed."""
        histogram = self.layers[encoder][layer]
        seen = 0
        for count in sorted(histogram):
            seen += histogram[count]
            if seen >= share * self.samples:
                return count
        return max(histogram)

    def usual_tokens(self, encoder: str, batch: int) -> list[int]:
        """For each layer, the median of the largest count among `batch` requests: what a batch of them runs with.

        The largest of b independent draws is below the q-quantile with probability q^b, so its median is the
        quantile at 0.5^(1/b).
        """
        share = math.pow(0.5, 1 / batch)
        return [self.quantile(encoder, layer, share) for layer in range(len(self.layers[encoder]))]

    def to_json(self) -> dict[str, Any]:
        """The file's content."""
        return {
            "schema": SCHEMA_VERSION,
            **asdict(self.source),
            "samples": self.samples,
            "encoders": {
                name: [self._layer(name, index) for index in range(len(layers))] for name, layers in self.layers.items()
            },
        }

    def _layer(self, encoder: str, layer: int) -> dict[str, Any]:
        histogram = self.layers[encoder][layer]
        return {
            "layer": layer,
            "mean": round(float(np.average(list(histogram), weights=list(histogram.values()))), 3),
            "quantiles": {f"{share:g}": self.quantile(encoder, layer, share) for share in QUANTILES},
            "histogram": {str(count): histogram[count] for count in sorted(histogram)},
        }


def read_tokens(path: Path) -> TokenStatistics:
    """Token statistics from a file.

    Raises:
        TokensError: missing, not JSON, of another schema, or inconsistent.
    """
    content = read_versioned(path, "the token statistics", (SCHEMA_VERSION,), TokensError, MAKE)
    try:
        source = Source.from_json(content)
        layers = {
            str(name): [
                Counter({int(count): int(requests) for count, requests in entry["histogram"].items()})
                for entry in entries
            ]
            for name, entries in content["encoders"].items()
        }
        statistics = TokenStatistics(source, int(content["samples"]), layers)
        complete = statistics.samples >= 0 and all(
            histogram.total() == statistics.samples and all(count >= 1 for count in histogram)
            for histograms in layers.values()
            for histogram in histograms
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TokensError(f"the token statistics '{path}' are malformed", repr(error), MAKE) from error
    if not complete:
        raise TokensError(
            f"the token statistics '{path}' contradict themselves",
            "A layer's histogram does not add up to the number of samples.",
            MAKE,
        )
    return statistics


def write_tokens(statistics: TokenStatistics, path: Path) -> None:
    """Write the file in one step.

    Raises:
        OutputError: it cannot be written, or is there already and holds something else.
    """
    write_output(path, json.dumps(statistics.to_json(), indent=1) + "\n", TOKENS)


def check_source(found: Source, wanted: Source, path: Path) -> None:
    """Refuse statistics of another checkpoint, task or temperature.

    Raises:
        TokensError: naming what differs.
    """
    if found.checkpoint_sha256 != wanted.checkpoint_sha256 or found.task != wanted.task:
        raise TokensError(
            f"the token statistics '{path}' are of another checkpoint",
            f"Theirs has sha256 {found.checkpoint_sha256[:16]}..., this one {wanted.checkpoint_sha256[:16]}...",
            "Make them for this checkpoint: python -m calibration tokens --ckpt ... --data ... -o tokens.json",
        )
    if found.temperature != wanted.temperature:
        raise TokensError(
            f"the token statistics '{path}' were taken at temperature {found.temperature:g}",
            f"Here it is {wanted.temperature:g}, which keeps another number of tokens.",
            "Give the same --temperature to both.",
        )


def collect_resumable(
    config: BlipConfig | ClipConfig,
    parts: Mapping[str, Part],
    requests: Sequence[Callable[[], Mapping[str, Tensor]]],
    source: Source,
    path: Path,
    on_sample: Callable[[int], None],
    show: Callable[[TokenStatistics], None] = lambda _: None,
) -> TokenStatistics:
    """Statistics of requests (inputs of `run_request`, batch 1 each) at the source's temperature.

    They are written to `path` at the end and, on the way, to a partial file that a later run goes on from.

    Args:
        requests: functions that read one request each, so that images are decoded when their turn comes.
        path: the file to write; `<path>.part` beside it holds what was counted so far.
        show: given the statistics before the file is written, which may fail.

    Raises:
        TokensError: the partial file is of another checkpoint, temperature or data.
        OutputError: a file cannot be written.
    """
    partial, runners = partial_path(path), torch_runners(parts)
    check_outputs([(path, TOKENS)], ())
    statistics = _resume(partial, source, len(requests))
    on_sample(statistics.samples)
    try:
        while statistics.samples < len(requests):
            statistics.add(count_tokens(config, runners, requests[statistics.samples](), source.temperature))
            on_sample(statistics.samples)
            if statistics.samples % SAVE_EVERY == 0:
                with suppress(OutputError):  # raised at the end, if there is no room then either
                    write_tokens(statistics, partial)
    except BaseException:
        if statistics.samples:
            write_tokens(statistics, partial)
        raise
    try:
        show(statistics)
    finally:  # a closed pipe is no reason not to write
        write_tokens(statistics, path)
    partial.unlink(missing_ok=True)
    return statistics


def partial_path(path: Path) -> Path:
    """Where a run that was cut short leaves what it counted."""
    return path.with_name(f"{path.name}.part")


def _resume(partial: Path, source: Source, available: int) -> TokenStatistics:
    if not partial.exists():
        return TokenStatistics(source)
    statistics = read_tokens(partial)
    check_source(statistics.source, source, partial)
    if statistics.source != source or statistics.samples > available:
        raise TokensError(
            f"the partial token statistics '{partial}' are of other data",
            f"They are of {statistics.source.data}.",
            "Delete the file to begin anew, or name another output.",
        )
    return statistics
