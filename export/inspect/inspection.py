"""What `python -m export inspect` found out about one file."""

from dataclasses import asdict, dataclass, field
from typing import Any

from export.inspect.compatibility import Compatibility, Machine
from export.inspect.onnx_file import OnnxFile


@dataclass
class Inspection:
    """What an inspection found.

    Attributes:
        file: the path as given.
        kind: "artifact", "manifest" (one that cannot be read), "onnx", "plan", "plugin library", "op library",
            "checkpoint" or "other".
        sha256: hash of the file; None for an artifact, whose files have their own.
        damage: what is wrong with the file or with files that belong to it.
        details: what a plan, library or checkpoint records, name -> value.
        manifest: contents of the artifact's manifest, see `export.inspect.artifact`.
        onnx: contents of an ONNX file without a manifest.
        verdict: whether it runs here; None for what cannot be run.
    """

    file: str
    kind: str
    bytes: int
    machine: Machine
    sha256: str | None = None
    damage: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: dict[str, str] = field(default_factory=dict)
    manifest: dict[str, Any] | None = None
    onnx: OnnxFile | None = None
    verdict: Compatibility | None = None

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        content = asdict(self)
        content["machine"]["cuda13"] = sorted(self.machine.cuda13)
        return content


def first_line(text: object) -> str:
    return (str(text).strip().splitlines() or [""])[0][:200]


def note_lone(found: Inspection, note: str) -> None:
    """Note that no manifest names the file, unless one could not be read, which is listed as damage."""
    if not found.damage:
        found.notes.append(note)
