"""What a command may write: no input, no other output of the run, and no file that is not an earlier one of its own."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from madtp.errors import OutputError, printable
from madtp.files.inputs import decode_text, parse_json, read_bytes
from madtp.files.staging import Staging, check_unprotected, check_writable, write_errors

MOST_BYTES = 2**30  # of an earlier result; a larger file is taken for somebody else's
HEAD_BYTES = 4096  # in which a mark has to stand


@dataclass(frozen=True)
class Kind:
    """A kind of file that a command writes.

    Attributes:
        name: with its article, e.g. "a result of bench".
        is_ours: whether content is of an earlier one, and not of somebody else's file.
    """

    name: str
    is_ours: Callable[[bytes], bool]


def json_kind(name: str, *keys: str) -> Kind:
    """A JSON object that is known by its keys."""

    def is_ours(content: bytes) -> bool:
        try:
            found = parse_json(decode_text(content))
        except (ValueError, RecursionError):
            return False
        return isinstance(found, dict) and found.keys() >= set(keys)

    return Kind(name, is_ours)


def marked_kind(name: str, mark: str) -> Kind:
    """Text that is known by a mark near its beginning."""
    return Kind(name, lambda content: mark.encode() in content[:HEAD_BYTES])


def check_outputs(outputs: Iterable[tuple[Path | None, Kind]], inputs: Iterable[Path | None]) -> None:
    """Refuse, before any work, outputs that cannot be written or would take the place of another file.

    Raises:
        OutputError: naming the file.
    """
    given, taken = [path for path in inputs if path is not None], list[Path]()
    for path, kind in outputs:
        if path is not None:
            check_writable(path)
            check_separate(path, given, taken)
            check_ours(path, kind)
            check_unprotected(path)
            taken.append(path)


def check_separate(output: Path, inputs: Iterable[Path], others: Iterable[Path] = ()) -> None:
    """Refuse an output that is an input or another output, by whatever name or link.

    Raises:
        OutputError: naming the file.
    """
    for path in inputs:
        if same_file(output, path):
            raise OutputError(f"'{output}' would overwrite '{path}'", "This run reads it.", "Name another file.")
    for path in others:
        if same_file(output, path) or _place(output).casefold() == _place(path).casefold():
            raise OutputError(
                f"'{output}' is named twice",
                f"'{path}', another output of this run, is the same.",
                "Name another file.",
            )


def check_ours(output: Path, kind: Kind) -> None:
    """Refuse to replace what is not an earlier output of the same kind; an empty file, as mktemp makes, may go.

    Raises:
        OutputError: naming the file.
    """
    if not os.path.exists(output):
        return
    try:
        content = read_bytes(output, MOST_BYTES)
    except (OSError, ValueError):
        content = b"unreadable"
    if content and not kind.is_ours(content):
        raise OutputError(
            f"'{output}' is there already and is not {kind.name}",
            "It would be replaced, and only an earlier file of the same kind is.",
            "Name another file, or remove that one first.",
        )


def write_output(path: Path, text: str, kind: Kind) -> None:
    """Write a file, complete or not at all, over nothing but an earlier one of its kind.

    What a terminal or page would obey, rather than show, becomes an escape: names and texts in it are of others.

    Raises:
        OutputError: it cannot be written.
    """
    check_writable(path)
    check_ours(path, kind)
    with Staging(path) as staging, write_errors(path):
        (staging.folder / path.name).write_text(printable(text), encoding="utf-8")
        staging.commit([path.name])


def same_file(one: Path, other: Path) -> bool:
    """Whether both names are of one file: by links of either kind, relative, or where case does not matter."""
    if os.path.exists(one) and os.path.exists(other):
        return os.path.samefile(one, other)
    return _place(one) == _place(other)


def _place(path: Path) -> str:
    return os.path.realpath(path)
