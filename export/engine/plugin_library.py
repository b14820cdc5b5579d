"""What a library of TensorRT plugins says of itself, and whether it may be loaded.

It is built by `export/engine/plugin_build.py`; its line of text (`export.engine.built_library`) is in
`plugins/library.cpp`.
"""

import mmap
from dataclasses import asdict, dataclass
from pathlib import Path

from export.artifact.manifest import LibraryEntry
from export.engine.built_library import BuildLine, LibraryKind, build_lines, check_version, read_built
from export.errors import PluginError
from madtp.files.inputs import open_regular

PLUGIN_LIBRARY = LibraryKind("plugin library", "libmadtp_plugins.so", "madtp-plugins", "omit --plugins to build it")
_MARGIN_FIELD = b"keep_margin\0"  # its name, which is `KEEP_MARGIN` of madtp.ops.spec; that imports torch


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
    built = read_built(path, PLUGIN_LIBRARY)
    line, margins = built.line, _MARGIN_FIELD in built.content
    return PluginLibrary(built.path, line.version, built.sha256, line.source, line.sm, margins)


def loadable_library(path: Path, entry: LibraryEntry | None = None) -> PluginLibrary:
    """The library at `path`, if it may be loaded: of this project and version, and the one of its manifest.

    Loading runs its code. This catches accidents and files of other software; who built a library is unknown.
    `entry` is the manifest's; None where the user named the file, or it was built on this machine.

    Raises:
        PluginError: it may not be loaded.
    """
    library = read_library(path)
    check_version(f"the plugin library '{path}'", library.version)
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
            lines = build_lines(content, PLUGIN_LIBRARY)
    except (OSError, ValueError) as error:  # ValueError: it is empty
        raise PluginError(f"cannot read the plan '{plan}'", str(error), "Export again.") from error
    for line in lines:
        check_version(f"the plugin library in '{plan}'", line.version)
    if lines != {BuildLine(entry.version, entry.source_sha256, entry.sm)}:
        raise PluginError(
            f"'{plan}' does not embed the plugin library that the manifest describes",
            "Loading it would run unknown code.",
            "Use the files of one export, or export again.",
        )
