"""A wheel in parts beside the GPU kit: joined to the same bytes, or a sentence about what is missing."""

import shutil
from pathlib import Path

import pytest

from benchmarks.kit import wheel_parts
from benchmarks.kit.stage import SKIPPED, StageRun
from benchmarks.kit.stages import onnx_runtime
from benchmarks.kit.wheel_parts import CONTENT, MissingPartsError, join_wheel, part_folder, split_wheel


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kit with a wheel of 25 bytes beside it, in parts of 10."""
    monkeypatch.setattr(wheel_parts, "MOST_BYTES", 10)
    wheel = tmp_path / "some-1-py3-none-any.whl"
    wheel.write_bytes(bytes(range(25)))
    split_wheel(wheel, tmp_path / "kit")
    return tmp_path / "kit"


def test_parts_are_joined_to_the_same_wheel(kit: Path, tmp_path: Path) -> None:
    assert [(part_folder(kit, n) / CONTENT).stat().st_size for n in (1, 2, 3)] == [10, 10, 5]
    (tmp_path / "joined").mkdir()
    wheel = join_wheel(kit, tmp_path / "joined")
    assert (wheel.name, wheel.read_bytes()) == ("some-1-py3-none-any.whl", bytes(range(25)))


def test_what_is_missing_is_named(kit: Path, tmp_path: Path) -> None:
    shutil.rmtree(part_folder(kit, 2))
    with pytest.raises(MissingPartsError, match=r"^of some-1-py3-none-any\.whl there is no kit-onnxruntime-2$"):
        join_wheel(kit, tmp_path)
    shutil.rmtree(part_folder(kit, 1))
    with pytest.raises(MissingPartsError, match="there is no 'kit-onnxruntime-1'"):
        join_wheel(kit, tmp_path)


def test_parts_of_two_packings_are_refused(kit: Path, tmp_path: Path) -> None:
    (part_folder(kit, 3) / CONTENT).write_bytes(b"other")
    with pytest.raises(MissingPartsError, match="of several packings"):
        join_wheel(kit, tmp_path)


def test_without_them_the_stage_is_skipped_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_runtime, "ROOT", tmp_path / "kit")
    monkeypatch.setattr(onnx_runtime, "LEAST_DISK", 0)
    stage = StageRun(tmp_path / "stage.json", rehearse=False, deadline=0.0)
    assert onnx_runtime.run(stage) == SKIPPED
    assert stage.found["error"].startswith("onnxruntime-gpu is not beside this kit: there is no 'kit-onnxruntime-1'")
    assert "./build.sh gpu-kit --onnxruntime" in stage.found["error"]
