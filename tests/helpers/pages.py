"""Report pages, parsed, and bench results to show on them."""

import json
import xml.etree.ElementTree as ElementTree
from typing import Any

import html5lib

from tests.helpers.checkpoints import TAU
from tests.helpers.paths import ROOT


def parsed(html: str) -> ElementTree.Element:
    """Parse a page as a browser does; an error in its markup fails the test."""
    root: ElementTree.Element = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(html)
    return root


def text_of(html: str) -> str:
    return " ".join("".join(parsed(html).itertext()).split())


def bench_result(manifest: dict[str, Any], **changes: Any) -> dict[str, Any]:
    files = {part["artifact"]: part["sha256"] for part in manifest["parts"]}
    measured = json.loads((ROOT / "tests" / "data" / "bench" / "original.json").read_text())  # a real one
    case = measured["cases"][0] | {"batch": 1, "milliseconds": [1234.5, 1234.5]}
    measured["machine"]["cores"] = 77
    measured |= {"created": "2031-05-06", "cases": [case | {"temperature": tau} for tau in (0.0, TAU)]}
    return {"measurement": measured | {"artifact": measured["artifact"] | {"files": files}} | changes}
