"""Fields of a manifest that may not be well formed."""

from collections.abc import Iterator
from typing import Any

VOCABULARY = ("preprocessing", "text", "vocabulary")


def named_files(content: Any) -> set[str]:
    """Names of all files that a manifest, well-formed or not, lists."""
    parts = list(objects(find(content, "parts")))
    names = [find(part, *keys) for part in parts for keys in (("artifact",), ("external_data", "file"))]
    names += [find(part, "timing_cache", "file") for part in parts]
    names += [find(content, "plugins", "library", "file"), find(content, *VOCABULARY, "file")]
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
