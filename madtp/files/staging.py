"""Writing outputs so that an interrupted or failed run leaves the previous ones as they were."""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from madtp.errors import OutputError
from madtp.files.scratch import scratch_folder, uninterrupted

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
ANY_WRITE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH  # without any, root leaves a file alone too


class Staging:
    """A hidden folder beside the outputs: files are completed there, then renamed into place.

    Use as a context; whatever was not committed is removed at its end, and what killed runs left in that folder at its
    beginning.

    Args:
        target: the main output; its folder has to exist. Symbolic links stay, and what they name is written.
        needed: bytes that will be written, as far as known.

    Raises:
        OutputError: the folder is missing or not writable, the target is a folder or a device, or the disk has no room.
    """

    def __init__(self, target: Path, needed: int = 0) -> None:
        check_writable(target, needed)
        check_unprotected(target)
        self.target = target

    def __enter__(self) -> "Staging":
        self._scratch = scratch_folder(self.target.parent, f".{self.target.name}.")
        with write_errors(self.target):
            self.folder = self._scratch.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._scratch.__exit__(*error)

    def commit(self, names: Iterable[str], stale: Iterable[str] = ()) -> None:
        """Move the finished files to where they belong, all or none.

        Args:
            names: of the files; the one that users open first last.
            stale: files beside the target that these make obsolete; they are deleted then.

        Raises:
            OutputError: a file cannot be moved, and all is as it was.
        """
        moved: list[str] = []
        with write_errors(self.target), uninterrupted():
            earlier = Path(tempfile.mkdtemp(dir=self.folder))
            try:
                for name in names:
                    with suppress(OSError):  # nothing there yet, or a file system without hard links
                        os.link(self._place(name), earlier / name)
                    os.replace(self.folder / name, self._place(name))
                    moved.append(name)
            except OSError:
                for name in moved:
                    if (earlier / name).exists():
                        os.replace(earlier / name, self._place(name))
                    else:
                        self._place(name).unlink()
                raise
            for name in stale:
                (self.target.parent / name).unlink(missing_ok=True)

    def _place(self, name: str) -> Path:
        """Where a file belongs; its place may be a symbolic link."""
        return (self.target.parent / name).resolve()


def check_unprotected(target: Path) -> None:
    """Raise OutputError where `target` is there and write-protected: a rename would replace it all the same."""
    with write_errors(target):
        if target.exists() and not (target.stat().st_mode & ANY_WRITE and os.access(target, os.W_OK)):
            raise OutputError(
                f"cannot write '{target}'",
                "It may not be written to.",
                f"Name another file, or allow it: chmod u+w '{target}'.",
            )


def check_writable(target: Path, needed: int = 0) -> None:
    """Raise OutputError where `target` can certainly not be written. Writes nothing."""
    with write_errors(target):  # a name that is too long, a folder that may not be entered
        _check_writable(target, needed)


def _check_writable(target: Path, needed: int) -> None:
    parent = target.parent
    if target.is_dir():
        raise OutputError(f"cannot write '{target}'", "It is a folder.", "Name a file in it, e.g. out.plan.")
    if target.exists() and not target.is_file():
        raise OutputError(
            f"cannot write '{target}'", "It is not a regular file, and would be replaced by one.", "Name a file."
        )
    if not parent.is_dir():
        why = "It is a file." if parent.exists() else "It does not exist."
        raise OutputError(f"cannot write into '{parent}'", why, f"Create it (mkdir -p '{parent}') or name another.")
    if not os.access(parent, os.W_OK):
        raise OutputError(
            f"cannot write into '{parent}'", "You have no permission to.", "Name a folder that you can write to."
        )
    beyond = target.resolve().parent
    if target.is_symlink() and not (beyond.is_dir() and beyond.stat().st_dev == parent.stat().st_dev):
        raise OutputError(
            f"cannot write '{target}'",
            f"It is a symbolic link into '{beyond}', which is missing or another file system.",
            "Name the file itself.",
        )
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise OutputError(
            f"not enough room in '{parent}'",
            f"The export writes about {needed / 1e6:.1f} MB there and {free / 1e6:.1f} MB are free.",
            "Free some space or name another folder.",
        )


@contextmanager
def write_errors(target: Path) -> Iterator[None]:
    """Turn an operating system error inside the block into an OutputError about `target`."""
    try:
        yield
    except OSError as error:
        raise output_error(target, error) from error


def output_error(target: Path, error: OSError) -> OutputError:
    """The OutputError that says what `error` means for `target`."""
    if error.errno in _DISK_FULL:
        return OutputError(
            f"the disk is full: cannot write '{target}'",
            f"{error.strerror}. Earlier outputs were left as they were.",
            "Free some space (an export needs up to three times the checkpoint) or name another folder.",
        )
    return OutputError(f"cannot write '{target}'", error.strerror or str(error), "Name a folder that you can write to.")
