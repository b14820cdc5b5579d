"""Artifacts of the tiny models, exported once.

Functions import `export` themselves: conftest imports this on a bare machine too (`tests/helpers/bare_machine.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from tests.helpers.checkpoints import write_task_checkpoint
from tests.helpers.command_line import run_export
from tests.helpers.samples import write_vocabulary


@contextmanager
def quick_exports(program: torch.onnx.ONNXProgram) -> Iterator[pytest.MonkeyPatch]:
    """Take the tiny model's trace as given, which is of the dynamic layout, and measure latency briefly."""
    import export.build.options
    import export.build.quantization
    import export.build.validation
    import export.graph.trace

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.build.validation, "LATENCY_SECONDS", 0.0)

        def copied(part: object) -> torch.onnx.ONNXProgram:
            return torch.onnx.ONNXProgram(program.model.clone(), program.exported_program)  # passes change it

        patch.setattr(export.graph.trace, "trace_part", copied)
        patch.setattr(export.build.options.ExportOptions, "packed", property(lambda self: self.layout == "packed"))
        patch.setattr(export.build.quantization, "default_channels", lambda *_: None)  # the trace is not smoothed
        yield patch


class TaskArtifacts(dict[str, Path]):
    """By task (all but nlvr) a folder with tiny.pt, vocab.txt and what was exported from it, once it is asked for.

    Tracing takes most of a minute in all, so the workers of a test run share the folders.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root

    def __missing__(self, task: str) -> Path:
        folder = self._root / f"artifact-{task}"
        with FileLock(f"{folder}.lock"):
            if not (folder / "out.json").is_file():
                _export_task(task, folder)
        self[task] = folder
        return folder


def _export_task(task: str, folder: Path) -> None:
    import export.build.validation
    import madtp.data.samples

    folder.mkdir()
    write_vocabulary(folder / "vocab.txt")
    checkpoint = write_task_checkpoint(task, folder / "tiny.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.build.validation, "LATENCY_SECONDS", 0.0)
        patch.setattr(madtp.data.samples, "MIN_SAMPLES", 2)  # tracing takes long enough
        assert run_export(patch, "--ckpt", checkpoint, "--engine", folder / "out.onnx", "--layout", "dynamic") == 0
