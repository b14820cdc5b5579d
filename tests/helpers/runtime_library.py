"""The engine for C and C++, `libmadtp_runtime.so`, called through its C API as a program in another language would."""

import ctypes
import sysconfig
from collections.abc import Collection, Mapping, Sequence
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.engine.runtime_build import build_runtime

Arrays = dict[str, NDArray[Any]]
TYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.int32), np.dtype(np.int64))  # by MadtpType
CODES = ("ok", "manifest", "file", "library", "backend", "input", "memory", "busy", "internal")  # by MadtpCode


class EngineOptions(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        ("device", c_int),
        ("device_id", c_int32),
        ("threads", c_int32),
        ("no_cuda_graphs", c_int32),
        ("runtime_library", c_char_p),
        ("op_library", c_char_p),
        ("kernel_cache", c_char_p),
        ("stream", c_void_p),
    )


class Input(ctypes.Structure):
    _fields_ = (
        ("name", c_char_p),
        ("data", c_void_p),
        ("type", c_int),
        ("device", c_int),
        ("shape", POINTER(c_int64)),
        ("dimensions", c_size_t),
    )


class RunOptions(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        ("has_temperature", c_int32),
        ("temperature", c_float),
        ("batch", c_int64),
        ("outputs", c_int),
        ("stream", c_void_p),
    )


class Output(ctypes.Structure):
    _fields_ = Input._fields_


class Statistics(ctypes.Structure):
    _fields_ = tuple((name, c_int64) for name in ("calls", "runs", "overflows", "graph_replays"))


@dataclass
class EngineError(Exception):
    """An error of the library."""

    code: str
    summary: str
    why: str
    fix: str

    def __str__(self) -> str:
        return "\n".join(filter(None, (self.summary, self.why, self.fix)))


def onnxruntime_library() -> Path:
    """ONNX Runtime as the Python package carries it."""
    folder = Path(sysconfig.get_paths()["platlib"]) / "onnxruntime" / "capi"
    return next(folder.glob("libonnxruntime.so.*"))


@cache
def library() -> ctypes.CDLL:
    """The installed library, with the types of its functions."""
    api = ctypes.CDLL(str(build_runtime()))
    pointers = {
        "madtp_engine_load": (c_char_p, c_void_p, POINTER(c_void_p)),
        "madtp_session_open": (c_void_p, POINTER(c_void_p)),
        "madtp_session_infer": (c_void_p, c_char_p, c_void_p, c_size_t, c_void_p, POINTER(c_void_p)),
        "madtp_outputs_at": (c_void_p, c_size_t, c_void_p),
        "madtp_outputs_find": (c_void_p, c_char_p, c_void_p),
    }
    for name, arguments in pointers.items():
        getattr(api, name).argtypes, getattr(api, name).restype = arguments, c_void_p
    for name in ("summary", "why", "fix"):
        getattr(api, f"madtp_error_{name}").argtypes = (c_void_p,)
        getattr(api, f"madtp_error_{name}").restype = c_char_p
    for name in ("task", "layout", "execution"):
        getattr(api, f"madtp_engine_{name}").argtypes = (c_void_p,)
        getattr(api, f"madtp_engine_{name}").restype = c_char_p
    for name in ("error_free", "error_code", "engine_free", "session_free", "outputs_free"):
        getattr(api, f"madtp_{name}").argtypes = (c_void_p,)
    api.madtp_outputs_count.argtypes, api.madtp_outputs_count.restype = (c_void_p,), c_size_t
    api.madtp_engine_temperature.argtypes, api.madtp_engine_temperature.restype = (c_void_p,), c_float
    for name in ("max_batch", "usual_batch"):
        getattr(api, f"madtp_engine_{name}").argtypes = (c_void_p,)
        getattr(api, f"madtp_engine_{name}").restype = c_int64
    api.madtp_session_statistics.argtypes, api.madtp_session_statistics.restype = (c_void_p,), Statistics
    api.madtp_engine_part.argtypes, api.madtp_engine_part.restype = (c_void_p, c_size_t), c_char_p
    return api


def check(error: int | None) -> None:
    """Raise what the library returned, and free it."""
    if error is None:
        return
    api = library()
    texts = (getattr(api, f"madtp_error_{name}")(error).decode() for name in ("summary", "why", "fix"))
    raised = EngineError(CODES[api.madtp_error_code(error)], *texts)
    api.madtp_error_free(error)
    raise raised


class CEngine:
    """An engine; `options` are fields of `MadtpEngineOptions`, texts as str."""

    def __init__(self, path: Path | str, **options: Any) -> None:
        given = {"runtime_library": str(onnxruntime_library()), "threads": 1, **options}
        encoded = {name: value.encode() if isinstance(value, str) else value for name, value in given.items()}
        filled = EngineOptions(**{"size": ctypes.sizeof(EngineOptions), **encoded})
        self.handle = c_void_p()
        check(library().madtp_engine_load(str(path).encode(), byref(filled), byref(self.handle)))

    def __getattr__(self, name: str) -> Any:
        """What `madtp_engine_<name>` says: task, layout, execution, temperature, max_batch, usual_batch."""
        value = getattr(library(), f"madtp_engine_{name}")(self.handle)
        return value.decode() if isinstance(value, bytes) else value

    def session(self) -> "CSession":
        return CSession(self)

    def __del__(self) -> None:
        library().madtp_engine_free(self.handle)


class CSession:
    """A session of an engine."""

    def __init__(self, engine: CEngine) -> None:
        self.handle = c_void_p()
        check(library().madtp_session_open(engine.handle, byref(self.handle)))

    def infer(
        self,
        part: str,
        inputs: Mapping[str, NDArray[Any]],
        temperature: float | None = None,
        batch: int = 0,
        shapes: Mapping[str, Sequence[int]] | None = None,
        null: Collection[str] = (),
    ) -> Arrays:
        """Outputs by name; `shapes` are told in the place of those of the arrays, and no address of those in `null`."""
        arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        told = {name: (shapes or {}).get(name, array.shape) for name, array in arrays.items()}
        sizes = {name: (c_int64 * max(len(shape), 1))(*shape) for name, shape in told.items()}
        entries = [
            Input(
                name.encode(),
                None if name in null else array.ctypes.data,
                TYPES.index(array.dtype),
                0,
                sizes[name],
                len(told[name]),
            )
            for name, array in arrays.items()
        ]
        given = (Input * max(len(entries), 1))(*entries)
        options = RunOptions(ctypes.sizeof(RunOptions), temperature is not None, temperature or 0.0, batch, 0, None)
        outputs = c_void_p()
        call = library().madtp_session_infer
        check(call(self.handle, part.encode(), byref(given), len(arrays), byref(options), byref(outputs)))
        try:
            return dict(_arrays(outputs))
        finally:
            library().madtp_outputs_free(outputs)

    @property
    def statistics(self) -> tuple[int, int, int, int]:
        """Calls, runs, overflows, replays of graphs."""
        found = library().madtp_session_statistics(self.handle)
        return found.calls, found.runs, found.overflows, found.graph_replays

    def __del__(self) -> None:
        library().madtp_session_free(self.handle)


def _arrays(outputs: c_void_p) -> Arrays:
    found: Arrays = {}
    for index in range(library().madtp_outputs_count(outputs)):
        output = Output()
        check(library().madtp_outputs_at(outputs, index, byref(output)))
        shape, dtype = output.shape[: output.dimensions], TYPES[output.type]
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        content = ctypes.string_at(output.data, size) if size else b""
        found[output.name.decode()] = np.frombuffer(content, dtype).reshape(shape).copy()
    return found
