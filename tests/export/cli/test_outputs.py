"""Where outputs go: symbolic links, devices, names that are no text, terminals that cannot show every character."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from madtp.errors import OutputError
from madtp.files.staging import Staging
from tests.helpers.command_line import Ran

Run = Callable[..., Ran]


def write(path: Path, text: str) -> None:
    with Staging(path) as staging:
        (staging.folder / path.name).write_text(text)
        staging.commit([path.name])


def test_a_link_stays_and_what_it_names_is_written(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "r.json", tmp_path / "link.json"
    link.symlink_to("real/r.json")
    write(link, "created")
    assert link.is_symlink()
    assert real.read_text() == "created"
    write(link, "replaced")
    assert real.read_text() == "replaced"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "real"]


def test_a_link_out_of_the_file_system_or_into_nothing_is_refused(tmp_path: Path) -> None:
    elsewhere, nowhere = tmp_path / "elsewhere", tmp_path / "nowhere"
    elsewhere.symlink_to("/proc/new.json")
    nowhere.symlink_to("missing/new.json")
    for link in (elsewhere, nowhere):
        with pytest.raises(OutputError, match="symbolic link into"):
            write(link, "text")
        assert link.is_symlink()


@pytest.mark.parametrize("name", ["pipe", "to_null", "/dev/null"])
def test_what_is_no_regular_file_is_not_replaced(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to_null").symlink_to("/dev/null")
    path = tmp_path / name
    with pytest.raises(OutputError, match="not a regular file"):
        write(path, "text")
    assert path.exists()
    assert not path.is_file()


@pytest.mark.parametrize("command", ["bench", "report", "validate"])
def test_names_that_are_no_text_are_refused(command: str, tiny_artifact: Path, run_cli: Run, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"f\xff")
    given = {"bench": (tiny_artifact / "out.json",), "report": (tiny_artifact / "out.json",)}.get(
        command, ("--engine", tiny_artifact / "out.onnx", "--ckpt", tiny_artifact / "tiny.pt")
    )
    ran = run_cli(command, *given, "--samples", folder)
    assert ran.status == 2
    assert "is not UTF-8. Rename it" in " ".join(ran.err.replace("│", "").split())


def test_inspect_shows_files_whose_name_is_no_text(run_cli: Run, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"f\xff.plan")
    path.write_bytes(b"what")
    ran = run_cli("inspect", path)
    assert ran.status == 0, ran
    assert "f\\udcff.plan" in ran.out


def test_a_terminal_that_lacks_a_character_shows_another(tiny_artifact: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "export", "inspect", str(tiny_artifact / "out.json")]
    ran = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert b"checkpoint" in ran.stdout


def test_files_that_fail_are_named(monkeypatch: pytest.MonkeyPatch, run_cli: Run, tiny_artifact: Path) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error", "/the/file")

    monkeypatch.setattr("export.inspect.reader.inspect_file", fail)
    run_cli("inspect", tiny_artifact / "out.json").refused("cannot use '/the/file': Input/output error")
