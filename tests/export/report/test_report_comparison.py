"""Several artifacts in `python -m export report`: a section that compares them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import export.report.measurements as measure
import export.report.run as run
from tests.helpers.command_line import Ran
from tests.helpers.manifests import edit_manifest
from tests.helpers.pages import text_of

Command = Callable[..., Ran]


@pytest.fixture
def other(tiny_artifact: Path, tmp_path: Path) -> Path:
    """Another artifact of the checkpoint."""
    return shutil.copytree(tiny_artifact, tmp_path / "other") / "out.json"


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "LATENCY_SECONDS", 0.0)
    monkeypatch.setattr(run, "COMPARED", 0.05)


def test_the_page_compares_them(tiny_artifact: Path, other: Path, run_cli: Command, tmp_path: Path) -> None:
    ran = run_cli("report", tiny_artifact / "out.json", other, "-o", tmp_path / "page.html")
    assert ran.status == 0, ran.err
    text = text_of((tmp_path / "page.html").read_text())
    assert "Beside other artifacts of this checkpoint" in text
    (sentence,) = (line for line in ran.out.splitlines() if "1.00x the size of" in line)
    assert " ".join(sentence.split()) in text
    assert text.count("equal answers") == 2, "a table for dense and one for pruned"


def test_another_checkpoint_is_refused(tiny_artifact: Path, other: Path, run_cli: Command, tmp_path: Path) -> None:
    def of_another(manifest: dict) -> None:
        manifest["checkpoint"]["sha256"] = manifest["parts"][0]["checkpoint_sha256"] = "0" * 64

    edit_manifest(other, of_another)
    run_cli("report", tiny_artifact / "out.json", other, "-o", tmp_path / "page.html").refused("does not compare")
    assert not (tmp_path / "page.html").exists()
