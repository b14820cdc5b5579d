"""What is installed, as programs outside this repository use it: symbols, CMake package, calls without a GPU."""

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from export.engine.plugin_build import INSTALL, build_library, find_nvcc
from export.engine.runtime_build import build_runtime
from madtp.ops.library import FUNCTIONS
from madtp.ops.spec import PLUGINS
from tests.helpers.kernels import AttentionShape, CompactInputs, CompactOutputs, CompactShape
from tests.helpers.native_build import build, tool
from tests.helpers.paths import ROOT

NO_DRIVER = {35, 100}  # cudaErrorInsufficientDriver, cudaErrorNoDevice
ATTENTION_SIZES, COMPACT_SIZES = (2, 577, 768, 12, 0, 0), (2, 577, 768, 100, 3, 0, 0)
no_gpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the pointers of these calls are made up, and here is a GPU"
)

CMAKE = """
cmake_minimum_required(VERSION 3.24)
project(user LANGUAGES C CXX)
find_package(madtp ${WANTED} CONFIG REQUIRED)
set(CMAKE_C_STANDARD 99)
add_compile_options(-Wall -Wextra -Wpedantic -Werror)
add_executable(in_c main.c)
target_link_libraries(in_c PRIVATE madtp::kernels)
add_executable(in_cxx main.cpp)
target_link_libraries(in_cxx PRIVATE madtp::kernels madtp::plugins)
add_executable(with_plugins_alone only.cpp)
target_link_libraries(with_plugins_alone PRIVATE madtp::plugins)
"""
C = """
#include <madtp/kernels.h>
#include <stdio.h>

int main(void) {
    MadtpAttentionShape const shape = {2, 577, 768, 12, 0, MADTP_FLOAT32};
    float* const made_up = (float*)4096;
    printf("%zu", madtp_aligned_attention_workspace(&shape));
    for (int call = 0; call < 2; ++call)
        printf(" %d", (int)madtp_aligned_attention(
            &shape, made_up, made_up, made_up, made_up, made_up, made_up, 0));
    return 0;
}
"""
ONLY = """
#include <madtp/kernels.h>

extern "C" void* const* getCreators(int32_t& count) noexcept;

int main() {
    int32_t creators = 0;
    getCreators(creators);
    return creators - COUNT;
}
""".replace("COUNT", str(len(PLUGINS)))
CXX = """
#include <madtp/kernels.h>

#include <cstdio>

extern "C" void* const* getCreators(int32_t& count) noexcept;

int main() {
    MadtpCompactShape const shape{2, 577, 768, 100, 3, 0, MADTP_FLOAT32};
    auto* const made_up = reinterpret_cast<float*>(4096);
    auto* const ids = reinterpret_cast<int32_t*>(made_up);
    auto* const count = reinterpret_cast<int64_t*>(made_up);
    MadtpCompactInputs const in{made_up, made_up, ids, made_up, made_up, made_up, made_up, count};
    MadtpCompactOutputs const out{made_up, made_up, ids, count};
    static_assert(noexcept(madtp_token_compact(&shape, &in, &out, made_up, nullptr)), "the header says so");
    int32_t creators = 0;
    getCreators(creators);
    std::printf("%d %zu", creators, madtp_token_compact_workspace(&shape));
    for (int call = 0; call < 2; ++call)
        std::printf(" %d", static_cast<int>(madtp_token_compact(&shape, &in, &out, made_up, nullptr)));
}
"""


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def kernels() -> Path:
    """The library of kernels, built for CUDA."""
    build_library()
    return INSTALL / "lib" / "libmadtp_kernels.so"


@pytest.fixture(scope="module")
def toolkit() -> Path:
    """The toolkit of nvcc, which on PATH may be a script that calls it."""
    said = run(find_nvcc(), "--dryrun", "-c", "any.cu").stderr
    top = re.search(r"^#\$ TOP=(.*)$", said, re.MULTILINE)
    assert top is not None, said
    return Path(top[1]).resolve()


