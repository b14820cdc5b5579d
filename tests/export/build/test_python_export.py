"""An export that a Python program asks for."""

from collections.abc import Callable
from pathlib import Path

import pytest

import export.build.validation
from export import ExportOptions, Range
from export import export as export_artifact
from export.artifact.reader import manifest_path, read_manifest
from madtp.errors import MadtpError


class Recorder:
    """A progress that keeps the names of the stages."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def stage(self, description: str) -> None:
        self.stages.append(description)

    def detail(self, text: str) -> None:
        assert text


@pytest.fixture
def options(tiny_checkpoint: Callable[..., Path], samples_folder: Path, tmp_path: Path) -> ExportOptions:
    return ExportOptions(tiny_checkpoint(), tmp_path / "python.onnx", samples=samples_folder, batch=Range(1, 1, 2))


def test_an_artifact_is_written_and_nothing_printed(
    options: ExportOptions, quick: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    progress = Recorder()
    result = export_artifact(options, progress)
    assert result.written
    assert result.manifest is not None
    assert result.manifest == read_manifest(manifest_path(options.engine))
    assert len(progress.stages) == 3
    assert capfd.readouterr() == ("", "")


def test_a_failed_validation_writes_nothing(options: ExportOptions, quick: pytest.MonkeyPatch) -> None:
    quick.setattr(export.build.validation.ExportValidation, "passed", False)
    result = export_artifact(options)
    assert not result.written
    assert not options.engine.exists()


def test_what_is_wrong_is_raised_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MadtpError) as caught:
        export_artifact(ExportOptions(tmp_path / "missing.pt", tmp_path / "out.onnx"))
    assert "missing.pt" in caught.value.what
