"""How many tokens TensorRT is told that each layer keeps: from a file, measured on samples, or guessed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from calibration.tokens import Source, TokenStatistics, collect
from export.engine import TokenSizes
from export.options import Range
from madtp.config import NlvrConfig
from madtp.errors import TokensError
from madtp.nlvr import NlvrModel
from madtp.samples import SampleSet, collate


class Export(Protocol):
    """What is read of `export.pipeline.Prepared`."""

    @property
    def config(self) -> NlvrConfig: ...
    @property
    def batch(self) -> Range: ...
    @property
    def text(self) -> Range: ...
    @property
    def temperature(self) -> float: ...
    @property
    def samples(self) -> SampleSet: ...
    @property
    def checkpoint(self) -> Mapping[str, Any]: ...
    @property
    def tokens(self) -> TokenStatistics | None: ...
    def load_model(self) -> NlvrModel: ...


class Details(Protocol):
    """What is used of `export.pipeline.Progress`."""

    def detail(self, text: str) -> None: ...


@dataclass(frozen=True)
class TokenPlan:
    """Token sizes of every layer, and where they come from.

    Attributes:
        sizes: encoder -> a TokenSizes for each layer.
        source: "file", "measured", or "guessed" (on samples that say nothing about this model).
        origin: in words.
        samples: requests that were counted.
    """

    sizes: Mapping[str, Sequence[TokenSizes]]
    source: str
    origin: str
    samples: int

    def to_manifest(self) -> dict[str, Any]:
        """The manifest's `tokens` entry."""
        sizes = {name: [[size.opt, size.max] for size in layers] for name, layers in self.sizes.items()}
        return {"source": self.source, "origin": self.origin, "samples": self.samples, "opt_max": sizes}


def encoder_layers(config: NlvrConfig) -> dict[str, int]:
    """The pruned encoders in the order in which they run, and their layers."""
    return {"vision": config.vit_depth, "text": config.text_layers}


def check_encoders(statistics: TokenStatistics, config: NlvrConfig, path: Path) -> None:
    """Refuse statistics that do not cover the model's layers.

    Raises:
        TokensError: naming the file.
    """
    found = {name: len(layers) for name, layers in statistics.layers.items()}
    if found != encoder_layers(config) or statistics.samples < 1:
        raise TokensError(
            f"the token statistics '{path}' do not cover the model",
            f"They have {found} layers of {statistics.samples} samples, the model has {encoder_layers(config)}.",
            "Make them again: python -m calibration tokens.",
        )


def token_plan(prepared: Export, progress: Details) -> TokenPlan:
    """Token sizes for an export: of its file of statistics, else measured on its samples.

    The largest size of a layer is that of the dense model: an engine takes a temperature of zero at any time.
    """
    largest = {"vision": (prepared.config.image_size // prepared.config.patch_size) ** 2 + 1, "text": prepared.text.max}
    statistics, source = prepared.tokens, "file"
    if statistics is None:
        samples = prepared.samples
        source = "guessed" if samples.vocabulary_sha256 is None else "measured"
        if prepared.temperature > 0:
            progress.detail("measuring token counts")
            here = Source(prepared.checkpoint["sha256"], "nlvr", prepared.temperature, samples.origin, None)
            inputs = (collate([request], prepared.config) for request in samples.requests)
            statistics = collect(prepared.load_model(), inputs, here)
    if statistics is None:  # a dense default: every layer keeps everything
        dense = {name: [largest[name]] * layers for name, layers in encoder_layers(prepared.config).items()}
        return _plan(dense, largest, "measured", "temperature 0 prunes nothing", 0)
    usual = {name: statistics.usual_tokens(name, prepared.batch.opt) for name in largest}
    return _plan(usual, largest, source, statistics.source.data, statistics.samples)


def _plan(
    usual: Mapping[str, Sequence[int]], largest: Mapping[str, int], source: str, origin: str, samples: int
) -> TokenPlan:
    sizes = {
        name: [TokenSizes(min(count, largest[name]), largest[name]) for count in counts]
        for name, counts in usual.items()
    }
    return TokenPlan(sizes, source, origin, samples)
