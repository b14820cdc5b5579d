"""The table at the end of an export: latencies and their ratios with the spread that they have, caveats below."""

from pathlib import Path
from typing import Any

import pytest

import export.build.check
from export.bench.latency import Latency, ratio_of
from export.bench.statistics import Ratio
from export.build.check import Validation
from export.build.pipeline import ExportResult
from export.build.table import closing_lines, validation_table
from export.engine.backends import Backend
from export.validate.parity import ParityResult

LATENCY = {
    f"{name} {kind}": Latency(50, 14.0, 9.0, 8.0, p50, 40.0, 41.0, 0.1)
    for name in ("torch", "artifact")
    for kind, p50 in (("dense", 10.0), ("pruned", 5.0))
}
HALF = "other processes took 50 % of the CPUs while this was measured"


def validation(torch: Ratio, artifact: Ratio) -> Validation:
    parity = [ParityResult(0.5, mean_tokens={"vision": [3.0]}), ParityResult(0.0, mean_tokens={"vision": [9.0]})]
    gflops = {"dense": 2.0, "pruned": 1.0}
    ratios = {"torch": torch, "artifact": artifact}
    return Validation("samples", parity, gflops, LATENCY, speed_ups=ratios, caveats=[HALF])


def test_a_ratio_has_the_spread_of_its_rounds() -> None:
    found = ratio_of([10.0, 20.0, 30.0], [5.0, 5.0, 30.0])
    assert (found.ratio, found.may_be_none) == (2.0, False)
    assert ratio_of([10.0, 20.0, 10.0], [5.0, 5.0, 30.0]).may_be_none


def test_a_ratio_that_rounds_do_not_agree_on_is_undecided() -> None:
    table = validation_table(validation(Ratio(1.01, 0.9, 1.1), Ratio(2.0, 1.8, 2.2)), "title")
    cells = list(table.columns[-1].cells)
    assert cells[-2:] == ["undecided (0.90 to 1.10)", "2.00x (1.80 to 2.20)"]
    assert cells[-3] == "2.00x", "GFLOPs are counted"
    assert list(table.columns[0].cells)[-1] == "latency of artifact, ms: p50 / p90 / p99 of 50 calls"
    noise = validation_table(validation(Ratio(1.77, 0.4, 5.0), Ratio(2.0, 1.8, 2.2)), "title")
    assert list(noise.columns[-1].cells)[-2] == "undecided: too noisy"


def test_caveats_are_said_and_recorded() -> None:
    found = validation(Ratio(1.77, 0.4, 5.0), Ratio(2.0, 1.8, 2.2))
    result = ExportResult(found, Backend("onnxruntime", "1", "why", can_run=True), Path("out.onnx"))
    assert f"note on latency: {HALF}" in closing_lines(result)
    assert found.to_manifest()["machine"].endswith(f"; {HALF}")


def test_an_export_on_a_busy_machine_says_so(
    quick: pytest.MonkeyPatch, run_cli: Any, tiny_checkpoint: Any, tmp_path: Path
) -> None:
    class Half:
        def share(self) -> float:
            return 0.5

    quick.setattr(export.build.check, "Neighbours", Half)
    ran = run_cli("--ckpt", tiny_checkpoint(), "--engine", tmp_path / "out.onnx")
    assert ran.status == 0, ran.err
    assert HALF in " ".join(ran.out.split())
    assert HALF in (tmp_path / "out.json").read_text()
