"""Fields of a manifest that may not be well formed: for those who show it, or replace it. `reader` is strict."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from export.artifact.reader import LONGEST
from madtp.files.inputs import read_text

VOCABULARY = ("preprocessing", "text", "vocabulary")


def read_fields(path: Path) -> Any:
    """What a JSON file holds; numbers that JSON lacks become text, halves of surrogate pairs "?".

    Raises:
        OSError: it cannot be read.
        ValueError, RecursionError: it is not JSON.
    """

    def finite(text: str) -> float | str:
        return float(text) if math.isfinite(float(text)) else text

    content = json.loads(read_text(path, LONGEST), parse_float=finite, parse_constant=str)
    return json.loads(json.dumps(content, ensure_ascii=False).encode(errors="replace"))


def named_files(content: Any) -> set[str]:
    """Names of all files that a manifest, well-formed or not, lists."""
    parts = list(objects(find(content, "parts")))
    parts += [bucket for part in parts for bucket in objects(find(part, "buckets"))]
    names = [find(part, *keys) for part in parts for keys in (("artifact",), ("external_data", "file"))]
    names += [find(part, "timing_cache", "file") for part in parts]
    names += [find(content, "plugins", "library", "file"), find(content, *VOCABULARY, "file")]
    names += [find(content, "quantization", "ranges_file")]
    return {name for name in names if isinstance(name, str)}


def find(value: Any, *keys: str) -> Any:
    """The value under nested keys, None where there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def entries(value: Any) -> list[Any]:
    """The value if it is a list, else none."""
    return value if isinstance(value, list) else []


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """The JSON objects of a list."""
    yield from (entry for entry in entries(value) if isinstance(entry, dict))
