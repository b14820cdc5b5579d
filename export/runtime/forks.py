"""What a forked process must not do with what its parent opened: its threads, which are not there, it waits for."""

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

_IMPORTED_IN = os.getpid()
_TORCH_CAME_FIRST = "torch" in sys.modules  # the package imports this module before anything that needs torch
_PF_FORKNOEXEC = 0x40  # Linux: forked, and has not begun another program since


def forked() -> bool:
    """Whether torch's threads may have stayed with a parent: this process was forked after this module was imported, or
    it was forked at some time, and torch came before this module."""
    return os.getpid() != _IMPORTED_IN or (_TORCH_CAME_FIRST and _is_fork())


def _is_fork() -> bool:
    """Whether this process was forked by a program and goes on in it; False where the system does not tell."""
    try:
        status = Path("/proc/self/stat").read_text(errors="replace")
        return bool(int(status.rpartition(")")[2].split()[6]) & _PF_FORKNOEXEC)
    except (OSError, ValueError, IndexError):
        return False


def keep_in_child(owner: object, opened_in: int) -> None:
    """Call where `owner` is deleted: unless this is the process that opened it, what it holds is never freed.

    ONNX Runtime would join threads that only the parent has, and TensorRT free memory of the parent's GPU.
    """
    if os.getpid() != opened_in:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner.__dict__))


@cache
def leave_children_quickly() -> None:
    """From here on, forked children end without the exit handlers of the libraries that the parent loaded.

    ONNX Runtime's wait for threads of the parent, so that a child would not end. Python's own handlers have run by then
    and its streams are flushed. Children of `multiprocessing` end so anyway.
    """
    os.register_at_fork(after_in_child=_leave_quickly)


def _leave_quickly() -> None:
    library = ctypes.CDLL(None)
    if hasattr(library, "on_exit"):  # glibc's; the latest handler is the first to run
        library.on_exit(library._exit, None)
