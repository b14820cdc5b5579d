"""Files given as checkpoints: what they are is said, and sizes that they claim are checked before memory is taken."""

import gzip
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch

import madtp
from madtp import CheckpointError
from tests.helpers.command_line import Ran
from tests.helpers.paths import ROOT

Write = Callable[[Path], Path | None]
LINEAR = {"model": {"weight": torch.zeros(300, 41)}, "temperature": 0.5}


def raw(content: bytes) -> Write:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def saved(content: Any = LINEAR, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def tar(path: Path) -> None:
    (path.parent / "y.pt").write_bytes(saved())
    with tarfile.open(path, "w") as archive:
        archive.add(path.parent / "y.pt", "y.pt")


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("best/y.pt", saved())


def packed_again(path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(saved())) as given, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in given.namelist():
            archive.writestr(name, given.read(name))


def script(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("x/data.pkl", "x/code/__torch__.py", "x/constants.pkl", "x/version"):
            archive.writestr(name, b"")


def program(path: Path) -> None:
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), path.with_suffix(".pt2"))
    path.with_suffix(".pt2").rename(path)


def arrays(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, weight=np.zeros(3))


def model(path: Path) -> None:
    graph = onnx.helper.make_graph([], "graph", [], [])
    path.write_bytes(onnx.helper.make_model(graph, producer_name="pytorch").SerializeToString())


def folder(*names: str) -> Write:
    def write(path: Path) -> None:
        path.mkdir()
        for name in names:
            (path / name).write_bytes(b"")

    return write


def by_its_name(path: Path) -> Path:
    return path.with_suffix(".safetensors")


