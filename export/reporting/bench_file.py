"""Latencies that `python -m export bench --json` wrote (or --save)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

from export.bench.baseline import SCHEMA_VERSION, measurement_schema
from export.errors import ReportError
from madtp.files import parse_json


@dataclass(frozen=True)
class BenchFile:
    """Milliseconds of calls by temperature, of the smallest batch that was measured; when and on what machine."""

    milliseconds: dict[float, list[float]]
    batch: int
    created: str
    machine: str


def read_bench(path: Path, manifest: Mapping[str, Any]) -> BenchFile:
    """The latencies in a result of `python -m export bench`.

    Raises:
        ReportError: unreadable, of another schema, partial, or of another artifact.
    """
    again = "Make it with python -m export bench ... --json FILE."
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ReportError(f"cannot read the bench result '{path}'", str(error), again) from error
    measured: Any = content.get("measurement", content) if isinstance(content, dict) else None
    version = measured.get("schema") if isinstance(measured, dict) else None
    if version != SCHEMA_VERSION:
        raise ReportError(
            f"the bench result '{path}' is of schema {version!r}", f"This version reads schema {SCHEMA_VERSION}.", again
        )
    try:
        jsonschema.validate(measured, measurement_schema())
    except jsonschema.ValidationError as error:
        raise ReportError(
            f"the bench result '{path}' is malformed", f"At {error.json_path}: {error.message[:200]}.", again
        ) from error
    if measured["partial"]:
        raise ReportError(f"the bench result '{path}' is partial", "Its run was interrupted.", again)
    if measured["artifact"]["files"] != {part["artifact"]: part["sha256"] for part in manifest["parts"]}:
        raise ReportError(f"the bench result '{path}' is of another artifact", "The hashes of its files differ.", again)
    batch = min(case["batch"] for case in measured["cases"])
    cases = {case["temperature"]: case["milliseconds"] for case in measured["cases"] if case["batch"] == batch}
    machine = ", ".join(f"{name} {value}" for name, value in measured["machine"].items() if value)
    return BenchFile(dict(sorted(cases.items())), batch, measured["created"], machine)
