"""Tasks of the C++ runtime, called from Python: `tests/native/tasks` through ctypes."""

import ctypes
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from madtp.data.tokenize import READERS
from madtp.models.config import BlipConfig
from tests.helpers.paths import ROOT
from tests.helpers.runtime_library import onnxruntime_library
from tests.helpers.runtime_programs import build_with_package


class ProbeError(Exception):
    """What the library threw: its code, and what, why and what to do, a line each."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.what, self.why, self.fix = (*message.split("\n"), "", "")[:3]


@cache
def built() -> Path:
    """The folder of the probe and of `bare`, built with the installed package when they are first needed."""
    return build_with_package(ROOT / "tests" / "native" / "tasks", ROOT / "build" / "tasks-probe")


@cache
def library() -> ctypes.CDLL:
    """The probe."""
    probe = ctypes.CDLL(str(built() / "libmadtp_tasks_probe.so"))
    for name in ("message", "formats", "decode_ids"):
        getattr(probe, f"probe_{name}").restype = ctypes.c_char_p
    for name in ("reader", "open", "open_another"):
        getattr(probe, f"probe_{name}").restype = ctypes.c_void_p
    probe.probe_count.restype = ctypes.c_size_t
    return probe


def _call(name: str, *arguments: Any) -> None:
    code = getattr(library(), f"probe_{name}")(*arguments)
    if code != 0:
        raise ProbeError(code, library().probe_message().decode())


def _image() -> NDArray[np.uint8]:
    size = (ctypes.c_int32 * 3)()
    library().probe_size(size)
    pixels = np.empty((size[1], size[0], 3), np.uint8)
    library().probe_pixels(pixels.ctypes.data_as(ctypes.c_void_p))
    return pixels


def formats() -> str:
    """What the library decodes."""
    return str(library().probe_formats().decode())


def read_image(path: Path, rotate: bool = False) -> NDArray[np.uint8]:
    """[H, W, 3] of a file."""
    _call("read", str(path).encode(), int(rotate))
    return _image()


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """[H, W, 3] of a file's bytes."""
    _call("decode", data, ctypes.c_size_t(len(data)))
    return _image()


def resize(pixels: NDArray[np.uint8], width: int, height: int, stride: int = 0) -> NDArray[np.uint8]:
    """[height, width, 3] of [H, W, 3]; `stride` bytes from one row to the next if they are not end to end."""
    stride = stride or pixels.shape[1] * 3
    size = pixels.shape[1], pixels.shape[0]
    _call("resize", pixels.ctypes.data_as(ctypes.c_void_p), *size, ctypes.c_size_t(stride), width, height)
    return _image()


def preprocess(
    pixels: NDArray[np.uint8], size: int, mean: Sequence[float], std: Sequence[float]
) -> NDArray[np.float32]:
    """[3, size, size] of [H, W, 3]."""
    settings = np.array([*mean, *std], np.float64)
    result = np.empty((3, size, size), np.float32)
    shape = pixels.shape[1], pixels.shape[0], size
    pointers = (settings.ctypes.data_as(ctypes.c_void_p), result.ctypes.data_as(ctypes.c_void_p))
    _call("preprocess", pixels.ctypes.data_as(ctypes.c_void_p), *shape, *pointers)
    return result


class Reader:
    """The texts of a model, read in C++."""

    def __init__(self, vocabulary: Path, config: BlipConfig) -> None:
        reader = READERS.get(config.task)
        first = config.cls_token_id if config.task == "retrieval" else config.enc_token_id
        ids = (config.pad_token_id, config.cls_token_id, config.sep_token_id, config.bos_token_id, config.enc_token_id)
        numbers = (ctypes.c_double * 7)(config.vocab_size, config.max_position, *ids)
        words, dropped_as = (-1, "") if reader is None else (reader.max_words, reader.dropped_as)
        arguments = config.task.encode(), str(vocabulary).encode(), dropped_as.encode(), words, first, numbers
        self._library = library()
        self._reader = ctypes.c_void_p(self._library.probe_reader(*arguments))
        if not self._reader.value:
            raise ProbeError(0, library().probe_message().decode())

    def __del__(self) -> None:
        self._library.probe_close_reader(self._reader)

    def ids(self, text: str | bytes, *, cut: bool = False) -> list[int]:
        """Of a request's text."""
        return self._ids(text, int(cut))

    def answer_ids(self, answer: str) -> list[int]:
        """Of an answer."""
        return self._ids(answer, 2)

    def prompt_ids(self, prompt: str) -> list[int]:
        """Of a prompt."""
        return self._ids(prompt, 3)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        array = (ctypes.c_int64 * len(ids))(*ids)
        return str(library().probe_decode_ids(self._reader, array, ctypes.c_size_t(len(ids))).decode())

    def _ids(self, text: str | bytes, kind: int) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        _call("ids", self._reader, data, ctypes.c_size_t(len(data)), kind)
        ids = (ctypes.c_int64 * library().probe_count())()
        library().probe_copy_ids(ids)
        return list(ids)


NUMBERS = {"temperature": -1.0, "batch": 0, "cut": 0, "beams": 3, "max_length": 0, "min_length": 1, "k": 0}
NUMBERS |= {"k_test": 256, "image_batch": 0, "text_batch": 0, "match_batch": 0}


class TaskSession:
    """A session of an artifact, in C++ on ONNX Runtime with one thread and function bodies."""

    def __init__(self, manifest: Path, vocabulary: Path | str = "", beside: "TaskSession | None" = None) -> None:
        """With the engine of the session `beside` it, if there is one."""
        self._library, words = library(), str(vocabulary).encode()
        if beside is None:
            opened = self._library.probe_open(str(manifest).encode(), str(onnxruntime_library()).encode(), words)
        else:
            opened = self._library.probe_open_another(beside._session, words)
        self._session = ctypes.c_void_p(opened)
        if not self._session.value:
            raise ProbeError(0, library().probe_message().decode())

    def __del__(self) -> None:
        self._library.probe_close(self._session)

    def ask(
        self,
        method: str,
        images: Sequence[Image.Image],
        texts: Sequence[str | Sequence[int]] = (),
        candidates: Sequence[str | Sequence[int]] = (),
        **numbers: float,
    ) -> Any:
        """The products of a method, as JSON says them; `numbers` change those of NUMBERS."""
        pixels = [np.ascontiguousarray(image.convert("RGB")) for image in images]
        for array in pixels:
            pointer = array.ctypes.data_as(ctypes.c_void_p)
            library().probe_add_image(self._session, pointer, array.shape[1], array.shape[0])
        for kind, added in enumerate((texts, candidates)):
            for text in added:
                self._add(kind, text)
        given = [{**NUMBERS, **numbers}[name] for name in NUMBERS]
        _call("ask", self._session, method.encode(), (ctypes.c_double * len(given))(*given))
        return json.loads(library().probe_message().decode())

    def _add(self, kind: int, text: str | Sequence[int]) -> None:
        if isinstance(text, str):
            data = text.encode()
            library().probe_add_text(self._session, kind, data, ctypes.c_size_t(len(data)), None)
        else:
            ids = (ctypes.c_int64 * max(len(text), 1))(*text)
            library().probe_add_text(self._session, kind, None, ctypes.c_size_t(len(text)), ids)