SAFETENSORS = safetensors.torch.save({"weight": torch.zeros(3)})
KINDS: dict[str, tuple[Write, tuple[str, ...]]] = {
    "web page": (raw(b"\n<!DOCTYPE html><title>404</title>"), ("a web page", "Download")),
    "denied": (raw(b'<?xml version="1.0"?><Error><Code>AccessDenied'), ("an XML text", "Download")),
    "git lfs": (raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:0"), ("git-lfs pointer", "git lfs pull")),
    "gzip": (raw(gzip.compress(saved())), ("a gzip archive", "Unpack")),
    "tar": (tar, ("a tar archive", "Unpack")),
    "zip": (zipped, ("a zip archive with 'best/y.pt' in it", "Unpack")),
    "packed again": (packed_again, ("entries are compressed", "torch.save did not write", "save it again")),
    "safetensors": (raw(SAFETENSORS), ("a safetensors file", "holds no temperature", "load_file")),
    "safetensors by name": (
        lambda path: by_its_name(path).write_bytes(SAFETENSORS) and by_its_name(path),
        ("a safetensors",),
    ),
    "index": (raw(b'{"metadata": {"total_size": 1}, "weight_map": {}}'), ("several files (shards)",)),
    "JSON": (raw(b'{"task": "nlvr"}'), ("a JSON text",)),
    "ONNX": (model, ("an ONNX file",)),
    "plan": (raw(b"ftrt\0\0\0\0" + b"\0" * 50), ("a TensorRT plan",)),
    "TorchScript": (script, ("a TorchScript archive: it holds a program", "state_dict()")),
    "program": (program, ("torch.export saved",)),
    "numpy": (arrays, ("a numpy archive",)),
    "Hugging Face": (folder("config.json", "model.safetensors"), ("Hugging Face", "a folder")),
    "DeepSpeed": (folder("latest", "zero_to_fp32.py"), ("DeepSpeed", "zero_to_fp32.py")),
    "distributed": (folder(".metadata", "__0_0.distcp"), ("distributed checkpoint", "dcp_to_torch")),
    "unpacked": (folder("data.pkl", "version"), ("was unpacked",)),
    "pipe": (os.mkfifo, ("a pipe; only regular files are read",)),
    "endless": (lambda path: Path("/dev/zero"), ("a device; only regular files are read",)),
    "beginning of a zip file": (raw(b"PK\3\4"), ("truncated",)),
    "empty zip file": (raw(b"PK\5\6" + b"\0" * 18), ("truncated, or was not written by torch.save",)),
    "one byte": (raw(b"\x80"), ("truncated, or was not written by torch.save",)),
    "plain pickle": (raw(pickle.dumps({"model": {}}, protocol=2)), ("a plain Python pickle", "torch.save({'model'")),
    "no pickle": (raw(saved()[:100] + b"x" * 1000), ("truncated",)),
}


@pytest.mark.parametrize(("write", "parts"), KINDS.values(), ids=KINDS)
def test_other_files_are_named(
    write: Write, parts: tuple[str, ...], tmp_path: Path, run_cli: Callable[..., Ran]
) -> None:
    path = tmp_path / "x.pt"
    path = write(path) or path
    with pytest.raises(CheckpointError) as caught:
        madtp.load(path)
    assert str(path) in caught.value.what
    assert len(str(caught.value)) < 1500
    for part in parts:
        assert part in str(caught.value)
    run_cli("--ckpt", path, "--engine", tmp_path / "out.onnx").refused(*parts)


@pytest.mark.parametrize("name", ["TorchScript", "packed again", "web page"])
def test_inspection_names_them_too(name: str, tmp_path: Path, run_cli: Callable[..., Ran]) -> None:
    write, parts = KINDS[name]
    path = tmp_path / "x.pt"
    write(path)
    ran = run_cli("inspect", path)
    assert ran.status == 1
    assert parts[0] in ran.out
    assert "export --ckpt" not in ran.out


def test_a_file_without_a_size_is_empty() -> None:
    with pytest.raises(CheckpointError, match="The file is empty"):
        madtp.load("/proc/cpuinfo")


def test_a_sparse_file_of_a_terabyte_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with path.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(CheckpointError, match=r"not written by torch\.save"):
        madtp.load(path)


# Files that would become larger than they are.

HUGE = 800_000_000  # bytes that each would take
ROOM = 200_000_000  # of memory that refusing one may take, Python's modules that only then are imported included
MEASURE = """
import resource, sys, madtp
from madtp import MadtpError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    madtp.load(sys.argv[1])
except MadtpError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, str(error).replace(chr(10), " "))
"""


class Call:
    """Unpickling it calls `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call


def deflated(path: Path, name: str = "x/data.pkl") -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open(name, "w", force_zip64=True) as file:
            file.write(b"\x80\x02X" + struct.pack("<I", HUGE))
            for _ in range(HUGE // 1_000_000):
                file.write(b" " * 1_000_000)
            file.write(b".")
        if name != "x/data.pkl":
            archive.writestr("x/data.pkl", b"\x80\x02}.")


def deflated_weights(path: Path) -> None:
    deflated(path, "x/data/0")


def overlapping(path: Path) -> None:
    """One stored entry of 1 MB that the table of contents lists many times."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}.")
        archive.writestr("x/data/0", b" " * 1_000_000)
        archive.filelist += [archive.filelist[-1]] * (HUGE // 1_000_000)


def with_calls(path: Path) -> None:
    torch.save({"model": Call(bytearray, HUGE)}, path)


def encoded(path: Path) -> None:
    value: Any = "a"
    for _ in range(30):  # each doubles
        value = Call(__import__("_codecs").encode, value, "hex")
    torch.save({"model": value}, path)


def legacy_claims(path: Path) -> None:
    """A storage of 300 * 41 numbers that says it has 2**28, and the file does not."""
    content = saved(_use_new_zipfile_serialization=False)
    claimed = content.replace(b"M" + struct.pack("<H", 12300), b"J" + struct.pack("<i", 2**28))
    assert claimed != content
    path.write_bytes(claimed)


def steps(path: Path) -> None:
    """A pickle of nothing but empty lists, a byte each."""
    start = saved({}, _use_new_zipfile_serialization=False)
    path.write_bytes(start[: start.index(b"}q\x00.")] + b"\x80\x02" + b"]" * 5_000_000 + b".")


def expanded(path: Path) -> None:
    weights = {"visual.conv1.weight": torch.zeros(1).expand(HUGE // 4, 1, 1, 1), "space_dict": torch.zeros(2, 2)}
    torch.save({"model": weights, "temperature": 0.5}, path)


BOMBS: dict[str, tuple[Callable[[Path], None], str]] = {
    "deflated pickle": (deflated, "would become 800 MB"),
    "deflated weights": (deflated_weights, "would become 800 MB"),
    "overlapping entries": (overlapping, "Entries overlap"),
    "bytes": (with_calls, "builtins.bytearray"),
    "encoded": (encoded, "_codecs.encode"),
    "old format": (legacy_claims, "truncated"),
    "steps": (steps, "more than 4,000,000 steps"),
    "expanded": (expanded, "claim more than the file holds"),
}


@pytest.mark.parametrize(("write", "part"), BOMBS.values(), ids=BOMBS)
def test_small_files_do_not_take_large_memory(write: Callable[[Path], None], part: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    write(path)
    assert path.stat().st_size < 10_000_000
    command = [sys.executable, "-c", MEASURE, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    taken, _, said = done.stdout.partition(" ")
    assert part in said
    assert int(taken) * 1000 < ROOM
