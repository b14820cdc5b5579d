"""What pip installs does the whole export outside the checkout: the wheel, and the source distribution."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from export.engine.plugin_build import INSTALL, architectures, build_library
from export.engine.runtime_build import build_runtime
from madtp.files.inputs import sha256
from madtp.files.native import DEFAULT_SM, RUNTIME_STAMP, STAMP, cached_build, source_hash
from tests.helpers.packages import Environment, install, source_distribution, wheel
from tests.helpers.paths import ROOT

DEMO = ROOT / "madtp" / "demo" / "nlvr-digits.pt"
OURS = ("madtp", "calibration", "export", "madtp_deploy")
# The whole export but for long measurements.
FROM_PYTHON = """
import sys
from pathlib import Path
import madtp_deploy
import export.build.validation
export.build.validation.LATENCY_SECONDS = 0.0
batch = madtp_deploy.Range(1, 1, 1)
options = madtp_deploy.ExportOptions(checkpoint=Path(sys.argv[1]), engine=Path("out.plan"), batch=batch)
assert madtp_deploy.export(options).written
"""
# The kernels for torch, and the ops for ONNX Runtime.
FIND = """
from export.engine.op_library import installed_library, loadable_op_library
from madtp.ops.library import load_library
load_library()
loadable_op_library(installed_library())
"""

pytestmark = pytest.mark.skipif(architectures() != DEFAULT_SM, reason="MADTP_SM: wheels are for the usual GPUs")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution."""
    return source_distribution(tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def full(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that ./build.sh wheel makes."""
    build_library()
    build_runtime()
    folder = tmp_path_factory.mktemp("wheel")
    done = wheel(package, folder, MADTP_INSTALL=str(INSTALL))
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def with_libraries(full: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return install(full, tmp_path_factory.mktemp("with-libraries"))


@pytest.fixture(scope="module")
def with_sources(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return install(package, tmp_path_factory.mktemp("with-sources"))


def check_files(environment: Environment) -> None:
    """Every package of ours was imported from the environment."""
    script = f"import {', '.join(OURS)}\nprint(*(module.__file__ for module in ({', '.join(OURS)})), sep='\\n')"
    files = environment.run("python", "-c", script).stdout.split()
    assert len(files) == len(OURS)
    assert all(Path(file).is_relative_to(environment.folder / "venv") for file in files), files


def test_the_wheel_exports_the_demo_to_a_plan_without_a_compiler(with_libraries: Environment) -> None:
    ran = with_libraries.run("madtp-export", "--ckpt", DEMO, "--engine", "out.plan", "--batch", "1")
    assert ran.returncode == 0, ran.stderr
    library = json.loads((with_libraries.folder / "out.json").read_text())["plugins"]["library"]
    assert library["sha256"] == sha256(with_libraries.folder / "out.plugins.so") == build_library().sha256
    assert (with_libraries.folder / "out.plan").is_file()
    check_files(with_libraries)


def test_the_source_distribution_exports_the_demo_to_a_plan_from_python(with_sources: Environment) -> None:
    """With the library in the cache that an earlier export compiled."""
    library = build_library()
    cache = with_sources.folder / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        shutil.copytree(INSTALL, cached_build(source_hash(), DEFAULT_SM) / "install")
    ran = with_sources.run("python", "-c", FROM_PYTHON, DEMO, XDG_CACHE_HOME=str(cache))
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
    assert sha256(with_sources.folder / "out.plugins.so") == library.sha256
    assert (with_sources.folder / "out.plan").is_file()
    check_files(with_sources)
    assert with_sources.run("python", "-c", FIND, XDG_CACHE_HOME=str(cache)).returncode == 0


def test_the_wheel_carries_the_kernels_and_is_for_one_platform(full: Path, with_libraries: Environment) -> None:
    assert full.name.endswith("-py3-none-linux_x86_64.whl")
    names = zipfile.ZipFile(full).namelist()
    assert {f"{package}/py.typed" for package in OURS} <= set(names)
    assert {path.name for path in (INSTALL / "lib").glob("*.so")} == {
        Path(name).name for name in names if name.endswith(".so")
    }
    assert with_libraries.run("python", "-c", FIND).returncode == 0


@pytest.mark.parametrize(
    ("environment", "parts"),
    [
        ({}, ("no CUDA compiler", "pip install 'madtp-deploy[compile]'", "--plugins none")),
        (
            {"CUDACXX": "/bin/true", "XDG_CACHE_HOME": "/dev/null"},
            ("no place to be compiled in", "/dev/null", "Set XDG_CACHE_HOME"),
        ),
        ({"CUDACXX": "/bin/true", "TENSORRT_ROOT": "/dev"}, ("no TensorRT headers", "madtp-deploy[compile]")),
    ],
    ids=["compiler", "cache", "headers"],
)
def test_what_a_compilation_lacks_is_said(
    with_sources: Environment, environment: dict[str, str], parts: tuple[str, ...]
) -> None:
    ran = with_sources.run("python", "-m", "export.engine.plugin_build", **environment)
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
    assert [part for part in parts if part not in ran.stderr] == [], ran.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("", "no finished build"),
        (STAMP, "was built from other sources or for other GPUs"),
        (RUNTIME_STAMP, "the engine for C and C++ in MADTP_INSTALL"),
    ],
)
def test_no_wheel_is_made_with_libraries_of_something_else(
    package: Path, tmp_path: Path, change: str, words: str
) -> None:
    if change:
        build_library()
        build_runtime()
        (tmp_path / "lib").symlink_to(INSTALL / "lib")
        for name in (STAMP, RUNTIME_STAMP):
            stamp = json.loads((INSTALL / name).read_text())
            (tmp_path / name).write_text(json.dumps(stamp | ({"source": "0" * 64} if name == change else {})))
    done = wheel(package, tmp_path, MADTP_INSTALL=str(tmp_path))
    assert done.returncode != 0
    assert words in " ".join(done.stderr.split()), done.stderr
    assert not list(tmp_path.glob("*.whl"))
