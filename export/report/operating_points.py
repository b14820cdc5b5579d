"""Operating points that calibration measured, as a section of the page."""

from pathlib import Path
from typing import Any

from calibration.temperature_file import TemperatureFile, check_temperature, read_temperature
from export.report.plots import temperature_name
from madtp.models.config import MAX_TEMPERATURE

HEAD = ("temperature", "GFLOPs per request (95 %)", "saved", "torch ms per request", "answers as dense", "accuracy")


def read_points(path: Path, checkpoint_sha256: str) -> TemperatureFile:
    """The file, if it is of the artifact's checkpoint.

    Raises:
        TemperatureError: it cannot be read, or is of another.
    """
    found = read_temperature(path)
    check_temperature(found, checkpoint_sha256, path)
    return found


def points_section(found: TemperatureFile | None) -> dict[str, Any] | None:
    """What the page says of them."""
    if found is None:
        return None
    rows = []
    for point in found.points:
        gflops, chosen = point.gflops, point is found.found
        name = "largest" if point.temperature == MAX_TEMPERATURE else temperature_name(point.temperature)
        rows.append(
            [
                f"{name}, found" if chosen else name,
                f"{gflops.mean:.4g} ({gflops.low:.4g} to {gflops.high:.4g})",
                f"{point.reduction:.1%}",
                f"{point.latency.median:.3g} ({point.latency.low:.3g} to {point.latency.high:.3g})",
                f"{point.agreement:.1%}",
                "" if point.accuracy is None else f"{point.accuracy:.1%}",
            ]
        )
    return {
        "head": HEAD,
        "rows": rows,
        "budget": str(found.budget),
        "temperature": f"{found.source.temperature:.4g}",
        "data": found.source.data,
        "threads": found.threads,
        "doubts": found.doubts,
    }
