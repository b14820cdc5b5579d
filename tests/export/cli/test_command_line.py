"""What --help promises and what a folder full of a user's own modules must not change."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from PIL import Image

from calibration.__main__ import cli as calibration
from export.build.options import ExportOptions
from export.cli.main import COMMANDS, cli
from export.errors import OptionError
from export.graph.functions import OLDEST_ONNXRUNTIME
from madtp.demo.__main__ import cli as demo
from tests.helpers.artifacts import TaskArtifacts
from tests.helpers.command_line import Ran
from tests.helpers.paths import ROOT

Run = Callable[..., Ran]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
SHADOWS = ("export", "calibration", "madtp", "onnx", "torch", "click", "polygraphy", "numpy", "json", "signal")


def help_of(command: click.Command, *arguments: str) -> str:
    result = CliRunner().invoke(command, [*arguments, "--help"])
    assert result.exit_code == 0, result.output
    return result.output


HELPS = {
    "export": (cli,),
    **{name: (cli, name) for name in COMMANDS},
    "calibration": (calibration,),
    **{f"calibration {name}": (calibration, name) for name in calibration.commands},
    "demo": (demo,),
}


def test_help_offers_the_layouts_that_work() -> None:
    assert "[packed|dynamic]" in help_of(*HELPS["export"])


@pytest.mark.parametrize("name", HELPS)
def test_every_option_says_what_it_is(name: str) -> None:
    group, *names = HELPS[name]
    command = group.get_command(click.Context(group), names[0]) if names else group
    assert command is not None
    options = [option for option in command.params if isinstance(option, click.Option) and not option.hidden]
    assert [option.name for option in options if not option.help] == []


@pytest.mark.parametrize("name", [name for name in HELPS if name != "calibration"])
def test_help_tells_the_exit_status(name: str) -> None:
    assert re.search(r"Exit (status:|1 where)", help_of(*HELPS[name]))


def test_the_list_of_commands_is_not_cut_off() -> None:
    assert "..." not in help_of(cli).split("Commands:")[1]


@pytest.mark.parametrize("name", ["run", "evaluate", "bench", "report"])
def test_commands_about_an_artifact_name_its_files(name: str) -> None:
    text = " ".join(help_of(cli, name).split())
    assert "ARTIFACT (out.json, out.onnx or out.plan)" in text


@pytest.mark.parametrize("option", ["backend", "precision", "layout"])
def test_what_is_unknown_is_refused_from_python_too(option: str) -> None:
    with pytest.raises(OptionError, match=f"--{option} 'made-up' is unknown"):
        ExportOptions(Path("x.pt"), Path("out.plan"), **{option: "made-up"})


@pytest.mark.parametrize(
    ("engine", "given", "packed", "sized"),
    [
        ("out.onnx", {}, True, False),
        ("out.onnx", {"plugins": "none"}, True, False),
        ("out.onnx", {"capacity": Path("c.json")}, True, True),
        ("out.onnx", {"layout": "dynamic"}, False, False),
        ("out.plan", {}, True, True),
        ("out.plan", {"layout": "dynamic"}, False, False),
        ("out.plan", {"plugins": "none"}, False, False),
        ("out.plan", {"tokens": Path("t.json")}, False, False),
    ],
)
def test_exports_are_packed_unless_what_is_asked_for_is_of_the_dynamic_layout(
    engine: str, given: dict[str, Any], packed: bool, sized: bool
) -> None:
    options = ExportOptions(Path("x.pt"), Path(engine), **given)
    assert (options.packed, options.sized) == (packed, sized)


@pytest.mark.parametrize("command", [cli, calibration, demo])
def test_version(command: click.Command) -> None:
    result = CliRunner().invoke(command, ["--version"])
    assert (result.exit_code, result.output) == (0, f"madtp-deploy {metadata.version('madtp-deploy')}\n")


@pytest.mark.parametrize("module", [module for module, _ in (target.split(":") for target in SCRIPTS.values())])
@pytest.mark.parametrize("output", ["full", "closed"])
def test_output_that_nobody_takes_is_no_verdict(module: str, output: str) -> None:
    """1 is what a check that failed exits with."""
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full" if output == "full" else writer, "w") as stdout:
        ran = subprocess.run(
            [sys.executable, "-m", module, "--help"],
            cwd=ROOT,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    said = "error: the result could not be printed: No space left on device\n" if output == "full" else ""
    assert (ran.returncode, ran.stderr) == (2, said)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with modules of a user's own, of names that ours have too."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in SHADOWS:
        (folder / f"{name}.py").write_text(f"import os\nos.write(2, b'the file {name}.py ran')\nos._exit(7)\n")
    return folder


def script(name: str, folder: Path, where: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a console script as pip writes it, in the folder `where`."""
    module, function = SCRIPTS[name].split(":")
    path = folder / name
    path.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(path), *map(str, arguments)]
    return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", SCRIPTS)
