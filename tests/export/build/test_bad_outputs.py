"""Outputs that cannot be written: a clear error, and earlier ones stay as they were."""

import json
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

import export.engine.builder
import madtp
import madtp.files.scratch
from madtp.errors import OutputError
from madtp.files.inputs import sha256
from madtp.files.staging import Staging
from tests.helpers.checkpoints import TINY
from tests.helpers.command_line import Ran
from tests.helpers.manifests import manifest_json
from tests.helpers.outputs import Outputs, largest_file
from tests.helpers.samples import WORDS, write_samples

Run = Callable[..., Ran]
Write = Callable[..., Path]


def test_outputs_that_cannot_be_written(tiny_checkpoint: Write, outputs: Outputs, tmp_path: Path, run_cli: Run) -> None:
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "other.json").mkdir()
    for engine, parts in {
        tmp_path / "missing" / "out.onnx": ("cannot write into", "does not exist", "mkdir -p"),
        outputs / "out.json" / "out.onnx": ("cannot write into", "It is a file"),
        tmp_path / "folder.onnx": ("cannot write", "It is a folder"),
        tmp_path / "other.onnx": ("cannot write", "other.json", "It is a folder"),
        tmp_path / f"{'x' * 300}.onnx": ("cannot write", "File name too long"),
        Path("/proc/out.onnx"): ("'/proc'",),
    }.items():
        run_cli("--ckpt", tiny_checkpoint(), "--engine", engine).refused(*parts)
    outputs.untouched()
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("early", [True, False])
def test_no_permission_to_write(
    early: bool, tiny_checkpoint: Write, outputs: Outputs, run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The superuser, whom tests may run as, is never refused by the file system."""

    def refuse(**_: object) -> str:
        raise PermissionError(13, "Permission denied")

    if early:
        allowed = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and allowed(path, mode))
    else:  # e.g. a file system that is mounted read-only
        monkeypatch.setattr(madtp.files.scratch.tempfile, "mkdtemp", refuse)
    ran = run_cli("--ckpt", tiny_checkpoint(), "--engine", outputs / "out.onnx")
    ran.refused("cannot write", "ermission", "Name a folder that you can write to")
    outputs.untouched()


@pytest.mark.parametrize("name", ["out.json", "out.onnx", "samples.json", "link.json"])
def test_an_input_is_not_overwritten(name: str, tiny_checkpoint: Write, tmp_path: Path, run_cli: Run) -> None:
    """The manifest of model.onnx is model.json, which is a natural name for its configuration too."""
    folder = write_samples(tmp_path / "samples")
    checkpoint = tiny_checkpoint("samples/out.onnx")
    (folder / "out.json").write_text(json.dumps(TINY))
    (folder / "link.json").symlink_to("samples.json")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    ran = run_cli(
        *("--ckpt", checkpoint, "--engine", (folder / name).with_suffix(".onnx")),
        *(("--config", folder / "out.json") if name == "out.json" else ()),
        *("--samples", folder),
    )
    ran.refused("would overwrite", "This run reads it", "Name another file")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_too_little_room_is_noticed_before_anything_is_built(
    tiny_checkpoint: Write, outputs: Outputs, run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 100, 200_000))
    checkpoint = tiny_checkpoint()  # 117 kB of weights
    assert run_cli("check", "--ckpt", checkpoint, "--engine", outputs / "out.onnx").status == 0
    for command in ((), ("check",)):
        ran = run_cli(*command, "--ckpt", checkpoint, "--engine", outputs / "trt.plan")
        ran.refused("not enough room", "MB are free", "Free some space")
        assert "tracing" not in ran.err
    outputs.untouched()


@pytest.mark.parametrize(("name", "room"), [("out.onnx", 100_000), ("trt.plan", 150_000), ("trt.plan", 1_000_000)])
def test_disk_full_while_writing(
    name: str, room: int, tiny_checkpoint: Write, outputs: Outputs, run_cli: Run, quick: pytest.MonkeyPatch
) -> None:
    """The ONNX file has 0.2 MB; the plan, which the builder's own process writes, many."""
    backend = () if name == "out.onnx" else ("--backend", "tensorrt-rtx")
    checkpoint = tiny_checkpoint()
    with largest_file(room):
        ran = run_cli("--ckpt", checkpoint, "--engine", outputs / name, *backend)
    ran.refused("the disk is full", f"cannot write '{outputs / name}'", "Free some space")
    assert ("building the engine" in ran.err) == (name == "trt.plan")
    outputs.untouched()


def test_builder_that_fails_or_dies(
    tiny_checkpoint: Write, outputs: Outputs, run_cli: Run, quick: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = tmp_path / "builder"
    for text, parts in {
        "import sys; sys.exit('unsupported node: Foo')": ("did not build the engine", "unsupported node: Foo"),
        "import os; os.kill(os.getpid(), 9)": ("did not build the engine", "status -9"),
    }.items():
        module.with_suffix(".py").write_text(text)
        quick.setenv("PYTHONPATH", str(tmp_path))
        quick.setattr(export.engine.builder, "WORKER", module.name)
        run_cli("--ckpt", tiny_checkpoint(), "--engine", outputs / "trt.plan").refused(*parts, "--engine out.onnx")
    outputs.untouched()


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_outputs_are_replaced_all_or_none(failing: int, outputs: Outputs, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["trt.timing", "trt.plan", "trt.json"]  # the first is new, the others replace earlier ones
    replace, calls = os.replace, iter(range(100))

    def fail_once(source: Path, target: Path) -> None:
        if next(calls) == failing:
            raise PermissionError(1, "Operation not permitted")
        replace(source, target)

    with Staging(outputs / "trt.plan") as staging:
        for name in names:
            (staging.folder / name).write_text("new")
        monkeypatch.setattr(os, "replace", fail_once)
        with pytest.raises(OutputError, match="not permitted"):
            staging.commit(names)
    outputs.untouched()


def test_a_good_export_replaces_earlier_outputs(
    samples_folder: Path, tiny_checkpoint: Write, outputs: Outputs, run_cli: Run, quick: pytest.MonkeyPatch
) -> None:
    """The counterpart of all of the above: the same fixtures, nothing wrong."""
    ran = run_cli("--ckpt", tiny_checkpoint(), "--engine", outputs / "out.onnx", "--samples", samples_folder)
    assert ran.status == 0, ran
    assert f"wrote {outputs / 'out.onnx'}" in ran.out
    assert sorted(path.name for path in outputs.folder.iterdir()) == [
        "out.json",
        "out.onnx",
        "out.vocab.txt",
        "trt.json",
        "trt.plan",
    ]
    assert (outputs / "trt.plan").read_bytes() == outputs.earlier["trt.plan"]
    manifest = manifest_json(outputs / "out.json")
    assert manifest["parts"][0]["sha256"] == sha256(outputs / "out.onnx")
    assert manifest["preprocessing"]["text"]["vocabulary"]["sha256"] == sha256(samples_folder / "vocab.txt")
    assert set(WORDS) <= set((samples_folder / "vocab.txt").read_text().split())
