"""What becomes of the GPU kit's results: the page of a run, a profile's counts, and what is kept of runs on a GPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks.kit import report, run, status
from benchmarks.kit.files import read_json, write_json
from benchmarks.kit.trace import profile_call


def on_a_gpu(seconds: float) -> dict[str, Any]:
    """results.json of a run on a GPU that took so long for a call, as the stages write it."""
    timing = {"median_us": seconds * 1e6, "p10_us": seconds * 1e6, "p90_us": seconds * 1e6, "calls": 5}
    profile = {
        "launches": 700,
        "synchronisations": 24,
        "device_us": 4000.0,
        "kernels": [{"name": "gemm", "calls": 9, "us": 9.0}],
    }
    candidate = {
        "temperature": 0.4,
        "gflops": 30.0,
        "latency_us": timing,
        "requests_per_second": 1 / seconds,
        "predicted_us": 5000.0,
        "expected": {"launches": 650, "waits": 24},
        "peak_bytes": 10**9,
        "profile": profile,
        "gflops_ratio": 4.0,
        "speed_up": 2.0,
        "efficiency": 0.5,
    }
    gpu = {
        "name": "NVIDIA H100 80GB HBM3",
        "capability": "9.0",
        "multiprocessors": 132,
        "memory_bytes": 80 * 2**30,
        "l2_bytes": 50_000_000,
        "state": {"sm_mhz": 1980},
    }
    timed = {
        "timings": {"kernel": timing, "SDPA": timing},
        "not_run": {"eager": "out of memory"},
        "kernels": [
            {
                "name": "void madtp::attention::(anonymous namespace)::statistics_kernel<__half, 64, 2>(A)",
                "calls": 1,
                "us": 9.0,
            },
            {"name": "Memset", "calls": 1, "us": 1.0},
        ],
    }
    results = {
        "probe": {"gpu": gpu},
        "model": {
            "batches": {"1": {"candidates": {"ours": candidate}, "not_run": {"dense": "no"}}},
            "compiled": {"1": {"not_run": "no compiler"}},
        },
        "onnx_runtime": {
            "onnxruntime": "1.31.1",
            "provider": "CUDAExecutionProvider",
            "ran": {"TokenCompact on CUDAExecutionProvider": 8},
            "cases": [{"case": "b1", "worst": None, "mismatches": ["K = 3, recorded 4"]}],
            "base": [{"temperature": 0.4, "same_counts": False, "worst": None}],
            "batches": {
                "8": {
                    "latency_us": {"torch, dense": timing, "ONNX Runtime, ours": timing},
                    "profile": {**profile, "candidate": "ONNX Runtime, ours"},
                    "answers": {
                        "50%": {
                            "requests": 8,
                            "as_dense_torch": 6,
                            "as_torch_on_our_kernels": 8,
                            "worst_logit_difference": 2e-3,
                        }
                    },
                }
            },
        },
        "timings": {"batches": {"1": {"aligned_attention": timed}}, "copy_bytes_per_second": 3e12},
        "graphs": None,
    }
    stages = [
        {"name": name, "state": "passed" if result else "overlong", "seconds": 1.0, "why": "", "result": result}
        for name, result in results.items()
    ]
    began = "2026-01-02T03:04:05+00:00"
    return {"schema": 1, "rehearsal": False, "began": began, "ended": began, "kit": {"commit": "abc"}, "stages": stages}


@pytest.mark.parametrize(
    ("seconds", "says"),
    [
        (0.02, "4.00: the GPU idles 80% of the time: launches and 24 waits cost more"),
        (0.0052, "| 1.04 |"),
        (0.001, "0.20: "),
    ],
)
def test_the_page_says_what_was_predicted_and_why_it_is_off(seconds: float, says: str) -> None:
    static = read_json(run.ROOT / "benchmarks/gpu/static.json")
    page = report.render(on_a_gpu(seconds), static)
    assert page.startswith("# NVIDIA H100 80GB HBM3")
    assert says in page
    assert "not run: out of memory" in page
    assert "| statistics_kernel | 1 | 9.0 |" in page
    assert "Memset" not in page
    assert "| 700 (650) | 24 (24) |" in page
    predicted = static["predictions"]["H100"]
    assert f"{predicted['1']['aligned_attention']['predicted'] * 1e6:.1f}" in page


def test_the_page_tells_of_onnx_runtime() -> None:
    page = report.render(on_a_gpu(0.02), None)
    assert "1.31.1, CUDAExecutionProvider. Ran there: TokenCompact on CUDAExecutionProvider (8)." in page
    assert "b1: K = 3, recorded 4" in page
    assert "| 0.4 | **differ** | not finite |" in page
    assert "| ONNX Runtime, ours | 8 | 20.00 | 20.00-20.00 | 1.00 |" in page
    assert "| 50% | 8 | 6/8 | 8/8 | 2.0e-03 |" in page


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of results of a GPU, beside a status page and a folder `kept`."""
    page = tmp_path / "gpu-status.md"
    page.write_text(f"before\n{status.BEGIN}\nold\n{status.END}\nafter\n")
    monkeypatch.setattr(status, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(status, "PAGE", page)
    results = tmp_path / "results"
    results.mkdir()
    write_json(results / "results.json", on_a_gpu(0.01))
    (results / "results.md").write_text("page")
    return results


def test_results_of_a_rehearsal_are_not_kept(results: Path) -> None:
    write_json(results / "results.json", on_a_gpu(0.01) | {"rehearsal": True})
    refused = CliRunner().invoke(status.main, [str(results)])
    assert refused.exit_code == 2
    assert "not of a GPU" in refused.stderr
    assert CliRunner().invoke(status.main, [str(results.parent)]).exit_code == 2


def test_results_of_a_gpu_are_kept_and_listed(results: Path, tmp_path: Path) -> None:
    assert CliRunner().invoke(status.main, [str(results)]).exit_code == 0
    assert (tmp_path / "kept/nvidia-h100-80gb-hbm3-2026-01-02/results.md").read_text() == "page"
    text = (tmp_path / "gpu-status.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| abc | 4/5 | graphs overlong |" in text


def test_a_run_is_kept_once_and_another_of_its_day_beside_it(results: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert CliRunner().invoke(status.main, [str(results)]).exit_code == 0
    assert len(list((tmp_path / "kept").iterdir())) == 1
    write_json(results / "results.json", on_a_gpu(0.02))
    assert CliRunner().invoke(status.main, [str(results)]).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        "nvidia-h100-80gb-hbm3-2026-01-02",
        "nvidia-h100-80gb-hbm3-2026-01-02-0304",
    ]


def test_the_status_page_lists_the_runs_that_are_kept() -> None:
    text = status.PAGE.read_text()
    assert text == status.updated(text), "run: python -m benchmarks.kit.status RESULTS_DIR"


def test_a_profile_counts_what_is_read_back() -> None:
    numbers = torch.ones(3)

    def call() -> None:
        for _ in range(4):
            (numbers + 1).sum().item()

    found = profile_call(call, "cpu")
    assert found["synchronisations"] == found["read_back"] == 4
    assert {"aten::add", "aten::sum"} <= {kernel["name"] for kernel in found["kernels"]}
