"""How many tokens TensorRT is told that each layer keeps: from a file, measured on samples, or guessed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibration.tokens import Source, TokenStatistics, collect
from export.engine import TokenSizes
from madtp.config import NlvrConfig
from madtp.errors import TokensError
from madtp.samples import collate

if TYPE_CHECKING:
    from export.pipeline import Prepared, Progress


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


def token_plan(prepared: "Prepared", progress: "Progress") -> TokenPlan:
    """Token sizes for an export: of its file of statistics, else measured on its samples.

    The largest size of a layer is that of the dense model: an engine takes a temperature of zero at any time.
    """
    largest = {"vision": prepared.config.vision_tokens, "text": prepared.text.max}
    statistics, source = prepared.tokens, "file"
    if statistics is None:
        samples = prepared.samples
        source = "guessed" if samples.vocabulary_sha256 is None else "measured"
        if prepared.temperature > 0:
            progress.detail("measuring token counts")
            here = Source(
                prepared.checkpoint["sha256"], prepared.config.task, prepared.temperature, samples.origin, None
            )
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
