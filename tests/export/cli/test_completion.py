"""Completion of command lines by a shell, as the console script offers it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The console script, as pip writes it."""
    path = tmp_path / "madtp-export"
    path.write_text("import sys\nfrom export.__main__ import main\nsys.exit(main())\n")
    return path


def asked(program: Path, instruction: str, words: str = "") -> subprocess.CompletedProcess[str]:
    """What a shell gets for the words that were typed, the last of them unfinished."""
    typed = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "_MADTP_EXPORT_COMPLETE": instruction, **typed}
    command = [sys.executable, str(program)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_bash_is_told_what_to_call(program: Path) -> None:
    done = asked(program, "bash_source")
    assert (done.returncode, done.stderr) == (0, "")
    assert "complete -o nosort -F" in done.stdout
    assert "_MADTP_EXPORT_COMPLETE=bash_complete" in done.stdout


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("madtp-export val", "plain,validate"),
        ("madtp-export --engi", "plain,--engine"),
        ("madtp-export --backend tensorrt-", "plain,tensorrt-rtx"),
        ("madtp-export bench --max-reg", "plain,--max-regression"),
        ("madtp-export --ckpt x", "file,x"),
    ],
)
def test_words_are_completed(program: Path, words: str, offered: str) -> None:
    done = asked(program, "bash_complete", words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n") == [offered, ""]
