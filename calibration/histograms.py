"""Histograms of activations, and the ranges that they give: ONNX Runtime's collector, held to a bounded size."""

import math
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization.calibrate import HistogramCollector

BINS = 2048  # of a new histogram; it grows with the values
MOST_BINS = 8 * BINS  # beyond, neighbours are joined
ENTROPY_BINS = 512  # that the search for the least entropy looks at: its time grows with their square
QUANTIZED_BINS = 128
PERCENTILE = 99.99  # of the values that lie within the range
Range = tuple[float, float]
Histogram = tuple[NDArray[np.int64], NDArray[np.float64], Any, Any, Any]  # counts, edges, least, most, threshold


class Histograms:
    """One histogram a name, of all values that were added, symmetric around zero."""

    def __init__(self) -> None:
        self._collector = _collector("percentile")

    @property
    def names(self) -> list[str]:
        """Of which there are any."""
        return list(self._collector.histogram_dict)

    def add(self, name: str, values: NDArray[np.floating[Any]]) -> None:
        """Count finite values."""
        wide = values.astype(np.float64)  # where a first threshold of 1e-40 still has bins
        found: Histogram | None = self._collector.histogram_dict.get(name)
        if found is not None and found[4] > 0:
            most = max(float(np.abs(wide).max(initial=0)), float(found[4]))
            while 2 * most * len(found[0]) > 2 * found[4] * MOST_BINS:
                found = _halved(found)
            self._collector.histogram_dict[name] = found
        self._collector.collect_value({name: wide})

    def ranges(self) -> dict[str, dict[str, Range]]:
        """Of each name "minmax", "entropy" (least loss of information in 128 steps) and "percentile"."""
        full: Mapping[str, Histogram] = self._collector.histogram_dict
        search = _collector("entropy")
        search.histogram_dict = {name: _coarse(histogram) for name, histogram in full.items()}
        with redirect_stdout(StringIO()):  # ONNX Runtime prints what it does
            percentile, entropy = self._collector.compute_percentile(), search.compute_entropy()
        return {
            name: {
                "minmax": (float(histogram[2]), float(histogram[3])),
                "entropy": _within(entropy[name], histogram),
                "percentile": _within(percentile[name], histogram),
            }
            for name, histogram in full.items()
        }

    def to_json(self) -> dict[str, Any]:
        """What `from_json` goes on from."""
        return {
            name: {"counts": counts.tolist(), "threshold": float(threshold), "minmax": [float(least), float(most)]}
            for name, (counts, _, least, most, threshold) in self._collector.histogram_dict.items()
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Histograms":
        """Raises KeyError, TypeError, ValueError for anything else."""
        made = cls()
        for name, entry in content.items():
            counts, threshold = np.array(entry["counts"], dtype=np.int64), np.float64(entry["threshold"])
            least, most = map(np.float64, entry["minmax"])
            edges = np.histogram_bin_edges([], len(counts), (-threshold, threshold))
            made._collector.histogram_dict[name] = (counts, edges, least, most, threshold)
        return made


def _collector(method: str) -> Any:
    return HistogramCollector(method, False, BINS, QUANTIZED_BINS, PERCENTILE, "same")


def _halved(histogram: Histogram) -> Histogram:
    """With every two neighbours joined, zero staying an edge."""
    counts, _, least, most, threshold = histogram
    if len(counts) % 4:
        threshold = threshold * (len(counts) + 2) / len(counts)
        counts = np.pad(counts, 1)
    counts = counts.reshape(-1, 2).sum(axis=1)
    return counts, np.linspace(-threshold, threshold, len(counts) + 1), least, most, threshold


def _coarse(histogram: Histogram) -> Histogram:
    while len(histogram[0]) > max(ENTROPY_BINS, 2 * QUANTIZED_BINS):
        histogram = _halved(histogram)
    return histogram


def _within(found: Any, histogram: Histogram) -> Range:
    """A range no wider than the values, and with zero in it if they are on both sides of it."""
    least, most = float(histogram[2]), float(histogram[3])
    low, high = max(float(found[0]), least), min(float(found[1]), most)
    return (low, high) if low <= high and math.isfinite(low + high) else (least, most)
