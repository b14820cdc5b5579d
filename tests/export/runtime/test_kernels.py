"""The op library in ONNX Runtime: the same results as the function bodies, and a process that outlives bad input."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from export import Session
from export.errors import BackendError
from export.runtime.artifact import Artifact
from export.runtime.execution import Execution, choose_execution
from export.runtime.onnx_runner import OnnxRunner
from export.runtime.runner import RunnerOptions
from madtp.errors import InputError
from madtp.ops.spec import ALIGNED_ATTENTION, TOKEN_COMPACT
from madtp.tasks.requests import Outputs
from tests.helpers.artifacts import TaskArtifacts
from tests.helpers.kernel_calls import compact_inputs
from tests.helpers.op_library import real_library, write_op
from tests.helpers.paths import ROOT

SECONDS = 120  # until a child that hangs is killed
HEADS = 4


@pytest.fixture(scope="module")
def kernels() -> Execution:
    return Execution("cpu", real_library(), "")


@pytest.fixture(scope="module")
def attention(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_op(ALIGNED_ATTENTION, tmp_path_factory.mktemp("ops") / "attention.onnx", heads=HEADS, causal=0)


@pytest.fixture(scope="module")
def compact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_op(TOKEN_COMPACT, tmp_path_factory.mktemp("ops") / "compact.onnx", layer=3)


def attention_inputs(batch: int = 2, length: int = 9, width: int = 32, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    qkv, mask = torch.randn(batch, length, 3 * width, generator=g), torch.rand(batch, length, generator=g) < 0.3
    return {"qkv": qkv, "key_mask": -10000.0 * mask}


def assert_close(actual: Outputs, expected: Outputs) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].shape == value.shape, name
        torch.testing.assert_close(actual[name], value, atol=2e-5, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 3), length=st.integers(2, 70), seed=st.integers(0, 10**6), threads=st.integers(1, 2))
def test_kernels_equal_bodies(attention: Path, batch: int, length: int, seed: int, threads: int) -> None:
    inputs = attention_inputs(batch, length, seed=seed)
    bodies, kernels = (OnnxRunner(attention, threads, each) for each in (Execution(), Execution("cpu", real_library())))
    assert_close(kernels.run(inputs, 0.0), bodies.run(inputs, 0.0))


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
def test_an_artifact_keeps_the_same_tokens(temperature: float, tiny_artifact: Path, kernels: Execution) -> None:
    artifact = Artifact.open(tiny_artifact / "out.json")
    g = torch.Generator().manual_seed(1)
    size = artifact.config.image_size
    inputs = {name: torch.randn(2, 3, size, size, generator=g) for name in ("image0", "image1")}
    inputs |= {"input_ids": torch.randint(1, 9, (2, 7), generator=g)}
    inputs |= {"attention_mask": torch.ones(2, 7, dtype=torch.int64)}
    with artifact:
        found = [
            artifact.open_runners(RunnerOptions(threads=1, execution=each))["model"].run(inputs, temperature)
            for each in (kernels, Execution())
        ]
    assert_close(*found)


def test_a_session_says_what_runs_it(task_artifacts: TaskArtifacts) -> None:
    library = real_library()
    for asked, ran in ((None, library), (str(library.path), library), ("none", None)):
        with Session(task_artifacts["caption"] / "out.json", library=asked) as session:
            assert session.execution is not None
            assert session.execution.library == ran


ABSURD = {
    "width that is no multiple": {"qkv": torch.zeros(2, 9, 31), "key_mask": torch.zeros(2, 9)},
    "heads that do not divide it": {"qkv": torch.zeros(2, 9, 9), "key_mask": torch.zeros(2, 9)},
    "mask of another length": {"qkv": torch.zeros(2, 9, 96), "key_mask": torch.zeros(2, 8)},
    "mask of another batch": {"qkv": torch.zeros(2, 9, 96), "key_mask": torch.zeros(3, 9)},
    "no tokens": {"qkv": torch.zeros(2, 0, 96), "key_mask": torch.zeros(2, 0)},
}


@pytest.mark.parametrize("inputs", ABSURD.values(), ids=ABSURD)
def test_absurd_shapes_are_a_sentence(inputs: dict[str, Tensor], attention: Path, kernels: Execution) -> None:
    runner = OnnxRunner(attention, 1, kernels)
    good = attention_inputs()
    expected = runner.run(good, 0.0)
    with pytest.raises(BackendError, match="AlignedAttention"):
        runner.run(inputs, 0.0)
    assert_close(runner.run(good, 0.0), expected)  # the next request is right


@pytest.mark.parametrize("name", ["key_mask", "source_ids", "column_score", "class_score", "alignment"])
def test_compact_refuses_inputs_that_do_not_fit(name: str, compact: Path, kernels: Execution) -> None:
    runner = OnnxRunner(compact, 1, kernels)
    good, temperature = compact_inputs(2, 12, seed=0) | {"min_keep": torch.tensor(1)}, 0.3
    expected = runner.run(good, temperature)
    with pytest.raises(BackendError, match="TokenCompact"):
        runner.run({**good, name: good[name][:, 1:].contiguous()}, temperature)
    assert_close(runner.run(good, temperature), expected)


def test_values_that_are_not_finite_stay_visible(attention: Path, kernels: Execution) -> None:
    runner = OnnxRunner(attention, 1, kernels)
    good = attention_inputs()
    expected = runner.run(good, 0.0)
    bad = {name: value.clone() for name, value in good.items()}
    bad["qkv"][1, 3, 5] = float("nan")
    outputs = runner.run(bad, 0.0)
    assert bool(outputs["column_score"][1].isnan().any())
    assert_close({name: value[:1] for name, value in outputs.items()}, {n: v[:1] for n, v in expected.items()})
    assert_close(runner.run(good, 0.0), expected)


def test_two_sessions_in_two_threads_do_not_disturb_each_other(attention: Path, kernels: Execution) -> None:
    requests = [attention_inputs(length=length) for length in (9, 65)]
    runners = [OnnxRunner(attention, 2, kernels) for _ in requests]
    expected = [runner.run(request, 0.0) for runner, request in zip(runners, requests, strict=True)]

    def ask(number: int) -> list[Outputs]:
        return [runners[number].run(requests[number], 0.0) for _ in range(40)]

    with ThreadPoolExecutor(2) as pool:
        for answers, right in zip(pool.map(ask, range(2)), expected, strict=True):
            for answer in answers:
                assert all(torch.equal(answer[name], right[name]) for name in right)  # to the bit


# Memory runs out inside of a kernel: what it asks for beside its outputs is more than is left.
SHORT = """
import resource, sys
from pathlib import Path
import torch
from export.errors import BackendError
from export.runtime.execution import choose_execution
from export.runtime.onnx_runner import OnnxRunner

