"""ONNX files as far as an artifact's own files need it: parsing one, and where its weights lie. Nothing is run."""

import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from export.errors import ManifestError
from madtp.files.inputs import open_regular

MOST_BYTES = 2**31  # of a protobuf file
_LOCATION = b"location"  # the key of a file name that weights are taken from


def parse_onnx(content: bytes, path: Path) -> Any:
    """The `onnx.ModelProto` that a file holds.

    Raises:
        ManifestError: it is not an ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.ModelProto.FromString(content)
    except (DecodeError, ValueError) as error:
        raise ManifestError(
            f"'{path.name}' is not a complete ONNX model", "It is truncated, or another file."
        ) from error


def external_locations(path: Path) -> set[str]:
    """The files that an ONNX file takes weights from, as it names them.

    The graph is only parsed where there can be any: a file with all weights in it may have gigabytes.

    Raises:
        ManifestError: it is not an ONNX model.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        if not os.fstat(file.fileno()).st_size:
            return set()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(_LOCATION) < 0 or len(content) > MOST_BYTES:
                return set()  # a runtime cannot read more either
            model = parse_onnx(content[:], path)
    try:
        entries = [entry for tensor in all_tensors(model) for entry in tensor.external_data]
        return {decoded(entry.value) for entry in entries if decoded(entry.key) == "location"}
    except UnicodeDecodeError as error:
        raise ManifestError(f"'{path.name}' is not a complete ONNX model", "A name in it is not UTF-8.") from error


def all_tensors(message: Any) -> Iterator[Any]:
    """Every `onnx.TensorProto` in a message, at any depth."""
    if message.DESCRIPTOR.full_name == "onnx.TensorProto":
        yield message
        return
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for inner in value if isinstance(value, Iterable) else (value,):
                yield from all_tensors(inner)


def decoded(value: str | bytes) -> str:
    """A string of the model, which protobuf hands over as bytes where it is not UTF-8; raises UnicodeDecodeError."""
    return value if isinstance(value, str) else value.decode()
