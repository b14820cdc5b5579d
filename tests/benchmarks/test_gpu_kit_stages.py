"""The stages of the GPU kit as on a GPU: their own lines run, on a stand-in for its runtime, tiny."""

import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.candidates import Sizes
from benchmarks.gpu.measure import copy_bandwidth
from benchmarks.kit import flash, report
from benchmarks.kit.files import read_json
from benchmarks.kit.predict import expected_work
from benchmarks.kit.stage import StageRun
from benchmarks.kit.stages import calls, model, models, packed, packed_model, parity, precision, probe, timings
from madtp.ops.kernels import OPS, register_kernels, without_kernels
from tests.helpers import native_build, stand_in_cuda
from tests.helpers.kernel_calls import attention_inputs, compact_call
from tests.helpers.paths import CARRIED, ROOT

SMALL = Sizes(length=40, width=32, heads=1, alignments=8)
TINY = replace(models.SMALL, image_size=32)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StageRun]:
    """A stage on a machine that seems to have an H100; its kernels are the host's, its sizes tiny."""
    host = native_build.build().kernels
    monkeypatch.setattr(StageRun, "library", host)
    monkeypatch.setattr(models, "register_kernels", lambda library, device: register_kernels(library, device="cpu"))
    monkeypatch.setattr(precision, "without_kernels", lambda device: without_kernels("cpu"))
    monkeypatch.setattr(models, "BASE", models.SMALL)
    monkeypatch.setattr(timings, "BASE", SMALL)
    monkeypatch.setattr(timings, "ORDER", (2, 1))
    monkeypatch.setattr(timings, "COMPILED", 2)
    monkeypatch.setattr(timings, "copy_bandwidth", lambda: copy_bandwidth(1 << 16, 3))
    monkeypatch.setattr(model, "BATCHES", (2, 1))
    monkeypatch.setattr(packed, "without_kernels", lambda device: without_kernels("cpu"))
    monkeypatch.setattr(packed, "BATCHES", (2,))
    monkeypatch.setattr(packed, "POOL", 3)
    monkeypatch.setattr(packed, "EXACT_BATCH", 2)
    monkeypatch.setattr(packed, "ROUNDS_SECONDS", 0.0)
    monkeypatch.setattr(packed_model, "STEPS", 2)
    monkeypatch.setattr(model, "STEPS", 2)
    monkeypatch.setattr(model, "MOST_ROUNDS", 2)
    monkeypatch.setattr(model, "WARMUP_ROUNDS", 1)
    monkeypatch.setattr("benchmarks.kit.stages.captured.WARMUPS", 1)
    monkeypatch.setattr(model, "COMPILER", "eager")  # with inductor it was tried by hand, and takes a minute and a half
    monkeypatch.setattr("benchmarks.gpu.measure.FLUSH_BYTES", 1 << 10)
    monkeypatch.setattr(models, "golden_folders", lambda *_: [CARRIED])
    stand_in_cuda.install(monkeypatch)
    with stand_in_cuda.OnCpu():
        yield StageRun(tmp_path / "stage.json", rehearse=False, deadline=time.monotonic() + 600)
    for op in OPS.values():
        if "cpu" in op._backend_fns:
            op.register_kernel("cpu", op._init_fn)


def page(name: str, stage: StageRun) -> str:
    """How the results' page shows what the stage has written."""
    found = read_json(stage.file)
    stages = [{"name": name, "state": "passed", "seconds": 1.0, "why": "", "result": found}]
    content = {"rehearsal": False, "began": "now", "ended": None, "kit": None, "stages": stages}
    return report.render(content, read_json(ROOT / "benchmarks/gpu/static.json"))


def test_probe(stage: StageRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "read_json", lambda _: {"sm": [90], "python": f"3.{sys.version_info.minor}"})
    assert probe.run(stage)
    gpu = stage.found["gpu"]
    assert (gpu["name"], gpu["capability"], gpu["multiprocessors"]) == ("NVIDIA H100 80GB HBM3", "9.0", 132)
    assert gpu["state"]["name"] == gpu["name"]
    assert page("probe", stage).startswith("# NVIDIA H100 80GB HBM3")


def test_calls(stage: StageRun, monkeypatch: pytest.MonkeyPatch) -> None:
    assert calls.run(stage)
    assert len(stage.found["calls"]) == 6

    def differ(*_: object) -> None:
        raise AssertionError("other tokens")

    monkeypatch.setattr("tests.helpers.kernel_calls.check_compact", differ)
    assert not calls.run(stage)
    assert sum(text == "FAILED: AssertionError: other tokens" for text in stage.found["calls"].values()) == 3
    assert "other tokens" in page("calls", stage)


