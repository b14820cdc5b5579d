"""The rooms of the house: imports point down, nothing runs in a circle, and every room has its line in the docs."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

# From the ground up: a room may import what stands before it. `export.errors` and `export.console` are single files.
ORDER = (
    "madtp.errors",
    "madtp.files",
    "madtp.console",
    "madtp.ops",
    "madtp.models",
    "madtp.tasks",
    "madtp.checkpoint",
    "madtp.data",
    "madtp.training",
    "madtp",  # its face: madtp.load
    "madtp.demo",
    "calibration",
    "export.errors",
    "export.console",
    "export.artifact",
    "export.graph",
    "export.engine",
    "export.samples",
    "export.inspect",
    "export.runtime",
    "export.session",
    "export.bench",
    "export.evaluate",
    "export.validate",
    "export.build",
    "export.report",
    "export.cli",
    "export",  # its face, `python -m export` and export.Session
    "madtp_deploy",  # all of it under one name
)
FACES = {  # what `import export` may bring along
    "export.__init__": {
        "export.build.options",
        "export.build.pipeline",
        "export.build.quantization_options",
        "export.console",
        "export.engine.range",
        "export.runtime.forks",
        "export.session.session",
    }
}
IN_EXPORT = {"__init__.py", "__main__.py", "console.py", "errors.py"}


def modules() -> dict[str, Path]:
    """Every module of the library by its dotted name."""
    paths = [
        path for name in ("madtp", "calibration", "export", "madtp_deploy") for path in (ROOT / name).rglob("*.py")
    ]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(paths)}


def room_of(module: str) -> str:
    """The room that a module stands in."""
    parts = module.split(".")
    if parts[0] in ("calibration", "madtp_deploy") or len(parts) == 1 or parts[1] in ("__init__", "__main__"):
        return parts[0]
    return ".".join(parts[:2])


def imported(path: Path, known: set[str]) -> Iterator[str]:
    """Modules of the library that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            found = next((n for n in (name, name.rpartition(".")[0]) for n in (n, f"{n}.__init__") if n in known), None)
            if found is not None:
                yield found


def arrows() -> dict[str, set[str]]:
    """What each module imports."""
    found = modules()
    return {module: set(imported(path, set(found))) - {module} for module, path in found.items()}


def test_every_module_stands_in_a_room() -> None:
    assert {room_of(module) for module in modules()} == set(ORDER)
    assert {path.name for path in (ROOT / "export").glob("*.py")} == IN_EXPORT


def test_imports_point_down() -> None:
    upward = [
        f"{module} imports {other}"
        for module, others in arrows().items()
        for other in others
        if ORDER.index(room_of(other)) > ORDER.index(room_of(module)) and other not in FACES.get(module, ())
    ]
    assert upward == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    try:
        list(TopologicalSorter(arrows()).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_nothing_but_the_demo_knows_the_demo() -> None:
    knowing = [module for module, others in arrows().items() if any(other.startswith("madtp.demo") for other in others)]
    assert all(module.startswith("madtp.demo") for module in knowing), knowing


@pytest.mark.parametrize("folder", ["tests", "benchmarks"])
def test_no_test_module_is_imported(folder: str) -> None:
    """What tests share is in tests/helpers; a conftest holds fixtures."""
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            wrong = [name for name in names if re.match(r"tests\.(.*\.)?(test_|conftest)", name)]
            assert wrong == [], f"{path} imports {wrong}"


@pytest.mark.parametrize("room", [name for name in ORDER if name != "madtp" and name != "export"])
def test_the_map_has_a_line_for_every_room(room: str) -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    place = room.replace(".", "/")
    assert f"| `{place}/` |" in text or f"| `{place}.py` |" in text


def test_inspect_needs_neither_torch_nor_a_runtime() -> None:
    heavy = ("torch", "onnxruntime", "onnx", "tensorrt", "tensorrt_rtx", "numpy", "matplotlib", "scipy")
    script = (
        "import sys, pkgutil, importlib, export.inspect, export.cli.inspect\n"
        "for module in pkgutil.iter_modules(export.inspect.__path__):\n"
        "    importlib.import_module(f'export.inspect.{module.name}')\n"
        f"print(sorted(set(sys.modules) & set({heavy})))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