path = Path(sys.argv[1])
runner = OnnxRunner(path, 1, choose_execution([path], sys.argv[2]))
small = {"qkv": torch.randn(1, 9, 96), "key_mask": torch.zeros(1, 9)}
expected = runner.run(small, 0.0)
large = {"qkv": torch.zeros(64, 9000, 96), "key_mask": torch.zeros(64, 9000)}
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**25, resource.RLIM_INFINITY))
try:
    runner.run(large, 0.0)
except BackendError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(all(torch.equal(runner.run(small, 0.0)[name], expected[name]) for name in expected))
"""

# A forked child is refused the parent's session, opens its own, and ends; the parent goes on.
FORKED = """
import os, signal, sys
from pathlib import Path
import torch
from export.runtime.execution import choose_execution
from export.runtime.onnx_runner import OnnxRunner

path = Path(sys.argv[1])
execution = choose_execution([path], sys.argv[2])
inputs = {"qkv": torch.randn(2, 40, 96), "key_mask": torch.zeros(2, 40)}
runner = OnnxRunner(path, 2, execution)
expected = runner.run(inputs, 0.0)

def same(found):
    return all(torch.equal(found[name], expected[name]) for name in expected)

child = os.fork()
if child == 0:
    signal.alarm(60)
    print(same(OnnxRunner(path, 2, execution).run(inputs, 0.0)))
    sys.exit(7)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(same(runner.run(inputs, 0.0)))
sys.exit(status - 7)
"""


def run_program(program: str, file: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program, str(file), str(real_library().path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_memory_that_runs_out_is_a_sentence(attention: Path) -> None:
    said, *_, same = run_program(SHORT, attention)
    assert "ONNX Runtime cannot run" in said
    assert same == "True"


def test_a_forked_child_opens_its_own(attention: Path) -> None:
    assert run_program(FORKED, attention) == ["True", "True"]


def test_an_image_of_nan_is_refused(tiny_artifact: Path, kernels: Execution) -> None:
    from export.runtime.checked import finite_runners

    artifact = Artifact.open(tiny_artifact / "out.json")
    size = artifact.config.image_size
    images = {name: torch.full((1, 3, size, size), np.nan) for name in ("image0", "image1")}
    ids = {name: torch.ones(1, 7, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    with artifact:
        runners = finite_runners(artifact.open_runners(RunnerOptions(1, execution=kernels)), "a test")
        with pytest.raises(InputError, match="is not finite"):
            runners["model"].run(images | ids, 0.3)


def test_a_file_is_opened_with_what_was_chosen_for_it(compact: Path) -> None:
    library = real_library()
    assert choose_execution([compact], library.path) == Execution("cpu", library, "")
