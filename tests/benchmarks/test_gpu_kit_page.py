"""What becomes of the GPU kit's results: the page of a run, a profile's counts, and what is kept of runs on a GPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks.kit import report, run, status
from benchmarks.kit.files import read_json, write_json
from benchmarks.kit.goals import goals
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

    def timed_at(milliseconds: float) -> dict[str, Any]:
        return {**timing, "median_us": 1e3 * milliseconds, "p10_us": 900 * milliseconds, "p90_us": 1100 * milliseconds}

    one = {"requests": 32, "same_counts": 31, "same_answers": 32, "worst": 1e-3, "finite": True}
    replayed = {"uncaptured": {**one, "same_counts": 32}, "exact": one}
    replay_profile = {**profile, "launches": 0, "graph_launches": 1, "synchronisations": 0, "refused": ""}
    packed_batch = {
        "gflops": {"dense": 4000.0, "kept": 796.0, "executed": 850.0},
        "latency_us": {"dense, SDPA": timed_at(40), "packed": timed_at(10)},
        "replays": [replayed, replayed],
        "overflows_while_timed": {"packed": 0},
        "forced_overflow": {"calls": 3, "noticed": 3, "answered_by_lossless": True},
        "waits": {"packed": replay_profile},
    }
    packed: dict[str, Any] = {
        "exact": {"requests": 12, "same_counts": 12, "worst": 1e-5, "passed": True},
        "batches": {
            "32": packed_batch,
            "1": {**packed_batch, "latency_us": {"dense, SDPA": timed_at(2), "packed": timed_at(3)}},
        },
        "compiled": {
            "32": {
                "latency_us": {
                    "dense, torch.compile": timed_at(30),
                    "dense, SDPA": timed_at(40),
                    "packed": timed_at(10),
                }
            },
            "1": {"not_run": "time ran out"},
        },
    }
    packed["goals"] = goals(packed)
    onnx_packed = {
        "exact": {"requests": 6, "same_counts": 6, "worst": None, "overflows": 0},
        "refused": "a node is on the host",
        "batches": {
            "8": {
                "latency_us": {"dense, SDPA": timed_at(40), "ONNX Runtime, packed": timed_at(8)},
                "replays": [one],
                "overflows": 0,
                "waits": {"ONNX Runtime, packed": {**replay_profile, "synchronisations": 1}},
            }
        },
    }
    results = {
        "probe": {"gpu": gpu},
        "packed": packed,
        "model": {
            "batches": {"1": {"candidates": {"ours": candidate}, "not_run": {"dense": "no"}}},
            "compiled": {"1": {"not_run": "no compiler"}},
        },
        "onnx_runtime": {
            "packed": onnx_packed,
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


def test_the_page_tells_of_the_packed_layout() -> None:
    page = report.render(on_a_gpu(0.02), None)
    assert (
        "| 3.5 times as fast as every dense candidate, batch 32 | 3 | 2.45 | dense, torch.compile | **missed** |"
        in page
    )
    assert "| 1 times as fast as every dense candidate, batch 1 | 0.667 | 0.55 | dense, SDPA | **missed** |" in page
    assert "| 80% fewer GFLOPs, batch 32 | 0.801 |  |  | met |" in page
    assert "| no host synchronisation | 0 |  |  | met |" in page
    assert "counts of 12 of 12 requests equal, worst logit 1.0e-05: equal" in page
    assert "| packed | 32 | 10.00 | 9.00-11.00 | 3200 | 4.00 |" in page
    assert "| not run: time ran out | 1 |" in page
    assert "| 32 | 4000 | 796 | 850 | 64/64 | 1.0e-03 | 62/64 | 64/64 | 0 | 3/3, then right | 1 | 0 |" in page
    assert "**Not captured**, run node by node: a node is on the host" in page
    assert "| 8 | 31/32 | 32/32 | 0 |  | 1 | 1 |" in page


def test_a_goal_is_met_against_the_fastest_dense_candidate_alone() -> None:
    def entry(**milliseconds: float) -> dict[str, Any]:
        times = {name.replace("_", " "): 1e3 * value for name, value in milliseconds.items()}
        return {"latency_us": {name: {"median_us": us, "p10_us": us, "p90_us": us} for name, us in times.items()}}

    found: dict[str, Any] = {"batches": {"32": entry(dense_eager=80, dense=40, packed=10, packed_lossless=50)}}
    (met,) = goals(found)
    assert (met["seen"], met["against"], met["met"]) == (4.0, "dense", True)
    (missed,) = goals({**found, "compiled": {"32": entry(dense_compiled=30, packed=10)}})
    assert (missed["seen"], missed["against"], missed["met"]) == (3.0, "dense compiled", False)
    waiting = {"batches": {"2": {"waits": {"packed": {"synchronisations": 1}}}}}
    assert [goal["met"] for goal in goals(waiting) + goals(waiting, waits=1)] == [False, True]
    assert goals({"batches": {"8": entry(dense=2, packed=1)}, "compiled": {"32": {"not_run": "why"}}}) == []


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
    assert "| abc | 5/6 | graphs overlong |" in text


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
