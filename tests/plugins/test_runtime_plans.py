"""Plans in the engine for C and C++: in stand-ins for TensorRT, and in TensorRT for RTX up to the driver."""

import ctypes.util
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import tensorrt_rtx_libs

from export.engine.plugin_build import build_library
from madtp.files.inputs import sha256
from tests.helpers.fake_tensorrt import LIBRARIES, plan_checks, stand_in, to_plans
from tests.helpers.made_up_engines import write_bucket_engine, write_counting_engine
from tests.helpers.runtime_programs import run

RTX = next(Path(tensorrt_rtx_libs.__path__[0]).glob("libtensorrt_rtx.so.*"))
CODES = {"file": 2, "library": 3, "backend": 4, "input": 5}


def lengths(folder: Path, generation: str = "tensorrt", plan: str = "lengths", **library: Any) -> Path:
    return to_plans(write_counting_engine(folder), generation, plan, library or None)


def load(path: Path, *options: object, build: str = "tensorrt", **environment: str) -> str:
    """What the program that opens it prints, in the stand-in."""
    done = run(plan_checks(build), "load", path, *options, **{**stand_in(build), **environment})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def assert_refused(
    code: str, words: str, path: Path, *options: object, build: str = "tensorrt", **environment: str
) -> None:
    done = run(plan_checks(build), "load", path, *options, **{**stand_in(build), **environment})
    assert (done.returncode, done.stdout) == (2, ""), done.stderr[-3000:]
    assert done.stderr.startswith(f"{CODES[code]} ")
    assert words in " ".join(done.stderr.split()), done.stderr


@pytest.mark.parametrize("generation", LIBRARIES)
def test_plans_give_right_answers_under_the_sanitizers(generation: str, tmp_path: Path) -> None:
    for name, path in (
        ("lengths", lengths(tmp_path / "lengths", generation)),
        ("rooms", to_plans(write_bucket_engine(tmp_path / "rooms"), generation, "room 1000")),
    ):
        done = run(plan_checks(generation), name, path, **stand_in(generation))
        assert (done.returncode, done.stderr) == (0, ""), done.stderr[-3000:]


def test_what_cannot_be_captured_runs_without_graphs(tmp_path: Path) -> None:
    path = to_plans(write_bucket_engine(tmp_path), "tensorrt", "room 1000")
    assert load(path) == "TensorRT 10.14.1 on a GPU, 2 replays\n"
    assert load(path, FAKE_NO_GRAPHS="1") == "TensorRT 10.14.1 on a GPU, 0 replays\n"


def test_compiled_kernels_are_kept_between_processes(tmp_path: Path) -> None:
    path, kernels = lengths(tmp_path, "tensorrt-rtx"), tmp_path / "kernels"
    for expected in ("k", "kk"):  # one is compiled by each
        load(path, kernels, build="tensorrt-rtx")
        assert kernels.read_text() == expected
    assert_refused("file", "cannot be written", path, tmp_path / "nowhere" / "kernels", build="tensorrt-rtx")
    assert_refused("file", "It is a folder", path, tmp_path, build="tensorrt-rtx")


def test_the_plugin_library_is_registered_once(tmp_path: Path) -> None:
    library = build_library()
    shutil.copy(library.path, tmp_path / "out.plugins.so")
    load(lengths(tmp_path, **asdict(library.entry("out.plugins.so"))))


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"source_sha256": "0" * 64}, "library", "is not the plugin library that the manifest describes"),
        ({"sm": [80]}, "library", "is not the plugin library that the manifest describes"),
        ({"sha256": "0" * 64}, "file", "Its sha256 is another"),
        ({}, "library", "is not the plugin library of this project"),
    ],
)
def test_another_plugin_library_is_not_loaded(tmp_path: Path, change: dict[str, Any], code: str, words: str) -> None:
    library, copy = build_library(), tmp_path / "out.plugins.so"
    shutil.copy(library.path, copy)
    if not change:  # a library of somebody else
        shutil.copy(plan_checks("tensorrt").parent / "tensorrt" / "libfake.so", copy)
    entry = asdict(library.entry(copy.name)) | {"sha256": sha256(copy)} | change
    assert_refused(code, words, lengths(tmp_path, **entry))


