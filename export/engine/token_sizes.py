"""Token counts that TensorRT is told for each layer: from a file, measured on samples, or guessed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from calibration.tokens import Source, TokenStatistics
from export.artifact.manifest import Tokens, TokenSizes
from madtp.data.samples import Config, SampleSet
from madtp.errors import TokensError
from madtp.models.config import BlipConfig, ClipConfig
from madtp.models.parts import SOURCE, Part, encoder_layers
from madtp.tasks.requests import Outputs

TokenSource = Literal["file", "measured", "guessed"]


@dataclass(frozen=True)
class TokenPlan:
    """Token sizes of every layer, and where they come from.

    Attributes:
        sizes: encoder -> a TokenSizes for each layer.
        source: "file", "measured", or "guessed" (on samples that say nothing about this model).
        samples: number of requests that were counted.
    """

    sizes: Mapping[str, Sequence[TokenSizes]]
    source: TokenSource
    origin: str
    samples: int

    def usual_left(self, part: Part) -> int | None:
        """Tokens that usually reach a part whose input is what the last encoder before it left; None: its own do."""
        if not any(SOURCE in spec.shape for spec in part.inputs):
            return None
        before = [name for name in self.sizes if name not in part.encoders]
        return self.sizes["vision" if "match" in self.sizes else before[-1]][-1].opt

    def entry(self, part: Part) -> Tokens:
        """The manifest's `tokens` entry of one part."""
        sizes = {name: tuple(self.sizes[name]) for name in part.encoders}
        return Tokens(self.source, self.origin, self.samples, sizes)


def depths(parts: Mapping[str, Part]) -> dict[str, int]:
    """The pruned encoders of all parts in the order in which they run, and their layers."""
    return {encoder: layer + 1 for encoder, layer in encoder_layers(parts)}


def largest_tokens(config: BlipConfig | ClipConfig, longest_text: int, encoder: str) -> int:
    """Tokens of an encoder that prunes nothing: an engine takes a temperature of zero at any time."""
    if encoder == "vision":
        return config.vision_tokens
    return config.context_length if isinstance(config, ClipConfig) else longest_text


def check_encoders(statistics: TokenStatistics, parts: Mapping[str, Part], path: Path) -> None:
    """Refuse statistics that do not cover the model's layers.

    Raises:
        TokensError: naming the file.
    """
    found = {name: len(layers) for name, layers in statistics.layers.items()}
    if found != depths(parts) or statistics.samples < 1:
        raise TokensError(
            f"the token statistics '{path}' do not cover the model",
            f"They have {found} layers of {statistics.samples} samples, the model has {depths(parts)}.",
            "Make them again: python -m calibration tokens.",
        )


def token_plan(
    config: Config,
    layers: Mapping[str, int],
    samples: SampleSet,
    statistics: TokenStatistics | None,
    count: Callable[[], Iterable[Outputs]],
    *,
    temperature: float,
    checkpoint_sha256: str,
    longest_text: int,
    usual_batch: int,
    on_detail: Callable[[str], None],
) -> TokenPlan:
    """Token sizes for an export, from its token statistics, else measured on its samples.

    Args:
        layers: of each pruned encoder, in the order in which they run.
        samples: counted on without statistics.
        count: gives the token counts of every sample alone, by encoder; not called where they are not needed.
        temperature: the default; zero prunes nothing.
        longest_text: maximum tokens per text.
        usual_batch: requests per call that the engine is tuned for.
    """
    largest = {name: largest_tokens(config, longest_text, name) for name in layers}
    source: TokenSource = "file"
    if statistics is None:
        source = "measured" if samples.fits else "guessed"
        if temperature > 0:
            on_detail("measuring token counts")
            statistics = TokenStatistics(Source(checkpoint_sha256, config.task, temperature, samples.origin, None))
            for counts in count():
                statistics.add(counts)
    if statistics is None:  # a dense default: every layer keeps everything
        dense = {name: [largest[name]] * depth for name, depth in layers.items()}
        return _plan(dense, largest, "measured", "temperature 0 prunes nothing", 0)
    usual = {name: statistics.usual_tokens(name, usual_batch) for name in largest}
    return _plan(usual, largest, source, statistics.source.data, statistics.samples)


def _plan(
    usual: Mapping[str, Sequence[int]], largest: Mapping[str, int], source: TokenSource, origin: str, samples: int
) -> TokenPlan:
    sizes = {
        name: [TokenSizes(min(count, largest[name]), largest[name]) for count in counts]
        for name, counts in usual.items()
    }
    return TokenPlan(sizes, source, origin, samples)
