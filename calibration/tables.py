"""What the commands of calibration print."""

from typing import Any

from rich.table import Table

from calibration.methods import METHODS
from calibration.ranges import RangeTable
from calibration.sensitivity import Place, Proposal
from calibration.tokens import TokenStatistics
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