def test_console_scripts_are_ours_wherever_they_run(name: str, hostile: Path, tmp_path: Path) -> None:
    module, function = SCRIPTS[name].split(":")
    assert callable(getattr(import_module(module), function))
    ran = script(name, tmp_path, hostile, "--version")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("madtp-deploy ")


@pytest.mark.parametrize("suffix", ["onnx", "plan"])
def test_an_export_runs_no_file_of_the_folder_where_it_is_started(
    suffix: str, hostile: Path, tmp_path: Path, tiny_checkpoint: Callable[..., Path]
) -> None:
    """The process that builds engines is another one, and must not either."""
    plain = ("--plugins", "none")
    engine = tmp_path / f"out.{suffix}"
    ran = script("madtp-export", tmp_path, hostile, "--ckpt", tiny_checkpoint(), "--engine", engine, *plain)
    assert ran.returncode == 0, ran.stderr
    assert "ran" not in ran.stderr
    assert engine.is_file()
    assert sorted(path.name for path in hostile.iterdir()) == sorted(f"{name}.py" for name in SHADOWS)


@pytest.mark.parametrize("named", ["out.json", "out.onnx"])
def test_an_artifact_of_several_parts_is_named_by_what_the_export_was_told(
    named: str, task_artifacts: TaskArtifacts, run_cli: Run, tmp_path: Path
) -> None:
    """There is no file out.onnx: its parts are out.image.onnx and out.text.onnx."""
    folder = shutil.copytree(task_artifacts["clip"], tmp_path / "clip")
    artifact, picture = folder / named, tmp_path / "a.png"
    Image.new("RGB", (32, 32)).save(picture)
    assert named == "out.json" or not artifact.exists()
    commands = {
        "inspect": (artifact,),
        "validate": ("--engine", artifact, "--ckpt", folder / "tiny.pt", "--limit", 2),
        "report": (artifact, "-o", tmp_path / "page.html"),
        "run": (artifact, "--image", picture, "--text", "a dog"),
        "bench": (artifact, "--seconds", 0.1, "--no-profile", "--batch", 1),
    }
    for name, arguments in commands.items():
        ran = run_cli(name, *arguments)
        assert ran.status == 0, (name, ran)


def test_inspect_says_that_a_named_file_is_missing(exported: tuple[Path, Path], run_cli: Run, tmp_path: Path) -> None:
    exported[0].unlink()
    ran = run_cli("inspect", exported[0])
    assert ran.status == 1
    assert "MISSING" in ran.out
    run_cli("inspect", tmp_path / "none.onnx").refused("does not exist")


PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name / "README.md" for name in ("plugins",)),
]
LINES = {
    line: page.name
    for page in PAGES
    for line in re.findall(
        r"(?:python -m (?:export|calibration)\b|madtp-(?:export|calibration)\b) ?[^\n`#]*", page.read_text()
    )
}


@pytest.mark.parametrize("line", LINES)
def test_commands_in_the_docs_have_the_options_that_they_show(line: str) -> None:
    """Of lines like `python -m export run out.json --image a.jpg [--top 5]`."""
    module, *words = re.sub(r"[\[\]().,;]", " ", line.removeprefix("python -m ")).split()
    command: click.Command = calibration if "calibration" in module else cli
    if words and isinstance(command, click.Group) and command.get_command(click.Context(command), words[0]):
        command = command.get_command(click.Context(command), words[0]) or command
    known = {name for option in command.params for name in option.opts} | {"--help"}
    assert {word for word in words if re.fullmatch(r"--?[a-z][a-z-]*", word)} <= known, LINES[line]


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_the_docs_name_the_oldest_runtime(page: str) -> None:
    assert f"ONNX Runtime {OLDEST_ONNXRUNTIME}" in (ROOT / page).read_text()
