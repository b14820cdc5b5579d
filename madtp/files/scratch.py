"""Folders that a process works in: gone when it ends or, if it was killed, when a later one works at that place."""

import fcntl
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MARK = ".madtp-lock"  # in each of these folders; its process holds a lock on it, which the system frees when that dies
PREFIX = "madtp-"
LONGEST_PREFIX = 60  # characters of a name that is carried on, lest the folder's own be too long


@contextmanager
def scratch_folder(parent: Path | None = None, prefix: str = PREFIX) -> Iterator[Path]:
    """A new folder, removed at the end of the block; before, what dead processes left in `parent` is removed.

    Locks tell the dead from the living, also from one container to another. A network file system that is mounted with
    locks that are local to each machine cannot: there, work at one place from one machine at a time.

    Args:
        prefix: of its name; it has to begin with PREFIX or a dot.

    Raises:
        OSError: it cannot be made.
    """
    place = Path(tempfile.gettempdir()) if parent is None else parent
    remove_leftovers(place)
    folder = Path(tempfile.mkdtemp(prefix=prefix[:LONGEST_PREFIX], dir=place))
    lock = None
    try:
        lock = _mark(folder)
        yield folder
    finally:
        with uninterrupted():
            _remove(folder)
            if lock is not None:
                os.close(lock)


def _mark(folder: Path) -> int | None:
    """Lock a file and make it the folder's mark; None, and no mark, where the file system has no locks."""
    fresh = folder / f"{MARK}.new"
    lock = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    os.rename(fresh, folder / MARK)  # locked before anybody can see it
    return lock


def remove_leftovers(place: Path) -> None:
    """Remove the folders in `place` that processes of this user worked in and did not live to remove."""
    with suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            if entry.name.startswith((".", PREFIX)) and entry.is_dir(follow_symlinks=False):
                _remove_if_dead(Path(entry.path))


def _remove_if_dead(folder: Path) -> None:
    try:
        lock = os.open(folder / MARK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # no such folder
        return
    try:
        if os.fstat(lock).st_uid == os.geteuid():  # in /tmp anybody may have made it
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder)
    except OSError:  # its process lives
        pass
    finally:
        os.close(lock)


def _remove(folder: Path) -> None:
    """The mark last: who is killed meanwhile leaves a folder that is still known for what it is."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != MARK:
                path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Milliseconds in which Ctrl-C and SIGTERM come too late and are ignored, lest half of the work be left."""
    if threading.current_thread() is not threading.main_thread():  # it alone gets signals, and may set handlers
        yield
        return
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
