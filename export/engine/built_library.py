"""What the libraries that are built from `plugins/` say of themselves.

Each carries its version, source hash and architectures as a line of text, so that a file from elsewhere can be told
before its code runs.
"""

import hashlib
import json
import mmap
import re
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from export.errors import PluginError
from madtp.files.inputs import read_bytes

PRODUCT = "madtp-deploy"  # the distribution whose version a library carries
MOST_BYTES = 2**30  # of a library; one for six GPU generations has 26 MB


@dataclass(frozen=True)
class LibraryKind:
    """A library of the build.

    Attributes:
        noun: what messages call it.
        file: its name.
        mark: what its build line begins with.
        without: what to do where there is none.
    """

    noun: str
    file: str
    mark: str
    without: str


@dataclass(frozen=True)
class BuildLine:
    """The line of text that every build writes into its library; `sm` is empty where it has no code for GPUs."""

    version: str
    source: str
    sm: tuple[int, ...]


@dataclass(frozen=True)
class BuiltLibrary:
    """A library that was read and not loaded."""

    path: Path
    content: bytes
    line: BuildLine

    @property
    def sha256(self) -> str:
        """Of the file."""
        return hashlib.sha256(self.content).hexdigest()


def build_lines(content: bytes | mmap.mmap, kind: LibraryKind) -> set[BuildLine]:
    """All build lines in a library, or in a plan that embeds one; malformed ones are skipped."""
    lines = set()
    for found in re.finditer(rb"%s (\{[^\0]{1,500}\})\0" % re.escape(kind.mark.encode()), content):
        with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            mark = json.loads(found[1])
            sm = tuple(int(number) for number in mark["sm"].split(",") if mark["sm"])
            lines.add(BuildLine(str(mark["version"]), str(mark["source"]), sm))
    return lines


def read_built(path: Path, kind: LibraryKind) -> BuiltLibrary:
    """Read a library and the line that its build wrote into it.

    Raises:
        PluginError: missing, not a regular file, or not a library of this kind and project.
    """
    try:
        content = read_bytes(path, MOST_BYTES)
    except (OSError, ValueError) as error:
        raise PluginError(
            f"cannot read the {kind.noun} '{path}'",
            getattr(error, "strerror", None) or str(error),
            f"Name a {kind.file}, or {kind.without}.",
        ) from error
    lines = build_lines(content, kind)
    if content.startswith(b"\x7fELF") and len(lines) == 1:
        return BuiltLibrary(path.resolve(), content, *lines)
    article = "an" if kind.noun[0] in "aeiou" else "a"
    raise PluginError(
        f"'{path}' is not {article} {kind.noun} of this project",
        "It does not carry the line that every build writes into it.",
        f"Name the {kind.file} that ./build.sh plugins builds, or {kind.without}.",
    )


def check_version(what: str, version: str) -> None:
    """Refuse another version than this package's.

    Raises:
        PluginError: it is of another; it is called `what`.
    """
    own = metadata.version(PRODUCT)
    if version != own:
        raise PluginError(
            f"{what} is of version {version:.40}",
            f"This is version {own}, which loads only libraries of its own version.",
            "Export again, or use that version.",
        )
