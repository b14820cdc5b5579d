"""What the commands of calibration print."""

from typing import Any

from rich.table import Table

from calibration.capacities import Capacities
from calibration.methods import METHODS
from calibration.overflow import Share
from calibration.ranges import RangeTable
from calibration.sensitivity import Place, Proposal
from calibration.temperature_file import TemperatureFile
from calibration.tokens import Source, TokenStatistics
from madtp.models.config import MAX_TEMPERATURE
from madtp.models.weight_products import weight_products


def statistics_table(statistics: TokenStatistics) -> Table:
    """Mean and quantiles of every layer."""
    table = Table(
        title=f"kept tokens per request, {statistics.samples} samples, temperature {statistics.source.temperature:g}"
    )
    for heading in ("encoder", "layer", "mean", "p5", "p50", "p95"):
        table.add_column(heading, justify="left" if heading == "encoder" else "right")
    for encoder, entries in statistics.to_json()["encoders"].items():
        for entry in entries:
            shares = (str(entry["quantiles"][share]) for share in ("0.05", "0.5", "0.95"))
            table.add_row(encoder, str(entry["layer"]), f"{entry['mean']:.1f}", *shares)
    return table


def ranges_table(table: RangeTable, model: Any) -> Table:
    """Ranges of every place: the widest of its products."""
    places: dict[str, list[str]] = {}
    for name, product in weight_products(model).items():
        if name in table.ranges:
            places.setdefault(product.place, []).append(name)
    kind = "random samples" if table.synthetic else "samples"
    shown = Table(
        title=f"ranges of activations, {table.samples} {kind}, temperature {table.source.temperature:g}",
    )
    for heading in ("input of", *METHODS):
        shown.add_column(heading, justify="left" if heading == "input of" else "right")
    for place, names in places.items():
        cells = []
        for method in METHODS:
            found = [table.ranges[name][method] for name in names]
            cells.append(f"{min(low for low, _ in found):.3g} to {max(high for _, high in found):.3g}")
        shown.add_row(place, *cells)
    return shown


def places_table(places: tuple[Place, ...], title: str) -> Table:
    """Places that were tried alone, most damage first."""
    shown = Table(title=title)
    for heading in ("place", "damage", "outputs", "Jaccard", "flips", "tokens", "agreement", "multiply-adds"):
        shown.add_column(heading, justify="left" if heading == "place" else "right")
    for place in places:
        found = place.found
        shown.add_row(
            place.name,
            f"{found.damage:.4f}",
            f"{found.output_error:.2%}",
            f"{found.jaccard:.4f}",
            f"{found.flips:.2%}",
            f"{found.tokens:+.2%}",
            f"{found.decisions:.1%}",
            f"{place.share:.1%}",
        )
    return shown


def threshold_table(proposal: Proposal, title: str) -> Table:
    """Scores near the threshold in every layer, with everything in low precision."""
    shown = Table(title=title)
    for heading in ("encoder", "layer", "noise of scores", "shift", "tokens near", "flips", "Jaccard", "tokens"):
        shown.add_column(heading, justify="left" if heading == "encoder" else "right")
    for layer in proposal.everything.layers:
        shown.add_row(
            layer.encoder,
            str(layer.layer),
            f"{layer.noise:.2%}",
            f"{layer.shift:+.2%}",
            f"{layer.near:.1%}",
            f"{layer.flips:.2%}",
            f"{layer.jaccard:.4f}",
            f"{layer.tokens[0]:.1f} -> {layer.tokens[1]:.1f}",
        )
    return shown


def proposal_table(proposal: Proposal, title: str) -> Table:
    """Everything in low precision beside what is proposed."""
    shown = Table(title=title)
    headings = ("", "agreement", "accuracy", "Jaccard", "flips", "tokens", "outputs", "multiply-adds kept")
    for heading in headings:
        shown.add_column(heading, justify="right" if heading else "left")
    rows = (("everything", proposal.everything, 0.0), ("proposal", proposal.found, proposal.kept_share))
    for name, found, kept in rows:
        accuracy = "" if found.accuracy is None else f"{found.accuracy[1]:.1%} (fp32 {found.accuracy[0]:.1%})"
        shown.add_row(
            name,
            f"{found.decisions:.2%}",
            accuracy,
            f"{found.jaccard:.4f}",
            f"{found.flips:.2%}",
            f"{found.tokens:+.2%}",
            f"{found.output_error:.2%}",
            f"{kept:.1%}",
        )
    return shown


def capacity_table(found: Capacities, source: Source) -> Table:
    """Every bucket of every batch size; shares of a part stand at its first encoder, and nothing overflows the last."""
    shown = Table(
        title=f"rows for an overflow of {100 * found.overflow:g}% at temperature {source.temperature:g}, "
        f"chosen with {found.chosen_with} requests, checked with {found.held_out} others",
    )
    headings = ("batch", "encoder", "rows by layer", "of all rows", "predicted (95 %)", "observed (95 %)")
    for heading in headings:
        shown.add_column(heading, justify="left" if heading in ("encoder", "rows by layer") else "right")
    first = {encoders[0]: part for part, encoders in found.parts.items()}
    for batch, buckets in found.buckets.items():
        for bucket in buckets:
            for encoder, rows in bucket.rows.items():
                part = first.get(encoder)
                overflow = None if part is None or bucket is buckets[-1] else bucket.overflow[part]
                shown.add_row(
                    str(batch),
                    encoder,
                    " ".join(map(str, rows if len(set(rows)) > 1 else rows[:1])),
                    f"{sum(rows) / (batch * found.dense[encoder] * len(rows)):.0%}",
                    *(("", "") if overflow is None else map(_interval, (overflow.predicted, overflow.observed))),
                )
        shown.add_section()
    return shown


def points_table(found: TemperatureFile) -> Table:
    """What every measured temperature costs and is worth."""
    shown = Table(title=f"operating points, {found.samples} samples, one request at a time")
    for heading in ("", "temperature", "GFLOPs (95 %)", "saved", "torch ms (rounds)", "as dense", "accuracy"):
        shown.add_column(heading, justify="right" if heading else "left")
    names = {0.0: "dense", MAX_TEMPERATURE: "largest"}
    for point in found.points:
        gflops, latency = point.gflops, point.latency
        shown.add_row(
            "found" if point is found.found else "",
            names.get(point.temperature, f"{point.temperature:.4g}"),
            f"{gflops.mean:.4g} ({gflops.low:.4g} to {gflops.high:.4g})",
            f"{point.reduction:.1%}",
            f"{latency.median:.3g} ({latency.low:.3g} to {latency.high:.3g})",
            f"{point.agreement:.1%}",
            "" if point.accuracy is None else f"{point.accuracy:.1%}",
        )
    return shown


def _interval(share: Share) -> str:
    return f"{share.share:.2%} ({share.low:.2%} to {share.high:.2%})"
