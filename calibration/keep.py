"""Keep files: which weight products stay in higher precision, and the evidence for it."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from madtp.errors import KeepError, listing
from madtp.files.outputs import json_kind, write_output
from madtp.files.versioned import read_versioned

SCHEMA_VERSION = 1
PRECISIONS = ("int8", "fp8")
KEEP = json_kind("a keep file", "schema", "checkpoint_sha256", "precision", "keep")
MAKE = "Make it with `python -m calibration sensitivity`."


@dataclass(frozen=True)
class KeepFile:
    """What sensitivity proposes to leave in higher precision.

    Attributes:
        precision: of everything else, "int8" or "fp8".
        agreement: share of decisions equal to fp32's that was asked for.
        keep: names of weight products (`madtp.models.weight_products`).
        evidence: how that was found; for people, and not read again.
    """

    checkpoint_sha256: str
    task: str
    precision: str
    agreement: float
    keep: tuple[str, ...]
    evidence: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The file's content."""
        content = asdict(self)
        return {"schema": SCHEMA_VERSION, **{name: content[name] for name in content if name != "evidence"}} | (
            self.evidence | {"keep": list(self.keep)}
        )


def read_keep(path: Path) -> KeepFile:
    """A keep file.

    Raises:
        KeepError: missing, not JSON, of another schema, or malformed.
    """
    content = read_versioned(path, "the keep file", (SCHEMA_VERSION,), KeepError, MAKE)
    try:
        names = content["keep"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError('"keep" has to be a list of names')
        if content["precision"] not in PRECISIONS:
            raise ValueError(f'"precision" is {content["precision"]!r:.40}')
        found = KeepFile(
            str(content["checkpoint_sha256"]),
            str(content["task"]),
            content["precision"],
            float(content["agreement"]),
            tuple(names),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise KeepError(f"the keep file '{path}' is malformed", repr(error), MAKE) from error
    return found


def write_keep(found: KeepFile, path: Path) -> None:
    """Write the file in one step.

    Raises:
        OutputError: it cannot be written, or is there already and holds something else.
    """
    write_output(path, json.dumps(found.to_json(), indent=1) + "\n", KEEP)


def check_keep(
    found: KeepFile, checkpoint_sha256: str, task: str, precision: str, products: set[str], path: Path
) -> None:
    """Refuse a keep file of another checkpoint, task or precision, or that names no products of the model.

    Args:
        products: names of the model's.

    Raises:
        KeepError: naming what differs.
    """
    again = "Make one for this: python -m calibration sensitivity --ckpt ... --data ... -o keep.json"
    if (found.checkpoint_sha256, found.task) != (checkpoint_sha256, task):
        raise KeepError(
            f"the keep file '{path}' is of another checkpoint",
            f"Its checkpoint has the task {found.task} and sha256 {found.checkpoint_sha256[:16]}..., "
            f"this one {task} and {checkpoint_sha256[:16]}...",
            again,
        )
    if found.precision != precision:
        raise KeepError(
            f"the keep file '{path}' is for {found.precision}, not for {precision}",
            "What one precision damages another may not.",
            again,
        )
    unknown = [name for name in found.keep if name not in products]
    if unknown:
        raise KeepError(
            f"the keep file '{path}' names what is no weight product of the model", f"{listing(unknown)}.", again
        )
