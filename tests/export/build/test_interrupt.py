"""Ctrl-C and SIGTERM in every phase of an export: exit 2, nothing left behind, earlier outputs as they were."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from madtp.files.staging import Staging
from tests.helpers.command_line import WITHOUT_TRACE, Ran
from tests.helpers.outputs import Outputs
from tests.helpers.paths import ROOT

PATIENCE = 120  # seconds; far more than anything here takes


class Process:
    """An export in a process group of its own, with a folder for temporary files of its own."""

    def __init__(self, scratch: Path, *arguments: object) -> None:
        self.scratch = scratch
        self.scratch.mkdir()
        self._log = (scratch.parent / "stderr").open("w+")
        self._popen = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )

    def stderr(self) -> str:
        return Path(self._log.name).read_text()

    def wait_for(self, condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self._popen.poll() is None, f"ended before {what}: {self.stderr()}"
            assert time.monotonic() < deadline, f"no {what}: {self.stderr()}"
            time.sleep(0.02)

    def wait_for_stage(self, description: str) -> None:
        self.wait_for(lambda: description in self.stderr(), description)

    def workers(self) -> list[psutil.Process]:
        return [
            child for child in psutil.Process(self._popen.pid).children() if "export.engine.worker" in child.cmdline()
        ]

    def imports(self, library: str) -> bool:
        return library in Path(f"/proc/{self._popen.pid}/maps").read_text()

    def interrupted(self, number: int, *, group: bool = False) -> None:
        """Send the signal, and assert what has to follow."""
        family = psutil.Process(self._popen.pid).children(recursive=True)
        (os.killpg if group else os.kill)(self._popen.pid, number)
        out, _ = self._popen.communicate(timeout=PATIENCE)
        ran = Ran(self._popen.returncode, out, self.stderr())
        ran.refused("interrupted: nothing was written")
        assert out == ""
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not alive, "a process survived"
        left = [path.name for path in self.scratch.glob("[tm]*")]  # onnxruntime keeps a file of its own there
        assert not left, "temporary files are left"

    def close(self) -> None:
        if self._popen.poll() is None:
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.communicate()
        self._log.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started = []

    def begin(*arguments: object) -> Process:
        started.append(Process(tmp_path / "scratch", *arguments))
        return started[-1]

    yield begin
    for process in started:
        process.close()


Start = Callable[..., Process]
Write = Callable[..., Path]


def test_ctrl_c_while_libraries_are_imported(start: Start, tiny_checkpoint: Write, outputs: Outputs) -> None:
    process = start("-m", "export", "--ckpt", tiny_checkpoint(), "--engine", outputs / "out.onnx")
    process.wait_for(lambda: process.imports("libtorch"), "import of torch")
    process.interrupted(signal.SIGINT)
    outputs.untouched()


def test_ctrl_c_while_reading(start: Start, tiny_checkpoint: Write, outputs: Outputs) -> None:
    process = start("-m", "export", "--ckpt", tiny_checkpoint(), "--engine", outputs / "trt.plan")
    process.wait_for_stage("[1/4] reading checkpoint and samples")
    process.interrupted(signal.SIGINT)
    outputs.untouched()


def test_an_interrupt_where_python_cannot_raise_it_is_not_lost() -> None:
    script = """
import os, signal, time, weakref
from export.cli.common import raise_interrupts
raise_interrupts()
class Thing: ...
thing = Thing()
reference = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))
try:
    del thing
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
"""
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert (ran.stdout, ran.stderr) == ("interrupted\n", "")


def test_an_interrupt_that_a_library_swallowed_ends_the_next_step() -> None:
    script = """
import os, signal
from rich.console import Console
from export.cli.common import raise_interrupts
from madtp.console.progress import ConsoleProgress
raise_interrupts()
with ConsoleProgress(Console()) as progress:
    progress.count("steps", 0, 9)
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except BaseException:
        pass
    try:
        progress.count("steps", 1, 9)
    except KeyboardInterrupt:
        print("interrupted")
