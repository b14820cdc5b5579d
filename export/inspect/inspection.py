"""What `python -m export inspect` found out about one file."""

from dataclasses import asdict, dataclass, field
from typing import Any

from export.inspect.compatibility import Compatibility, Machine
from export.inspect.onnx_file import OnnxFile


@dataclass
class Inspection:
    """What was found out.

    Attributes:
        file: as given.
        kind: "artifact" (of a manifest), "manifest" (one that cannot be read), "onnx", "plan", "plugin library",
            "checkpoint" or "other".
        bytes: size of the file.
        machine: that it was inspected on.
        sha256: of the file; None for artifacts, whose files are listed with theirs.
        damage: what is wrong with it or with the files that belong to it; empty where nothing is.
        notes: what else is to be known.
        details: what plans, libraries and checkpoints say, name -> value.
        manifest: see `_Artifact.summary`.
        onnx: of a foreign ONNX file.
        verdict: whether it runs here; None for what is not run.
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
    """Say that no manifest names the file, unless one could not be read, which is damage and said as such."""
    if not found.damage:
        found.notes.append(note)
