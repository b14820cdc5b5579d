"""What others wrote reaches the terminal as text: nothing in it is obeyed."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from rich.table import Table
from rich.text import Text

from madtp.console.plain import PlainConsole
from madtp.console.printing import error_text
from madtp.errors import InputError, printable
from madtp.files.outputs import marked_kind, write_output
from tests.helpers.checkpoints import save_checkpoint
from tests.helpers.command_line import Ran
from tests.helpers.manifests import edit_manifest
from tests.helpers.paths import ROOT
from tests.helpers.samples import write_samples, write_vocabulary

Run = Callable[..., Ran]
ESCAPES = ["\x1b[2J", "\x9b2J", "\x07", "\b", "\r", "\x7f", "\u202e", "\u2066", "\u200f", "\u2028"]
NASTY = "".join(ESCAPES)


def is_harmless(text: str) -> bool:
    return not any(char in text for char in set(NASTY) - set("[2J"))


@pytest.mark.parametrize("escape", ESCAPES)
def test_escapes_are_shown(escape: str) -> None:
    assert is_harmless(printable(f"a{escape}b"))
    assert printable(f"a{escape}b").startswith("a\\")
    assert printable("naïve [red] :bomb: 日本 \n") == "naïve [red] :bomb: 日本 \n"


@pytest.mark.parametrize("terminal", [False, True])
def test_consoles_obey_nothing(terminal: bool) -> None:
    console = PlainConsole(width=60)
    console.file, console._force_terminal = io.StringIO(), terminal
    table = Table(NASTY, title=NASTY, caption=NASTY)
    table.add_row(NASTY)
    table.add_row(Text(NASTY))
    console.print(table, NASTY, Text(NASTY))
    console.print(NASTY, soft_wrap=True)
    console.print("[bold]:bomb:[/bold]")
    shown = console.file.getvalue()
    for escape in ESCAPES[1:]:
        assert escape not in shown
    assert "\x1b[2J" not in shown
    assert "[bold]:bomb:[/bold]" in shown
    widths = {len(line) for line in shown.splitlines() if line[:1] in "│┃"}
    assert terminal or len(widths) == 1, "the table is crooked"


def test_a_line_feed_in_a_name_begins_no_line() -> None:
    error = InputError("cannot read 'a\nerror: all is well'", "Why.\nMore.", "Do.")
    assert error_text(error).splitlines() == ["cannot read 'a\\nerror: all is well'", "Why.", "More.", "Do."]


def test_names_and_keys_in_messages(run_cli: Run, tmp_path: Path, tiny_state: dict[str, torch.Tensor]) -> None:
    folder = tmp_path / NASTY
    folder.mkdir()
    checkpoint = save_checkpoint(folder / "tiny.pt", tiny_state | {f"more{NASTY}": torch.ones(1)})
    for arguments in (
        ("check", "--ckpt", checkpoint, "--engine", tmp_path / "out.onnx"),
        ("check", "--ckpt", folder / "missing.pt", "--engine", tmp_path / "out.onnx"),
        ("check", "--ckpt", checkpoint, "--engine", folder / "out.txt"),
        ("check", "--ckpt", checkpoint, "--engine", tmp_path / "out.onnx", "--batch", NASTY),
        ("check", f"--{NASTY}", checkpoint),
        (NASTY,),
        ("inspect", folder / "missing"),
        ("inspect", checkpoint),
        ("run", folder / "out.json"),
        ("validate", "--engine", folder / "out.onnx", "--ckpt", checkpoint),
    ):
        ran = run_cli(*arguments)
        assert is_harmless(ran.out + ran.err), ran


def test_texts_of_files_and_answers(run_cli: Run, exported: tuple[Path, Path], tmp_path: Path) -> None:
    artifact, _ = exported
    folder = write_samples(tmp_path / "samples")
    image = shutil.copy(next(folder.glob("*.png")), tmp_path / f"{NASTY}.png")
    vocabulary = write_vocabulary(tmp_path / "vocab.txt")
    ran = run_cli(
        "run", artifact, "--image", image, "--image", image, "--text", f"a digit {NASTY}", "--vocab", vocabulary
    )
    assert is_harmless(ran.out + ran.err), ran
    edit_manifest(artifact.with_suffix(".json"), lambda manifest: manifest["backend"].update(version=NASTY))
    ran = run_cli("inspect", artifact)
    assert ran.status == 0, ran
    assert is_harmless(ran.out + ran.err), ran
    entries = json.loads((folder / "samples.json").read_text())
    entries[0]["label"] = NASTY
    (folder / "samples.json").write_text(json.dumps(entries))
    (folder / "vocab.txt").write_text(vocabulary.read_text())
    ran = run_cli("bench", artifact, "--samples", folder)
    ran.refused("label")
    assert is_harmless(ran.out + ran.err), ran


def test_the_tools_beside_the_export(tmp_path: Path) -> None:
    for module in ("calibration", "madtp.demo"):
        command = [sys.executable, "-m", module, *(("tokens",) if module == "calibration" else ()), "--out\x1b[2J"]
        ran = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        assert ran.returncode == 2
        assert "\x1b" not in ran.stdout + ran.stderr


def test_files_that_are_written_hold_no_escapes(tmp_path: Path) -> None:
    """Pages, Markdown and JUnit XML are shown too, and XML may not hold control characters at all."""
    path = tmp_path / "out.xml"
    write_output(path, f"<a>{NASTY}\0\ufffe\uffff\n</a>", marked_kind("a test's file", "<a>"))
    text = path.read_text()
    assert is_harmless(text)
    assert ElementTree.fromstring(text).text == f"{printable(NASTY)}\\x00\\ufffe\\uffff\n"
