"""Plots as SVG data URIs, for light and for dark pages. No pyplot: it keeps figures and settings of its own."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from export.bench.latency import summarize
from export.report.examples import data_uri

LABEL_ROWS = 4
BEYOND = 1.5  # times the slowest p90: where the axis ends, lest single calls press the rest together
POINTS = 60  # single calls drawn of each distribution
SETTINGS: Any = {"svg.hashsalt": "madtp", "font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
# What is drawn in the colour of text, lest it be black on black.
IN_TEXT = (
    *("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"),
    *(f"boxplot.{part}props.color" for part in ("box", "whisker", "cap")),
)


@dataclass(frozen=True)
class Palette:
    """Colours of a plot; `back` is the page's, which shows through."""

    text: str
    back: str
    dense: str
    pruned: str
    default: str

    def of(self, temperature: float, default: float) -> str:
        if temperature == 0:
            return self.dense
        return self.default if temperature == default else self.pruned


LIGHT = Palette("#1c1f24", "#ffffff", "#5f6673", "#2563eb", "#c2410c")
DARK = Palette("#e6e8eb", "#14171b", "#a3abb7", "#7aa7ff", "#fb923c")


@dataclass(frozen=True)
class Plot:
    """A plot for light pages and for dark ones, and its content in a sentence."""

    light: str
    dark: str
    alt: str


def temperature_name(temperature: float) -> str:
    """The label of a temperature."""
    return "dense (0)" if temperature == 0 else f"{temperature:g}"


def latency_plot(times: Mapping[float, Sequence[float]], default: float, call: str, gains: Mapping[float, str]) -> Plot:
    """Distributions of milliseconds by temperature: box to the quartiles, whiskers to p10 and p90, single calls.

    `call` labels the axis; `gains` are the speed-ups over dense, as text by temperature.
    """

    def draw(palette: Palette) -> Figure:
        figure = Figure((7, 1 + 0.6 * len(times)), layout="constrained")
        axes = figure.subplots()
        names = ["\n".join(filter(None, [temperature_name(tau), gains.get(tau, "")])) for tau in times]
        boxes = axes.bxp(
            [_box(name, values) for name, values in zip(names, times.values(), strict=True)],
            orientation="horizontal",
            showfliers=False,
            widths=0.5,
        )
        for place, (temperature, values) in enumerate(times.items(), start=1):
            colour = palette.of(temperature, default)
            boxes["medians"][place - 1].set(color=colour, linewidth=2.5)
            drawn = np.asarray(values[:POINTS])
            heights = place + 0.3 * np.sin(np.arange(len(drawn)) * 2.4)  # apart, and the same every time
            axes.plot(drawn, heights, ".", color=colour, alpha=0.45, markersize=5)
        limit = BEYOND * max(np.percentile(values, 90) for values in times.values())
        beyond = sum(value > limit for values in times.values() for value in values[:POINTS])
        label = f"{call}{f' ({beyond} slower ones are not drawn)' if beyond else ''}"
        axes.set(xlabel=label, ylabel="temperature", xlim=(0, limit))
        axes.tick_params(axis="y", labelsize=9)
        axes.invert_yaxis()
        return figure

    medians = ", ".join(
        f"{temperature_name(temperature)}: {summarize(values).p50:.2f} ms"
        + (f" (dense / pruned {gains[temperature]})" if temperature in gains else "")
        for temperature, values in times.items()
    )
    return _plot(draw, f"Latency by temperature. p50: {medians}.")


def tokens_plot(encoder: str, counts: NDArray[np.int64], dense: NDArray[np.int64]) -> Plot:
    """Tokens after each layer over samples [samples, layers]: mean, quartiles, range; dense ones beside it."""
    layers = np.arange(1, counts.shape[1] + 1)
    mean = counts.mean(axis=0)

    def draw(palette: Palette) -> Figure:
        figure = Figure((7, 3.4), layout="constrained")
        axes = figure.subplots()
        low, first, third, high = np.percentile(counts, [0, 25, 75, 100], axis=0)
        axes.fill_between(layers, low, high, color=palette.pruned, alpha=0.12, linewidth=0, label="fewest to most")
        axes.fill_between(layers, first, third, color=palette.pruned, alpha=0.3, linewidth=0, label="quartiles")
        axes.plot(layers, mean, "o-", color=palette.pruned, label="mean")
        axes.plot(layers, dense.mean(axis=0), "--", color=palette.dense, label="dense")
        axes.set(xlabel="layer", ylabel="tokens after it", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)  # beside what is drawn
        return figure

    shown = ", ".join(f"{value:.1f}" for value in mean)
    return _plot(draw, f"Tokens of the {encoder} encoder after each layer. Means: {shown}.")


def pareto_plot(
    costs: Mapping[float, float], times: Mapping[float, Sequence[float]], default: float, cost_name: str, call: str
) -> Plot:
    """Median latency (bars: p10 to p90) over what a request costs, one point a temperature."""

    def draw(palette: Palette) -> Figure:
        figure = Figure((7, 4), layout="constrained")
        axes = figure.subplots()
        ordered = sorted(times, key=lambda temperature: costs[temperature])
        for place, temperature in enumerate(ordered):
            found = summarize(times[temperature])
            spread = [[found.p50 - found.p10], [found.p90 - found.p50]]
            colour = palette.of(temperature, default)
            axes.errorbar(costs[temperature], found.p50, spread, fmt="o", color=colour, capsize=3, markersize=7)
            label = temperature_name(temperature) + (" (default)" if temperature == default else "")
            axes.annotate(
                label,
                (costs[temperature], found.p90),
                (costs[temperature], 0.97 - 0.07 * (place % LABEL_ROWS)),  # neighbours may be close
                textcoords=("data", "axes fraction"),
                arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.3},
                color=colour,
                fontsize=9,
                ha="center",
                va="top",
                bbox={"facecolor": palette.back, "edgecolor": "none", "pad": 0.5},
            )
        highest = max(summarize(values).p90 for values in times.values())
        furthest = max(costs[temperature] for temperature in times)
        limits = {"xlim": (0, 1.15 * furthest), "ylim": (0, 1.5 * highest)}  # room for the labels
        axes.set(xlabel=cost_name, ylabel=call, **limits)
        return figure

    points = ", ".join(f"{temperature_name(temperature)} at {costs[temperature]:.4g}" for temperature in times)
    return _plot(draw, f"p50 latency over {cost_name}, by temperature: {points}.")


def _box(name: str, milliseconds: Sequence[float]) -> dict[str, Any]:
    low, first, median, third, high = np.percentile(milliseconds, [10, 25, 50, 75, 90])
    return {"label": name, "whislo": low, "q1": first, "med": median, "q3": third, "whishi": high}


def _plot(draw: Callable[[Palette], Figure], alt: str) -> Plot:
    return Plot(_uri(draw, LIGHT), _uri(draw, DARK), alt)


def _uri(draw: Callable[[Palette], Figure], palette: Palette) -> str:
    buffer = io.BytesIO()
    settings: Any = {**SETTINGS, **dict.fromkeys(IN_TEXT, palette.text)}
    with mpl.rc_context(settings):
        draw(palette).savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return data_uri("image/svg+xml", buffer.getvalue())
