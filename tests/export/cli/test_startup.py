"""What command lines import: `--help` and `inspect` wait for no library that takes seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

from export.cli.main import COMMANDS
from tests.helpers.paths import ROOT

RUNTIMES = {"torch", "onnxruntime", "tensorrt", "tensorrt_rtx"}
HEAVY = RUNTIMES | {"onnx", "numpy", "matplotlib", "scipy", "sklearn", "skimage"}


def imported(*arguments: object) -> set[str]:
    """The modules that a process has imported when its command line has ended."""
    script = (
        "import sys; sys.argv[0] = 'export'; from export.cli import main; main.main(); "
        "print(*sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_imports_nothing_heavy(command: tuple[str, ...]) -> None:
    assert imported(*command, "--help") & HEAVY == set()


@pytest.mark.parametrize("name", ["out.json", "out.onnx", "tiny.pt"])
def test_inspect_imports_neither_torch_nor_a_runtime(name: str, tiny_artifact: Path) -> None:
    assert imported("inspect", tiny_artifact / name) & RUNTIMES == set()


@pytest.mark.parametrize("name", ["out.plan", "libmadtp_plugins.so", "notes.txt"])
def test_inspect_imports_onnx_for_onnx_files_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"something")
    assert imported("inspect", tmp_path / name) & HEAVY == set()
