"""Results of `python -m export inspect`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from export.engine.backends import Gpu

Inspect = Callable[..., tuple[int, str, str]]
Machines = Callable[..., None]


def found(inspect: Inspect, path: Path, status: int = 0) -> dict[str, Any]:
    """The JSON of an inspection; the table is shown too, so that every case is rendered."""
    assert inspect(path)[0] == status
    shown = inspect(path, "--json")
    assert shown[0] == status
    content: dict[str, Any] = json.loads(shown[1])
    assert bool(content["damage"]) == (status == 1)
    return content


RTX = Gpu("RTX 4090", (8, 9), "580.65.06")
H200 = Gpu("H200", (9, 0), "580.65.06")