@pytest.fixture
def configure(kernels: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Configure a project that uses the package, which was moved elsewhere after it was installed."""
    moved, project = shutil.copytree(INSTALL, tmp_path / "moved"), tmp_path / "project"
    project.mkdir()
    for name, text in (("CMakeLists.txt", CMAKE), ("main.c", C), ("main.cpp", CXX), ("only.cpp", ONLY)):
        (project / name).write_text(text)

    def configure(*options: str, wanted: str = "0.1") -> subprocess.CompletedProcess[str]:
        ninja = ("-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}")
        package = (f"-DCMAKE_PREFIX_PATH={moved}", f"-DWANTED={wanted}")
        return run(tool("cmake"), "-S", project, "-B", tmp_path / "built", *ninja, *package, *options)

    return configure


def test_the_library_of_kernels_exports_its_header_and_nothing_else(kernels: Path) -> None:
    symbols = run("nm", "-D", "--defined-only", kernels).stdout.splitlines()
    assert {line.split()[-1] for line in symbols} == set(FUNCTIONS)
    declared = (INSTALL / "include" / "madtp" / "kernels.h").read_text()
    assert set(re.findall(r"^MADTP_API .*?(madtp_\w+)\(", declared, re.MULTILINE)) == set(FUNCTIONS)
    assert "cudart" not in run("ldd", kernels).stdout


def workspaces(library: Path) -> list[int]:
    """What both functions say, for the sizes above."""
    c = ctypes.CDLL(str(library))
    functions = (c.madtp_aligned_attention_workspace, c.madtp_token_compact_workspace)
    for function in functions:
        function.restype = ctypes.c_size_t
    shapes = (AttentionShape(*ATTENTION_SIZES), CompactShape(*COMPACT_SIZES))
    return [function(ctypes.byref(shape)) for function, shape in zip(functions, shapes, strict=True)]


def test_workspaces_can_be_asked_for(kernels: Path) -> None:
    attention, compact = workspaces(kernels)
    assert attention == 4 * 2 * 577 * (4 * 12 + 10)
    assert compact > 0
    assert [attention, compact] == workspaces(build().kernels)


@no_gpu
def test_the_kernels_can_be_called_up_to_the_missing_driver(kernels: Path, capfd: pytest.CaptureFixture[str]) -> None:
    library = ctypes.CDLL(str(kernels))
    attention, compact = AttentionShape(*ATTENTION_SIZES), CompactShape(*COMPACT_SIZES)
    made_up, stream = ctypes.c_void_p(4096), ctypes.c_void_p()
    inputs, outputs = CompactInputs(*[made_up] * 8), CompactOutputs(*[made_up] * 4)
    for dtype in range(3):
        attention.dtype = compact.dtype = dtype
        answers = [
            *(library.madtp_aligned_attention(ctypes.byref(attention), *[made_up] * 6, stream) for _ in range(2)),
            *(
                library.madtp_token_compact(*map(ctypes.byref, (compact, inputs, outputs)), made_up, stream)
                for _ in range(2)
            ),
        ]
        assert len(set(answers)) == 1, answers
        assert answers[0] in NO_DRIVER
    assert capfd.readouterr() == ("", "")


@no_gpu
@pytest.mark.parametrize("given", ["toolkit", "headers"])
def test_programs_in_c_and_cxx_find_link_and_call_the_package(
    configure: Callable[..., subprocess.CompletedProcess[str]],
    kernels: Path,
    toolkit: Path,
    tmp_path: Path,
    given: str,
) -> None:
    if given == "headers":  # as in PyPI's wheels, which have no libcudart.so
        (tmp_path / "cuda").mkdir()
        (tmp_path / "cuda" / "include").symlink_to(toolkit / "include")
        toolkit = tmp_path / "cuda"
    for made in (configure(f"-DCUDAToolkit_ROOT={toolkit}"), run(tool("cmake"), "--build", tmp_path / "built")):
        assert made.returncode == 0, made.stdout + made.stderr
    attention, compact = workspaces(kernels)
    for program, expected in (("in_c", [attention]), ("in_cxx", [len(PLUGINS), compact])):
        ran = run(tmp_path / "built" / program)
        assert (ran.returncode, ran.stderr) == (0, ""), ran
        *numbers, first, second = map(int, ran.stdout.split())
        assert numbers == expected
        assert first == second
        assert first in NO_DRIVER


@pytest.mark.parametrize("wanted", ["0.2", "1.0", "0.1.9"])
def test_a_package_of_another_version_is_refused(
    configure: Callable[..., subprocess.CompletedProcess[str]], wanted: str
) -> None:
    made = configure(wanted=wanted)
    assert made.returncode != 0
    assert f'compatible with requested version "{wanted}"' in re.sub(r"\s+", " ", made.stderr)


def test_a_machine_without_cuda_is_told_so(configure: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    made = configure("-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF", "-DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=ON")
    assert made.returncode != 0
    assert "CUDAToolkit" in made.stderr


@pytest.mark.parametrize(("component", "found"), [("runtime", True), ("kernels", False), ("poetry", False)])
def test_a_component_is_found_or_refused_without_cuda(tmp_path: Path, component: str, found: bool) -> None:
    build_library()
    build_runtime()
    (tmp_path / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.24)\nproject(user LANGUAGES CXX)\n"
        f"find_package(madtp CONFIG REQUIRED COMPONENTS {component})\n"
    )
    ninja = ("-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-DCMAKE_PREFIX_PATH={INSTALL}")
    without = ("-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF", "-DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=ON")
    made = run(tool("cmake"), "-S", tmp_path, "-B", tmp_path / "built", *ninja, *without)
    assert (made.returncode == 0) == found, made.stdout + made.stderr
    assert ("need CUDA" in made.stderr) == (component != "runtime")


def test_the_package_names_no_folder_of_this_checkout(kernels: Path) -> None:
    files = list((INSTALL / "lib" / "cmake" / "madtp").iterdir())
    assert len(files) >= 3
    assert not [path.name for path in files if str(ROOT) in path.read_text()]
