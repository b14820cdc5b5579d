"""What a long run has done so far: a file of JSON lines that a later run of the same thing goes on from."""

import errno
import fcntl
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from madtp.errors import InputError
from madtp.files.staging import check_writable, write_errors
from madtp.files.versioned import check_version

SCHEMA_VERSION = 1
HEADER = f'{{"schema": {SCHEMA_VERSION}, "identity": '.encode()  # a journal begins so
MOST_BYTES = 2**31
SHOWN = 5  # differences that a message names
DELETE = "Delete the file to begin anew."
Entry = dict[str, Any]


class Journal:
    """Finished steps, in order, in `path`. Use as a context; a journal without a step leaves no file.

    The first line says what the steps are of; every other one is a step. A last line that was torn off (a killed run, a
    full disk) is dropped.

    Args:
        path: of the file; its folder has to exist.
        identity: everything that the steps depend on, of JSON's types.

    Raises:
        InputError: the file is of something else, is broken, or another run is writing it.
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.entries: list[Entry] = []
        check_writable(path)
        with write_errors(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        try:
            self._check_file()
            self._lock()
            self._read(json.loads(json.dumps(identity)))
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error: Any) -> None:
        if not self.entries:
            self.remove()
        os.close(self._file)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write a finished step down, on the disk when this returns.

        Raises:
            OutputError: it cannot be written.
            InputError: a number in it is not finite.
        """
        try:
            content = json.dumps(entry, allow_nan=False)
        except ValueError as error:
            raise InputError(
                f"step {len(self.entries)} gave a number that is not finite",
                "The model's values overflow on this input.",
                "Validate the artifact, or export it in another precision.",
            ) from error
        self._write({"step": len(self.entries), **entry})
        self.entries.append(json.loads(content))  # as a later run would read it

    def remove(self) -> None:
        """Delete the file: its steps are in the result."""
        self.path.unlink(missing_ok=True)

    def _check_file(self) -> None:
        found = os.fstat(self._file)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES:
            why = "It is too large." if stat.S_ISREG(found.st_mode) else "It is not a regular file."
            raise InputError(f"'{self.path}' holds no results", why, "Delete it, or name another output.")

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"another run is writing '{self.path}'",
                "Two runs would count everything twice.",
                "Wait for it, or name another output.",
            ) from error

    def _read(self, identity: Mapping[str, Any]) -> None:
        with write_errors(self.path), os.fdopen(os.dup(self._file), "rb") as file:
            data = file.read()
        complete = data[: data.rfind(b"\n") + 1]
        lines = complete.splitlines()
        if lines:
            self._check(_parse(self.path, 0, lines[0]), identity)
            for number, line in enumerate(lines[1:]):
                entry = _parse(self.path, number + 1, line)
                if entry.pop("step", None) != number:
                    raise _broken(self.path, number + 1, f"It should be step {number}.")
                self.entries.append(entry)
        elif data[: len(HEADER)] != HEADER[: len(data)]:  # nor was it torn off while we wrote it
            raise _broken(self.path, 0, "It does not say what the file is of.")
        with write_errors(self.path):
            os.ftruncate(self._file, len(complete))
            os.lseek(self._file, 0, os.SEEK_END)
        if not lines:
            self._write({"schema": SCHEMA_VERSION, "identity": identity})

    def _check(self, header: Entry, identity: Mapping[str, Any]) -> None:
        earlier = header.get("identity")
        check_version(header, f"the partial results '{self.path}'", (SCHEMA_VERSION,), InputError, DELETE)
        if not isinstance(earlier, dict):
            raise _broken(self.path, 0, "It does not say what the file is of.")
        found = differences(earlier, identity)
        if found:
            more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
            raise InputError(
                f"'{self.path}' holds results of something else",
                "\n".join(["What differs:", *found[:SHOWN], *more]),
                "Run with what it was made with, delete it to begin anew, or name another output.",
            )

    def _write(self, content: Mapping[str, Any]) -> None:
        line = json.dumps(content).encode() + b"\n"
        with write_errors(self.path):
            if os.write(self._file, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file)


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two identities, a line each: `data.vqa_val.json: "ab12", now "cd34"`."""
    found = []
    for key in dict.fromkeys([*earlier, *now]):
        before, after = earlier.get(key), now.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {json.dumps(before)}, now {json.dumps(after)}")
    return found


def _parse(path: Path, number: int, line: bytes) -> Entry:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _broken(path, number, str(error)) from error
    if not isinstance(entry, dict):
        raise _broken(path, number, "It is not a JSON object.")
    return entry


def _broken(path: Path, number: int, why: str) -> InputError:
    return InputError(f"line {number + 1} of '{path}' is broken", why, DELETE)
