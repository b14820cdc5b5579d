"""How much a precision below float32 may cost."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CostBounds:
    """Beyond these an artifact is not the model any more.

    They tell damage from rounding and careful quantization, which are well within, even on few samples.

    Attributes:
        agreement: least share of requests with the same answer, near ties apart.
        jaccard: least mean of |kept by both| / |kept by either| over requests and layers.
        tokens: most that the mean number of tokens may change, as a share.
    """

    agreement: float = 0.9
    jaccard: float = 0.8
    tokens: float = 0.1
