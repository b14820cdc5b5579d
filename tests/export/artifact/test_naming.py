"""What is named is what is opened: an artifact is never taken for another one that lies beside it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from export.artifact.reader import open_manifest
from export.errors import ManifestError
from export.runtime.artifact import Artifact
from export.session.session import Session
from tests.helpers.artifacts import TaskArtifacts
from tests.helpers.command_line import Ran, run_export

Run = Callable[..., Ran]


@pytest.mark.parametrize("command", ["run", "evaluate", "bench", "report", "validate"])
@pytest.mark.parametrize("exists", [True, False])
def test_an_artifact_beside_the_manifest_of_another_is_refused(
    exists: bool, command: str, exported: tuple[Path, Path], run_cli: Run, tmp_path: Path
) -> None:
    plan = exported[0].with_name("out.plan")
    if exists:
        plan.write_text("a plan of others")
    given = {
        "run": (plan, "--image", "x", "--image", "y", "--text", "z"),
        "evaluate": (plan, "--data", tmp_path),
        "validate": ("--engine", plan, "--ckpt", exported[1]),
    }.get(command, (plan,))
    refusal = "out.json' is the manifest of 'out.onnx', not of 'out.plan'"
    run_cli(command, *given).refused(refusal, "renamed, or is another")
    for function in (Session, Artifact.open, open_manifest):
        with pytest.raises(ManifestError, match="is the manifest of"):
            function(plan)


def test_an_inspection_is_of_the_file_itself(exported: tuple[Path, Path], run_cli: Run) -> None:
    plan = exported[0].with_name("out.plan")
    plan.write_text("a plan of others")
    ran = run_cli("inspect", plan)
    assert "is the manifest of 'out.onnx' and does not name this file" in " ".join(ran.out.replace("│", "").split())


def test_a_renamed_copy_is_refused(exported: tuple[Path, Path]) -> None:
    artifact, _ = exported
    copy = Path(shutil.copy(artifact, artifact.with_name("copy.onnx")))
    with pytest.raises(ManifestError, match=r"manifest '.*copy\.json'"):
        open_manifest(copy)
    shutil.copy(artifact.with_suffix(".json"), copy.with_suffix(".json"))
    with pytest.raises(ManifestError, match=r"copy\.json'.*'out\.onnx'.*'copy\.onnx'"):
        open_manifest(copy)


def test_links_are_what_they_lead_to(exported: tuple[Path, Path], tmp_path: Path) -> None:
    artifact, _ = exported
    manifest = artifact.with_suffix(".json")
    place = tmp_path / "deployed"
    place.mkdir()
    (place / "latest.onnx").symlink_to(artifact)
    (place / "latest.json").symlink_to(manifest)
    for link in ("latest.onnx", "latest.json"):
        assert open_manifest(place / link)[0] == manifest
        assert Artifact.open(place / link).folder == artifact.parent
    (place / "broken.onnx").symlink_to("nowhere.onnx")
    (place / "loop.onnx").symlink_to("loop.onnx")
    for link in ("broken.onnx", "loop.onnx"):
        with pytest.raises(ManifestError, match="cannot read the manifest"):
            open_manifest(place / link)


def test_files_that_are_linked_under_their_own_names_are_taken_there(
    exported: tuple[Path, Path], tmp_path: Path
) -> None:
    """As caches of model hubs do: the files lie elsewhere, named after their hashes."""
    snapshot, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    snapshot.mkdir()
    blobs.mkdir()
    for number, name in enumerate(("out.json", "out.onnx")):
        os.rename(exported[0].with_name(name), blobs / f"{number:064}")
        (snapshot / name).symlink_to(blobs / f"{number:064}")
    for name in ("out.json", "out.onnx"):
        assert open_manifest(snapshot / name)[0] == snapshot / "out.json"
        assert Artifact.open(snapshot / name).folder == snapshot


def test_an_artifact_of_several_parts_is_named_by_what_was_exported_to(task_artifacts: TaskArtifacts) -> None:
    folder = task_artifacts["vqa"]
    assert open_manifest(folder / "out.onnx")[0] == folder / "out.json"
    with pytest.raises(ManifestError, match=r"is one part of 'out\.onnx'"):
        open_manifest(folder / "out.encoder.onnx")


def test_an_export_makes_names_that_are_opened_again(
    exported: tuple[Path, Path], quick: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Through a link too, which stays."""
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    for _ in range(2):
        assert run_export(quick, "--ckpt", exported[1], "--engine", tmp_path / "link" / "x.onnx") == 0
    assert open_manifest(real / "x.onnx")[1]["artifact"] == "x.onnx"
    assert (tmp_path / "link").is_symlink()
