"""The engine for C and C++ in programs: under the sanitizers, fuzzed, and as an installed package."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from export.artifact.seal import manifest_sha256
from madtp.files import native
from tests.helpers.made_up_engines import write_counting_engine
from tests.helpers.manifests import SCHEMA_3
from tests.helpers.runtime_library import onnxruntime_library
from tests.helpers.runtime_programs import examples, programs, renew, run

FUZZ_SECONDS = os.environ.get("MADTP_FUZZ_SECONDS", "20")
SIZES = (0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 100_000)


@pytest.fixture(scope="module")
def checks() -> Path:
    """The program of checks, under AddressSanitizer and UndefinedBehaviorSanitizer."""
    return programs("address", "checks", "fuzz", "old_onnxruntime") / "checks"


def test_the_interface_in_cxx_passes_its_checks_under_the_sanitizers(checks: Path, tmp_path: Path) -> None:
    done = run(checks, "engine", write_counting_engine(tmp_path), onnxruntime_library())
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-3000:]


def test_an_onnx_runtime_that_is_too_old_is_refused(checks: Path, tmp_path: Path) -> None:
    done = run(checks, "engine", write_counting_engine(tmp_path), checks.with_name("libold_onnxruntime.so"))
    assert done.returncode == 1
    assert re.match(r"ONNX Runtime 1\.16\.3 in '.*' is too old\n.*\nInstall ONNX Runtime 1\.17", done.stderr), (
        done.stderr
    )


def test_float16_is_converted_exactly(checks: Path) -> None:
    done = run(checks, "halves")
    assert (done.returncode, done.stderr) == (0, "")


def test_json_has_the_canonical_text_of_python(checks: Path) -> None:
    rng = np.random.default_rng(5)
    bits = rng.integers(0, 2**64, 3000, dtype=np.uint64).view(np.float64)
    floats = [*bits[np.isfinite(bits)], *(10.0 ** rng.uniform(-8, 20, 500)), *np.arange(-20, 20) / 4, 1e16, 1e-5, -0.0]
    content = {
        "floats": [float(value) for value in floats],
        "integers": [0, -1, 2**63 - 1, -(2**63), 2**64 - 1],
        "texts": ["", "ä\u2028\U0001f600", "".join(map(chr, range(0x80))), "\\/\"'"],
        "Z": {"b": None, "a": [True, False], "ä": {}, "\U0001f600": [], "\uffff": 1},
    }
    done = subprocess.run([checks, "canonical"], input=json.dumps(content).encode(), capture_output=True, check=True)
    expected = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert done.stdout.decode() == expected


@pytest.mark.parametrize("size", SIZES)
def test_sha256_is_that_of_python(checks: Path, size: int) -> None:
    text = np.random.default_rng(size).bytes(size)
    done = subprocess.run([checks, "sha256"], input=text, capture_output=True, check=True)
    assert done.stdout.decode() == hashlib.sha256(text).hexdigest()


def test_the_loader_refuses_whatever_it_is_given(checks: Path, tmp_path: Path) -> None:
    made = write_counting_engine(tmp_path)
    content = json.loads(made.read_text())
    assert content["manifest_sha256"] == manifest_sha256(content)
    done = run(checks.with_name("fuzz"), FUZZ_SECONDS, 20, made, made.with_suffix(".onnx"), SCHEMA_3)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = re.fullmatch(r"(\d+) inputs, (\d+) times accepted\n", done.stdout)
    assert found is not None, done.stdout
    assert int(found[2]) > 3  # what it begins with


def test_threads_that_share_an_engine_do_not_race(tiny_artifact: Path) -> None:
    program = programs("thread", "throughput", "race") / "throughput"
    done = run(program, tiny_artifact / "out.onnx", "--threads", 4, "--requests", 40)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-3000:]


def test_a_race_would_be_seen(tmp_path: Path) -> None:
    program = programs("thread", "throughput", "race") / "race"
    done = run(program, write_counting_engine(tmp_path))
    assert done.returncode == 66  # of ThreadSanitizer
    assert "data race" in done.stderr
    assert "race.cpp" in done.stderr


def test_an_example_runs_on_the_installed_package(tiny_artifact: Path) -> None:
    done = run(examples() / "throughput", tiny_artifact / "out.json", "--threads", 2, "--requests", 8, "--batch", 2)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^nlvr, part model, runs .*ONNX Runtime \d", done.stdout), done.stdout
    assert re.search(r"^2 threads, batches of 2: \d+\.\d requests per second$", done.stdout, re.MULTILINE), done.stdout


def test_an_example_says_what_is_wrong() -> None:
    done = run(examples() / "throughput", "/nowhere/out.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: cannot read the manifest '/nowhere/out.json'\nNo such file")


def test_a_change_of_the_engine_changes_no_kernels(tmp_path: Path) -> None:
    copy = shutil.copytree(native.SOURCES, tmp_path / "plugins")
    kernels, engine = native.source_hash(copy), native.runtime_hash(copy)
    assert (kernels, engine) == (native.source_hash(), native.runtime_hash())
    (copy / "runtime" / "session.cpp").write_text("int changed;\n")
    assert native.source_hash(copy) == kernels
    assert native.runtime_hash(copy) != engine
    engine = native.runtime_hash(copy)
    (copy / "token_compact" / "plugin.cpp").write_text("int changed;\n")
    assert native.source_hash(copy) != kernels
    assert native.runtime_hash(copy) == engine


def test_a_copy_that_is_in_use_is_replaced_and_not_written_to(tmp_path: Path) -> None:
    source, target = tmp_path / "source.so", tmp_path / "target.so"
    source.write_bytes(b"one")
    renew(str(source), str(target))
    first = target.stat().st_ino
    renew(str(source), str(target))
    assert target.stat().st_ino == first, "the same file was copied again"
    with target.open("rb") as used:
        source.write_bytes(b"another")
        renew(str(source), str(target))
        assert used.read() == b"one"
    assert target.read_bytes() == b"another"
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".new"] == []