def test_parity(stage: StageRun, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parity.run(stage)
    assert len(stage.found["cases"]) > 9
    assert "all equal" in page("parity", stage)
    monkeypatch.setattr("tests.golden.TOLERANCE", 0.0)
    monkeypatch.setattr("tests.golden.FLOAT64_FACTOR", 0.0)
    assert not parity.run(stage)
    assert "logits off by" in page("parity", stage)


def test_precision(stage: StageRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "PRECISIONS", {"bf16": torch.bfloat16})
    assert precision.run(stage)
    (entry,) = stage.found["comparisons"].values()
    assert entry["flips"] == entry["flips_explained"] > 0  # bf16 does move tokens
    assert 0.5 < entry["jaccard_mean"] < 1
    assert entry["decisions"] > 5
    monkeypatch.setattr(precision, "score_errors", lambda reference, exact, _: [0.0] * len(exact.layers))
    assert not precision.run(stage)
    assert "data/nlvr bf16" in page("precision", stage)


def test_precision_does_not_pass_numbers_that_are_none(stage: StageRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16 overflows at 65,504: what a precision stage is for."""
    load = precision.golden.load_model

    def overflowing(folder: Path) -> torch.nn.Module:
        model = load(folder)
        model.cls_head[2].weight.data *= 1e6
        return model

    monkeypatch.setattr(precision, "PRECISIONS", {"fp16": torch.float16})
    monkeypatch.setattr(precision.golden, "load_model", overflowing)
    assert not precision.run(stage)
    (entry,) = stage.found["comparisons"].values()
    assert "logits are not finite" in entry["wrong"][0]
    assert read_json(stage.file)["comparisons"]["data/nlvr fp16"]["worst_logit_difference"] is None
    assert "| not finite |" in page("precision", stage)


def test_precision_does_not_pass_other_logits_of_the_same_tokens(
    stage: StageRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = precision.answer

    def off(model: torch.nn.Module, case: Any) -> Any:
        found = answer(model, case)
        ours = model.space_dict.dtype == torch.float16 and next(switch)
        return replace(found, outputs={**found.outputs, "logits": found.outputs["logits"] + 0.5}) if ours else found

    switch = itertools.cycle((True, False))  # ours comes before torch's own
    monkeypatch.setattr(precision, "PRECISIONS", {"fp16": torch.float16})
    monkeypatch.setattr(precision, "answer", off)
    monkeypatch.setattr(precision.Selection, "add", lambda *_: [])
    monkeypatch.setattr(precision.Selection, "to_json", lambda _: {"layers": [], "differences": 0, "listed": []})
    assert not precision.run(stage)
    (entry,) = stage.found["comparisons"].values()
    assert "the same tokens, and logits off by" in entry["wrong"][0]


def test_model(stage: StageRun) -> None:
    assert model.run(stage)
    for batch in ("1", "2"):
        candidates = stage.found["batches"][batch]["candidates"]
        dense, *ours = candidates.values()
        assert [entry["gflops"] for entry in ours] == sorted((entry["gflops"] for entry in ours), reverse=True)
        assert dense["gflops_ratio"] == dense["speed_up"] == 1
        assert all(entry["peak_bytes"] == 2000 and entry["predicted_us"] > 0 for entry in candidates.values())
        assert [entry["expected"]["waits"] for entry in candidates.values()] == [0, 4, 4, 4, 4]  # a pruning layer one
        assert not stage.found["batches"][batch]["not_run"]
        compiled = stage.found["compiled"][batch]
        assert set(compiled.get("latency_us", {})) == {model.DENSE, model.GRAPH, model.candidate_names()[-1]}, compiled
    assert "graph's time / this" in page("model", stage)


def test_a_candidate_that_does_not_run_is_named_and_the_others_measured(
    stage: StageRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = model.forward

    def refusing(network: Any, inputs: Any, temperature: Any) -> object:
        if isinstance(temperature, torch.Tensor):
            raise torch.OutOfMemoryError("no\nmemory")
        return forward(network, inputs, temperature)

    monkeypatch.setattr(model, "forward", refusing)
    assert not model.run(stage)
    entry = stage.found["batches"]["2"]
    assert list(entry["candidates"]) == [model.DENSE]
    assert entry["not_run"] == {model.UNPRUNED: "OutOfMemoryError: no memory"}
    assert "not run: OutOfMemoryError: no memory" in page("model", stage)


def test_packed(stage: StageRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of the stand-in repeat their operators, so replays follow their inputs here too."""
    monkeypatch.setattr(models, "BASE", TINY)
    monkeypatch.setattr(packed, "compile_blocks", lambda *_: None)  # as in test_model
    assert packed.run(stage)
    exact, (entry,) = stage.found["exact"], stage.found["batches"].values()
    assert (exact["same_counts"], exact["requests"]) == (6, 6)
    assert entry["latency_us"].keys() == {packed.EAGER, packed.DENSE, packed.PACKED, packed.LOSSLESS}
    assert entry["gflops"]["kept"] < entry["gflops"]["executed"] < entry["gflops"]["dense"]
    assert not any(entry["overflows_while_timed"].values())
    assert entry["forced_overflow"]["noticed"] == len(packed_model.STARTS)
    assert stage.found["compiled"]["2"]["latency_us"].keys() == {packed.COMPILED, packed.DENSE, packed.PACKED}
    assert "| 2 | " in page("packed", stage)
    text = page("packed", stage)
    assert "counts of 6 of 6 requests equal" in text
    assert "3/3, then right" in text


def test_packed_replays_that_are_wrong_do_not_pass(stage: StageRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "BASE", TINY)
    models.use_kernels(stage)
    nlvr = models.nlvr_requests(stage, 1, torch.float32).model
    world = packed_model.PackedNlvr(stage, nlvr, packed_model.packed_requests(stage, nlvr, 3), 1.0)
    load = packed_model.PackedBatch.load
    with monkeypatch.context() as patch:  # some of the inputs do not reach the graph

        def first_alone(self: packed_model.PackedBatch, inputs: dict[str, torch.Tensor]) -> None:
            load(self, {"image0": inputs["image0"]})

        patch.setattr(packed_model.PackedBatch, "load", first_alone)
        assert not packed.measure_batch(world, 2)["passed"]
    with monkeypatch.context() as patch:
        small = packed_model.too_small(world.lossless(2), 2)
        patch.setattr(packed_model.PackedNlvr, "rooms", lambda self, size: small)
        entry = packed.measure_batch(world, 2)
        assert not entry["passed"]
        assert entry["overflows_while_timed"][packed.PACKED] > 0


def test_launches_are_counted_in_the_code() -> None:
    """A linear layer, a view, an op of ours that waits: kernels of each, and nothing for what moves no number."""
    layer = torch.nn.Linear(8, 8)
    qkv, mask, causal, heads = attention_inputs(1, 5, 1, 8, torch.float32, 0)
    inputs = compact_call(1, 9, 3, torch.float32)

    def call() -> None:
        layer(torch.zeros(2, 8)).view(4, 4).transpose(0, 1)
        torch.ops.madtp.aligned_attention(qkv, mask, causal, heads)
        torch.ops.madtp.token_compact(*inputs)

    work = expected_work(call)
    assert (work.launches, work.waits) == (2 + 3 + 6, 1)


def test_model_whose_costs_do_not_fall_fails() -> None:
    names = model.candidate_names()
    costs = dict(zip(names, (9.0, 5.0, 3.0, 2.0), strict=True))

    def entry(**changed: float | None) -> dict[str, Any]:
        return {"candidates": {name: {"gflops": cost} for name, cost in (costs | changed).items()}}

    assert model.falling(entry())
    assert not model.falling(entry(**{names[1]: 10.0}))
    assert not model.falling(entry(**{names[3]: None}))


def test_timings(stage: StageRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.candidates._compile", lambda function, device: function)
    assert timings.run(stage)
    entry = stage.found["batches"]["2"]
    assert {"kernel", "eager", "torch.compile", "SDPA"} <= entry["aligned_attention"]["timings"].keys()
    assert "FlashAttention-3, bf16" in entry["aligned_attention"]["not_run"]
    assert entry["token_compact"]["share_of_copy_bandwidth"] > 0
    assert stage.found["device_before"]["name"] == "NVIDIA H100 80GB HBM3"
    text = page("timings", stage)
    assert "kernel, share of copy bandwidth" in text
    assert "A copy moves" in text


def test_flash_attention_3_is_unpacked_beside_the_results(
    stage: StageRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import zipfile

    (tmp_path / "wheels").mkdir()
    monkeypatch.setattr(flash, "ROOT", tmp_path)
    assert flash.unpack_flash_3(stage) == "not in this kit"
    with zipfile.ZipFile(tmp_path / "wheels" / "fa3_fwd-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("fa3_of_a_test.py", "value = 3\n")
    path = list(sys.path)
    assert flash.unpack_flash_3(stage) == "fa3_fwd-1-py3-none-any.whl"
    import fa3_of_a_test

    assert fa3_of_a_test.value == 3
    assert Path(fa3_of_a_test.__file__).parent == tmp_path / "unpacked"
    sys.path[:] = path


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: they would run")
@pytest.mark.parametrize(
    ("name", "least", "status"), [("kernel_tests", 60, 1), ("graphs", 20, 1), ("sanitizer", 2, 4), ("recordings", 1, 1)]
)
def test_stages_of_tests_find_their_tests(name: str, least: int, status: int, tmp_path: Path) -> None:
    """Without a device all are skipped, for that reason. A stage in which nothing ran has not passed; one that only
    lacks its tool is skipped."""
    target = tmp_path / f"{name}.json"
    command = [sys.executable, "-m", "benchmarks.kit.stage", name, str(target), "--seconds", "100"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    found = read_json(target)
    assert found["skipped_tests"] >= least
    assert (found["passed_tests"], found["failed_tests"]) == (0, 0)
    assert found["error"].startswith("nothing ran: ")
    assert "no CUDA device" in found["skipped"][0]["why"]
