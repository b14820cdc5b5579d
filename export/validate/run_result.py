"""What a run gave: its outputs, and the tokens that each layer kept."""

from dataclasses import dataclass

from torch import Tensor

from madtp.ops.recorder import CompactRecord
from madtp.tasks.requests import Outputs


@dataclass(frozen=True)
class LayerTokens:
    """The tokens that one pruned layer kept.

    Attributes:
        tokens: their number, class token included.
        source_ids: [sequences, tokens] int32, or of a packed batch those of all sequences end to end, [rows] int32;
            None where they are not visible, or at temperature zero.
        record: scores and threshold; torch alone has them.
    """

    encoder: str
    index: int
    tokens: int
    source_ids: Tensor | None = None
    record: CompactRecord | None = None


@dataclass(frozen=True)
class RunResult:
    """Outputs of a batch of requests by name, and every pruned layer in the order in which they run."""

    outputs: Outputs
    layers: list[LayerTokens]
