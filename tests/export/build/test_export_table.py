"""The table at the end of an export: latencies and their ratios with the spread that they have, caveats below."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import export.build.validation
from export.artifact.manifest import Gflops
from export.bench.latency import ratio_of
from export.build.table import validation_table
from export.build.validation import ExportValidation
from export.validate.comparator import PairResult

HALF = "other processes took 50 % of the CPUs while this was measured"
TWICE = ([20.0, 22.0, 18.0], [10.0, 10.0, 10.0])
NO_CHANGE = ([10.0, 9.0, 11.0], [10.0, 10.0, 10.0])
NOISE = ([4.0, 10.0, 50.0], [10.0, 10.0, 10.0])


def validation(torch: tuple[list[float], list[float]], artifact: tuple[list[float], list[float]]) -> ExportValidation:
    """One with these milliseconds, dense and pruned."""
    counts = {0.5: {"vision": [[3], [4]]}, 0.0: {"vision": [[9], [9]]}}
    pairs = tuple(PairResult("torch/onnx", temperature, requests=2, compared=2) for temperature in counts)
    measured = {"torch": torch, "artifact": artifact}
    times = {
        f"{name} {kind}": ms
        for name, both in measured.items()
        for kind, ms in zip(("dense", "pruned"), both, strict=True)
    }
    return ExportValidation("samples", pairs, counts, Gflops(2.0, 1.0), times, "artifact", (HALF,))


def test_a_ratio_has_the_spread_of_its_rounds() -> None:
    found = ratio_of([10.0, 20.0, 30.0], [5.0, 5.0, 30.0])
    assert (found.ratio, found.may_be_none) == (2.0, False)
    assert ratio_of([10.0, 20.0, 10.0], [5.0, 5.0, 30.0]).may_be_none


def test_a_ratio_that_rounds_do_not_agree_on_is_undecided() -> None:
    table = validation_table(validation(NO_CHANGE, TWICE), "title")
    cells = list(table.columns[-1].cells)
    assert cells[-2:] == ["undecided (0.92 to 1.08)", "2.00x (1.84 to 2.16)"]
    assert cells[-3] == "2.00x", "GFLOPs are counted"
    noise = validation_table(validation(NOISE, TWICE), "title")
    assert list(noise.columns[-1].cells)[-2] == "undecided: too noisy"


def test_a_margin_has_its_cost_beside_it() -> None:
    plain = validation(NO_CHANGE, TWICE)
    labels = list(validation_table(plain, "title").columns[0].cells)
    table = validation_table(replace(plain, gflops=Gflops(2.0, 1.0, 0.5)), "title")
    assert [label for label in table.columns[0].cells if label not in labels] == ["GFLOPs without the margin"]
    row = list(table.columns[0].cells).index("GFLOPs without the margin")
    assert [list(column.cells)[row] for column in table.columns[1:]] == ["2.000", "0.500", "4.00x"]


def test_latencies_are_p50_p90_and_p99() -> None:
    table = validation_table(validation(NO_CHANGE, TWICE), "title")
    assert list(table.columns[0].cells)[-1] == "latency of artifact, ms: p50 / p90 / p99 of 3 calls"
    assert list(table.columns[1].cells)[-1] == "20.00 / 21.60 / 21.96"


def test_mean_tokens_are_those_of_the_samples_alone() -> None:
    pruned, dense = validation(NO_CHANGE, TWICE).parity
    assert (pruned.mean_tokens, dense.mean_tokens) == ({"vision": (3.5,)}, {"vision": (9.0,)})


def test_caveats_are_recorded() -> None:
    assert validation(NOISE, TWICE).entry().machine.endswith(f"; {HALF}")


def test_an_export_on_a_busy_machine_says_so(
    quick: pytest.MonkeyPatch, run_cli: Any, tiny_checkpoint: Any, tmp_path: Path
) -> None:
    class Half:
        def share(self) -> float:
            return 0.5

    quick.setattr(export.build.validation, "Neighbours", Half)
    ran = run_cli("--ckpt", tiny_checkpoint(), "--engine", tmp_path / "out.onnx")
    assert ran.status == 0, ran.err
    assert HALF in " ".join(ran.out.split())
    assert HALF in (tmp_path / "out.json").read_text()
