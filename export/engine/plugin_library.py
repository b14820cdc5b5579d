"""What a library of TensorRT plugins says of itself, and whether it may be loaded.

A library carries its version, source hash and architectures as a line of text (`plugins/library.cpp`), so that a file
from elsewhere can be told too. It is built by `export/engine/plugin_build.py`.
"""

import hashlib
import json
import mmap
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from export.artifact.manifest import LibraryEntry
from export.errors import PluginError
from madtp.files.inputs import open_regular, read_bytes

PRODUCT = "madtp-deploy"  # the distribution whose version a library carries
MOST_BYTES = 2**30  # of a library; one for six GPU generations has 11 MB
_MARGIN_FIELD = b"keep_margin\0"  # its name, which is `KEEP_MARGIN` of madtp.ops.spec; that imports torch
_MARK = re.compile(rb"madtp-plugins (\{[^\0]{1,500}\})\0")


@dataclass(frozen=True)
class PluginLibrary:
    """A library that TensorRT can load.

    Attributes:
        version: the project's, when it was built.
        source_sha256: hash of the sources that it was built from.
        sm: compute capabilities that it has code for, e.g. 90 for 9.0.
        knows_margins: its TokenCompact has a field for the keep margin.
    """

    path: Path
    version: str
    sha256: str
    source_sha256: str
    sm: tuple[int, ...]
    knows_margins: bool

    def entry(self, shipped: str | None) -> LibraryEntry:
        """What a manifest says of it; it lies beside the plan as `shipped`, or (None) in it."""
        return LibraryEntry(shipped, shipped is None, self.version, self.sha256, self.source_sha256, self.sm)


def read_library(path: Path) -> PluginLibrary:
    """Read the line that a build wrote into the library at `path`.

    Raises:
        PluginError: missing, not a regular file, or not a plugin library of this project.
    """
    try:
        content = read_bytes(path, MOST_BYTES)
    except (OSError, ValueError) as error:
        raise PluginError(
            f"cannot read the plugin library '{path}'",
            getattr(error, "strerror", None) or str(error),
            "Name a libmadtp_plugins.so, or omit --plugins to build it.",
        ) from error
    marks = _build_lines(content)
    if content.startswith(b"\x7fELF") and len(marks) == 1:
        (mark,) = marks
        digest, margins = hashlib.sha256(content).hexdigest(), _MARGIN_FIELD in content
        return PluginLibrary(path.resolve(), mark.version, digest, mark.source, mark.sm, margins)
    raise PluginError(
        f"'{path}' is not a plugin library of this project",
        "It does not carry the line that every build writes into it.",
        "Name the libmadtp_plugins.so that ./build.sh plugins builds, or omit --plugins.",
    )


@dataclass(frozen=True)
class _BuildLine:
    """The line of text that every build writes into its library."""

    version: str
    source: str
    sm: tuple[int, ...]


def _build_lines(content: bytes | mmap.mmap) -> set[_BuildLine]:
    """All build lines in a library, or in a plan that embeds one; malformed ones are skipped."""
    lines = set()
    for found in _MARK.finditer(content):
        with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            mark = json.loads(found[1])
            sm = tuple(int(number) for number in mark["sm"].split(","))
            lines.add(_BuildLine(str(mark["version"]), str(mark["source"]), sm))
    return lines


def loadable_library(path: Path, entry: LibraryEntry | None = None) -> PluginLibrary:
    """The library at `path`, if it may be loaded: of this project and version, and the one of its manifest.

    Loading runs its code. This catches accidents and files of other software; who built a library is unknown.
    `entry` is the manifest's; None where the user named the file, or it was built on this machine.

    Raises:
        PluginError: it may not be loaded.
    """
    library = read_library(path)
    _check_version(f"the plugin library '{path}'", library.version)
    if entry is not None:
        theirs, listed = asdict(library), asdict(entry)
        other = [key for key in ("sha256", "version", "source_sha256", "sm") if theirs[key] != listed[key]]
        if other:
            raise PluginError(
                f"the plugin library '{path}' is not the one that the manifest describes",
                f"Its {other[0]} is {theirs[other[0]]}, the manifest's {listed[other[0]]}.",
                "Use the files of one export, or export again.",
            )
    return library


def check_knows_margins(library: PluginLibrary) -> None:
    """Refuse a library for a network with a keep margin where it has no such field.

    Raises:
        PluginError: it was built before there were margins.
    """
    if not library.knows_margins:
        raise PluginError(
            f"the plugin library '{library.path}' knows no keep margin",
            "It was built before TokenCompact had one.",
            "Build it again with ./build.sh plugins, or omit --plugins.",
        )


def check_embedded(plan: Path, entry: LibraryEntry) -> None:
    """Refuse a plan that embeds another library than its manifest describes: loading the plan runs the library's code.

    Raises:
        PluginError: it embeds none of this project and version, several, or another than the manifest describes.
    """
    try:
        with open_regular(plan) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            lines = _build_lines(content)
    except (OSError, ValueError) as error:  # ValueError: it is empty
        raise PluginError(f"cannot read the plan '{plan}'", str(error), "Export again.") from error
    for line in lines:
        _check_version(f"the plugin library in '{plan}'", line.version)
    if lines != {_BuildLine(entry.version, entry.source_sha256, entry.sm)}:
        raise PluginError(
            f"'{plan}' does not embed the plugin library that the manifest describes",
            "Loading it would run unknown code.",
            "Use the files of one export, or export again.",
        )


def _check_version(what: str, version: str) -> None:
    own = metadata.version(PRODUCT)
    if version != own:
        raise PluginError(
            f"{what} is of version {version:.40}",
            f"This is version {own}, which loads only libraries of its own version.",
            "Export again, or use that version.",
        )