def test_a_plan_brings_code_only_where_its_manifest_says_which(tmp_path: Path) -> None:
    library = build_library()
    sm = ",".join(map(str, library.sm))
    line = f'{{"version": "{library.version}", "source": "{library.source_sha256}", "sm": "{sm}"}}'
    plan, entry = f"hosted \0madtp-plugins {line}\0", asdict(library.entry(None))
    assert "on a GPU" in load(lengths(tmp_path / "right", plan=plan, **entry))
    other = plan.replace(library.source_sha256, "0" * 64)
    assert_refused("library", "does not embed the plugin library", lengths(tmp_path / "other", plan=other, **entry))
    assert_refused("backend", "host code is not allowed", lengths(tmp_path / "none", plan="hosted"))


@pytest.mark.parametrize(
    ("build", "version", "words"),
    [
        ("tensorrt", "101301", "is TensorRT 10.13.1, which this build of the engine cannot call"),
        ("tensorrt", "110000", "is TensorRT 11.0.0"),
        ("tensorrt", "8601", "is TensorRT 8 or older"),
        ("tensorrt", "10701", "is TensorRT for RTX 1.7.1"),
        ("tensorrt-rtx", "10801", "is TensorRT for RTX 1.8.1"),
        ("tensorrt-rtx", "101401", "is TensorRT 10.14.1"),
    ],
)
def test_a_library_of_another_generation_is_not_called(tmp_path: Path, build: str, version: str, words: str) -> None:
    assert_refused("library", words, lengths(tmp_path, build), build=build, FAKE_VERSION=version)


def test_a_later_minor_version_of_tensorrt_is_called(tmp_path: Path) -> None:
    assert load(lengths(tmp_path), FAKE_VERSION="101502").startswith("TensorRT 10.15.2")


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    path = lengths(tmp_path / "plan")
    assert_refused("library", "TensorRT cannot be loaded", path, MADTP_TENSORRT="/nowhere.so")
    libm = ctypes.util.find_library("m") or ""
    assert_refused("library", "is not TensorRT It has no getInferLibVersion", path, MADTP_TENSORRT=libm)
    words = "is a plan of TensorRT for RTX, and this build of the engine runs TensorRT"
    assert_refused("library", words, lengths(tmp_path / "rtx", "tensorrt-rtx"))
    assert_refused("input", "there is no GPU 7", path, "", 7)
    words = "not compatible with this version It was built with 10.14.1"
    assert_refused("backend", words, lengths(tmp_path / "other", plan="other"))
    assert_refused("backend", "is not what its manifest says", lengths(tmp_path / "rooms", plan="room 3"))


def without_driver(tmp_path: Path) -> dict[str, str]:
    """The stand-in without CUDA's driver."""
    (tmp_path / "lib").mkdir()
    library = LIBRARIES["tensorrt"]
    (tmp_path / "lib" / library).symlink_to(Path(stand_in("tensorrt")["LD_LIBRARY_PATH"]) / library)
    return {"LD_LIBRARY_PATH": str(tmp_path / "lib")}


no_driver = pytest.mark.skipif(ctypes.util.find_library("cuda") is not None, reason="this machine has CUDA's driver")


@no_driver
def test_no_driver_is_an_error_that_says_so(tmp_path: Path) -> None:
    assert_refused("library", "CUDA's driver cannot be loaded", lengths(tmp_path), **without_driver(tmp_path))


@no_driver
def test_tensorrt_for_rtx_is_opened_up_to_the_driver(tmp_path: Path) -> None:
    path = lengths(tmp_path, "tensorrt-rtx")
    given = {"LD_LIBRARY_PATH": "", "MADTP_TENSORRT": str(RTX)}
    assert_refused("library", "CUDA's driver cannot be loaded", path, build="tensorrt-rtx", **given)


def test_tensorrt_for_rtx_is_not_called_through_the_headers_of_tensorrt(tmp_path: Path) -> None:
    assert_refused("library", "is TensorRT for RTX 1.", lengths(tmp_path), MADTP_TENSORRT=str(RTX))
