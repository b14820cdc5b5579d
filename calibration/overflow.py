"""How often a batch of independent requests needs more rows than there are: sums of what requests keep.

docs/calibration.md says why it is computed so.
"""

from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import fft, stats

MOST_DRAWS = 200_000  # batches that are drawn
MOST_PICKED = 2**25  # requests in all of them
LEAST_CHOOSING = 100  # drawn batches that may overflow, below which their share is too noisy to choose by
LEAST_SEEN = 10  # drawn batches that overflow, below which they do not tell which requests make them
CONFIDENCE = 0.95
SEED = 19

Rows = NDArray[np.int64]


def sum_tails(counts: Rows, batch: int) -> NDArray[np.float64]:
    """P(S >= s) for s = 0 ... batch * max + 1, S being the sum of `batch` independent draws from `counts` [n].

    The distribution of the counts convolved with itself, exactly: by its spectrum, within 1e-12.
    """
    most = batch * int(counts.max())
    size = fft.next_fast_len(most + 1, real=True)
    spectrum = fft.rfft(np.bincount(counts) / len(counts), size) ** batch
    distribution = fft.irfft(spectrum, size)[: most + 1].clip(min=0)
    tails = np.append(np.cumsum(distribution[::-1])[::-1], 0.0)
    return np.minimum(tails / tails[0], 1.0)


def sum_quantile(tails: NDArray[np.float64], level: float) -> int:
    """The least c with P(S > c) <= level."""
    return int(np.argmax(tails[1:] <= level))


@dataclass(frozen=True)
class Share:
    """A share of batches, and between what it lies with 95 % confidence.

    Attributes:
        batches: as many independent ones would say as much.
    """

    share: float
    low: float
    high: float
    batches: float

    def to_json(self) -> dict[str, float]:
        """Evidence for a file."""
        return asdict(self)


def clopper_pearson(share: float, batches: float) -> Share:
    """The exact interval of a share of independent batches; of an effective number of them (Korn and Graubard 1998)."""
    seen, rest = share * batches, (1 - share) * batches
    beyond = (1 - CONFIDENCE) / 2
    low = float(stats.beta.ppf(beyond, seen, rest + 1)) if seen > 0 else 0.0
    high = float(stats.beta.ppf(1 - beyond, seen + 1, rest)) if rest > 0 else 1.0
    return Share(share, low, high, batches)


def batches_to_show(overflow: float) -> int:
    """Independent batches, none of which overflows, whose interval ends at `overflow`."""
    return int(np.ceil(np.log((1 - CONFIDENCE) / 2) / np.log1p(-overflow)))


@dataclass(frozen=True)
class Draws:
    """Batches drawn at random, with a fixed seed, from measured requests.

    Attributes:
        rows: [n, layers], what each request keeps.
        picked: [draws, batch] int32, the requests of each. Batches of one are not drawn: every request is one.
        sums: [draws, layers], what each batch needs.
    """

    rows: Rows
    picked: NDArray[np.int32]
    sums: Rows

    @classmethod
    def of(cls, rows: Rows, batch: int) -> "Draws":
        """Batches of `batch` requests."""
        if batch == 1:
            return cls(rows, np.arange(len(rows), dtype=np.int32)[:, None], rows)
        draws = max(min(MOST_DRAWS, MOST_PICKED // batch), 1)
        generator = np.random.default_rng((SEED, batch, len(rows)))
        picked = generator.integers(len(rows), size=(draws, batch), dtype=np.int32)
        sums = np.zeros((draws, rows.shape[1]), dtype=np.int64)
        for column in picked.T:
            sums += rows[column]
        return cls(rows, picked, sums)

    @property
    def batch(self) -> int:
        """Requests of one."""
        return self.picked.shape[1]

    @cached_property
    def tails(self) -> list[NDArray[np.float64]]:
        """`sum_tails` of every layer."""
        return [sum_tails(layer, self.batch) for layer in self.rows.T]

    def level(self, overflow: float) -> float:
        """The largest level at which no more than `overflow` of the batches exceed the quantile of any layer.

        Between `overflow` divided by the number of layers, which always suffices, and `overflow`. A batch exceeds the
        quantiles at a level where the least of its layers' P(S >= s) is no more than the level (Westfall and Young's
        single-step minP), so the level is a quantile of these.
        """
        enough = overflow / self.sums.shape[1]
        allowed = int(overflow * len(self.sums))
        if self.batch > 1 and allowed < LEAST_CHOOSING:
            return enough
        least = np.min([tails[sums] for tails, sums in zip(self.tails, self.sums.T, strict=True)], axis=0)
        joint = np.nextafter(np.partition(least, allowed)[allowed], 0.0)
        return float(np.clip(joint, enough, overflow))

    def quantiles(self, level: float) -> list[int]:
        """Of every layer's sum."""
        return [sum_quantile(tails, level) for tails in self.tails]

    def overflow(self, capacities: list[int]) -> Share:
        """Share of the batches that exceed the capacity of any layer.

        Drawing many batches says no more about other requests than the n measured ones do. They make n / batch
        independent batches, and as much the share says at the least (Hoeffding 1963). Where many overflow, its
        variance is estimated by the infinitesimal jackknife (Efron 2014), from how often each request is among those.
        """
        requests, batch = len(self.rows), self.batch
        beyond = np.any(self.sums > np.array(capacities), axis=1)
        share, batches = float(beyond.mean()), requests / batch
        if batch > 1 and LEAST_SEEN <= beyond.sum() <= len(beyond) - LEAST_SEEN:
            times = np.bincount(self.picked[beyond].ravel(), minlength=requests) / len(beyond)
            variance = float(np.square(times - share * batch / requests).sum())
            batches = float(np.clip(share * (1 - share) / variance, batches, requests))
        return clopper_pearson(share, batches)