"""
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert (ran.stdout, ran.stderr) == ("interrupted\n", "")


def test_ctrl_c_while_tracing(start: Start, tiny_checkpoint: Write, outputs: Outputs) -> None:
    process = start("-m", "export", "--ckpt", tiny_checkpoint(), "--engine", outputs / "out.onnx")
    process.wait_for_stage("[2/3] tracing the model to ONNX")
    time.sleep(1)
    assert list(outputs.folder.glob(".out.onnx.*"))
    process.interrupted(signal.SIGINT)
    outputs.untouched()


@pytest.mark.parametrize(
    ("number", "group"),
    [(signal.SIGINT, False), (signal.SIGINT, True), (signal.SIGTERM, False)],
    ids=["Ctrl-C", "Ctrl-C in a terminal, which reaches the builder too", "SIGTERM"],
)
def test_interrupt_while_the_engine_is_built(
    number: int, group: bool, start: Start, traced: Path, tiny_checkpoint: Write, outputs: Outputs
) -> None:
    arguments = ("--ckpt", tiny_checkpoint(), "--engine", outputs / "trt.plan", "--backend", "tensorrt-rtx")
    process = start("-c", WITHOUT_TRACE, traced, *arguments)
    process.wait_for_stage("[3/4] building the engine")
    process.wait_for(process.workers, "builder")
    if not group:  # else while it is still being started
        process.wait_for(lambda: list(outputs.folder.glob(".trt.plan.*/trt.plan")), "plan")
    process.interrupted(number, group=group)
    outputs.untouched()


def test_ctrl_c_while_checking(start: Start, traced: Path, tiny_checkpoint: Write, outputs: Outputs) -> None:
    arguments = ("--ckpt", tiny_checkpoint(), "--engine", outputs / "out.onnx")
    process = start("-c", WITHOUT_TRACE, traced, *arguments)
    process.wait_for_stage("[3/3] checking answers")
    time.sleep(1)
    process.interrupted(signal.SIGINT)
    outputs.untouched()


def test_ctrl_c_while_validating(start: Start, exported: tuple[Path, Path], outputs: Outputs) -> None:
    artifact, checkpoint = exported
    before = {path: path.read_bytes() for path in artifact.parent.iterdir()}
    process = start("-m", "export", "validate", "--engine", artifact, "--ckpt", checkpoint)
    process.wait_for_stage("comparing outputs")
    process.interrupted(signal.SIGINT)
    assert {path: path.read_bytes() for path in artifact.parent.iterdir()} == before


def test_interrupts_between_the_files_of_an_export_come_too_late(
    outputs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither half of the outputs nor the hidden folder is left, however often Ctrl-C is pressed."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    arrived = []
    handlers = [signal.signal(number, lambda number, _: arrived.append(number)) for number in numbers]

    def interrupt_and(action: Callable[..., object]) -> Callable[..., None]:
        def interrupted(*arguments: object, **options: object) -> None:
            for number in numbers:
                signal.raise_signal(number)
            action(*arguments, **options)

        return interrupted

    try:
        with monkeypatch.context() as patch, Staging(outputs / "trt.plan") as staging:  # undone before the handlers
            for name in ("trt.plan", "trt.json"):
                (staging.folder / name).write_text("new")
            patch.setattr(os, "replace", interrupt_and(os.replace))
            patch.setattr(shutil, "rmtree", interrupt_and(shutil.rmtree))
            staging.commit(["trt.plan", "trt.json"])
        assert not arrived
        new = {**outputs.earlier, "trt.plan": b"new", "trt.json": b"new"}
        assert {path.name: path.read_bytes() for path in outputs.folder.iterdir()} == new
        signal.raise_signal(signal.SIGTERM)
        assert arrived == [signal.SIGTERM], "they are heeded again"
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
