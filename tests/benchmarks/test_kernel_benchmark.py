"""What `python -m benchmarks.kernels` does with its measurements, on made-up ones: no GPU is needed here."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import kernels
from benchmarks.gpu import results
from benchmarks.gpu.architectures import GPUS, known_gpu

H100 = "NVIDIA H100 80GB HBM3"


def measured(batch: int) -> dict[str, Any]:
    """What measure_batch gives."""
    timing = {"median_us": 10.0 * batch, "p10_us": 9.0 * batch, "p90_us": 11.0 * batch, "calls": 5}
    slower = {name: 5 * value for name, value in timing.items() if name != "calls"}
    timings = {"kernel": timing, "eager": {**timing, **slower}}
    refused = {"SDPA cuDNN": "RuntimeError: no kernel"}
    op = {"timings": timings, "not_run": refused}
    return {"aligned_attention": op, "token_compact": {**op, "tokens": 290}}


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A GPU that measures at once."""
    for name, value in {
        "require_device": lambda: None,
        "load_library": lambda path: None,
        "device_state": lambda: {"name": H100},
        "copy_bandwidth": lambda: 2.5e12,
        "measure_batch": lambda library, batch, rounds: measured(batch),
        "memory_against_length": lambda *_: [{"length": n, "kernel": 10 * n, "eager": n * n} for n in (100, 200, 400)],
    }.items():
        monkeypatch.setattr(results, name, value)
    return monkeypatch


def written(folder: Path) -> tuple[dict[str, Any], str]:
    """The results in a folder, and their page; nothing else lies there."""
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".md"]
    (path,) = folder.glob("results-nvidia-h100-80gb-hbm3-*.json")
    return json.loads(path.read_text()), path.with_suffix(".md").read_text()


@pytest.mark.usefixtures("fakes")
def test_results_go_where_they_are_asked_for(tmp_path: Path) -> None:
    here = set(results.FOLDER.iterdir())
    done = CliRunner().invoke(kernels.main, ["--out", str(tmp_path / "new"), "--json", str(tmp_path / "too.json")])
    assert done.exit_code == 0, done.output
    content, page = written(tmp_path / "new")
    assert json.loads((tmp_path / "too.json").read_text()) == content
    assert list(content["batches"]) == ["1", "8", "32", "128"]
    assert content["batches"]["32"]["aligned_attention"]["prediction_us"]["predicted"] > 0  # of an H100
    assert "met: AlignedAttention at least 4 x faster" in page
    assert "open: AlignedAttention at most 1.6 x SDPA at B = 32; seen nothing: SDPA did not run" in page
    assert page in done.output
    assert set(results.FOLDER.iterdir()) == here


def test_a_run_that_is_cut_short_leaves_what_it_had(fakes: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def measure_batch(library: None, batch: int, rounds: int) -> dict[str, Any]:
        if batch == 32:
            raise KeyboardInterrupt
        return measured(batch)

    fakes.setattr(results, "measure_batch", measure_batch)
    with pytest.raises(KeyboardInterrupt):
        results.measure(on_results=lambda content: results.write(content, tmp_path))
    content, page = written(tmp_path)
    assert list(content["batches"]) == ["1", "8"]
    assert content["verdicts"] == [line for line in content["verdicts"] if line.startswith("open: ")]
    assert len(content["verdicts"]) == 4
    assert "| kernel | 8 | 80.0 |" in page


@pytest.mark.usefixtures("fakes")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = CliRunner().invoke(kernels.main, ["--out", str(tmp_path / "file" / "new")])
    assert done.exit_code == 2
    assert "cannot write" in done.output


def test_a_target_within_the_noise_is_neither_met_nor_missed() -> None:
    batch = measured(32)
    batch["aligned_attention"]["timings"]["eager"]["p10_us"] = 3.0 * 32  # now and then as fast as the kernel
    (first, *_) = [line for line in results.verdicts({"batches": {"32": batch}}) if "eager" in line]
    assert first.startswith("open: AlignedAttention at least 4 x faster")
    assert first.endswith("5.00 x (0.27 to 6.11), undecided: too noisy")


def test_predictions_are_for_the_very_device() -> None:
    assert known_gpu(H100) is GPUS["H100"]
    assert known_gpu("NVIDIA H200") is GPUS["H200"]
    assert known_gpu("NVIDIA GeForce RTX 4090") is GPUS["RTX 4090"]
    for other in ("NVIDIA H100 PCIe", "NVIDIA H200 NVL", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A100-SXM4-80GB"):
        assert known_gpu(other) is None
