"""What ptxas and the disassembler say of the kernels: no spills, tensor cores and asynchronous copies in use, and a
static report (benchmarks/gpu/static.json) that is up to date with the sources."""

import json
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.architectures import GPUS, LIMITS, occupancy
from benchmarks.gpu.compile import (
    COMPACT,
    PLUGINS,
    TENSOR_CORE,
    Kernel,
    compile_kernels,
    kernel_from_json,
    read_ptxas,
    source_hash,
    toolkit_version,
)
from benchmarks.gpu.floor import tail_factor
from benchmarks.gpu.launches import dynamic_shared, launched, work
from benchmarks.gpu.results import FOLDER, REPORT, STATIC_COMMAND
from benchmarks.gpu.sass import parse, summarize
from benchmarks.gpu.static_markdown import render
from benchmarks.static_report import to_json
from export.engine.plugin_build import find_nvcc
from export.errors import PluginError
from tests.helpers.paths import ROOT

RECOMPILED = ((TENSOR_CORE, 80), (TENSOR_CORE, 90), (COMPACT, 80), (COMPACT, 90))  # about 30 s of one core
TENSOR_KERNELS = ("context_kernel", "statistics_kernel")
LISTING = """
.text._ZN3fooE9sum_kernelI6__halfLi64ELi2EEvv:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/              @!P0 BRA `(.L_x_1) ;
        /*0020*/                   LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64] ;
        /*0030*/                   BRA `(.L_x_2) ;
.L_x_1:
        /*0040*/                   NOP ;
        /*0050*/                   NOP ;
        /*0060*/                   NOP ;
.L_x_2:
        /*0070*/               @P1 BRA `(.L_x_3) ;
        /*0080*/                   STG.E desc[UR4][R2.64], R1 ;
.L_x_3:
        /*0090*/                   HMMA.16816.F32 R4, R8, R10, R4 ;
        /*00a0*/               @P0 BRA `(.L_x_0) ;
        /*00b0*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*00c0*/                   EXIT ;
"""
PTXAS = """\
ptxas info    : Compiling entry function '_ZN3foo9sum_kernelI6__halfLi64ELi2EEvv' for 'sm_90'
ptxas info    : Function properties for _ZN3foo9sum_kernelI6__halfLi64ELi2EEvv
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 4096 bytes smem
"""


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return json.loads(REPORT.read_text())


@pytest.fixture(scope="module")
def toolkit() -> str:
    """The version of nvcc; skips where there is none."""
    try:
        return toolkit_version(find_nvcc())
    except PluginError as error:
        pytest.skip(f"nothing can be compiled here: {error.what}")


def test_report_is_of_these_sources(report: dict[str, Any]) -> None:
    assert report["source"] == source_hash(), f"the kernels changed since the report was written; run: {STATIC_COMMAND}"


def test_page_is_of_this_report(report: dict[str, Any]) -> None:
    assert (FOLDER / "static.md").read_text() == render(report), f"run: {STATIC_COMMAND}"
    assert to_json(report) == REPORT.read_text(), f"run: {STATIC_COMMAND}"


def check(kernel: Kernel, sm: int) -> None:
    """What every kernel has to be."""
    where = f"{kernel.label} on sm_{sm}"
    assert (kernel.spill_stores, kernel.spill_loads, kernel.stack) == (0, 0, 0), where
    if kernel.code is None:
        return
    assert kernel.code.counts["local"] == 0, where
    if work(kernel) in TENSOR_KERNELS:
        assert kernel.code.counts["hmma"] > 0, where
        assert kernel.code.counts["ldsm"] > 0, where
        assert sm < 80 or kernel.code.counts["ldgsts_128"] > 0, where
    if work(kernel) in ("context_kernel", "write_kernel"):
        assert kernel.code.counts["stg_128"] > 0, where


def test_reported_kernels_do_not_spill_and_use_tensor_cores(report: dict[str, Any]) -> None:
    fields = Kernel.__dataclass_fields__
    seen = set()
    for entry in report["kernels"]:
        kernel = kernel_from_json({name: entry[name] for name in fields})
        assert kernel.code is not None
        check(kernel, entry["sm"])
        seen.add((entry["name"], entry["sm"]))
    assert {(name, sm) for name in TENSOR_KERNELS for sm in LIMITS} <= seen


@pytest.mark.parametrize(("file", "sm"), RECOMPILED)
def test_compiled_anew_they_are_as_reported(file: str, sm: int, report: dict[str, Any], toolkit: str) -> None:
    kernels = [kernel for kernel in compile_kernels(file, sm) if launched(kernel, sm)]
    entries = [entry for entry in report["kernels"] if entry["file"] == file and entry["sm"] == sm]
    assert len(kernels) == len(entries) > 0
    for kernel in kernels:
        check(kernel, sm)
    if toolkit != report["toolkit"]:
        return  # another compiler gives other registers
    for kernel, entry in zip(kernels, entries, strict=True):
        again = json.loads(json.dumps(asdict(kernel)))
        if kernel.code is None:  # no disassembler here
            again["code"] = entry["code"]
        assert again == {name: entry[name] for name in again}, f"{kernel.label}: run {STATIC_COMMAND}"


def test_shared_memory_is_what_the_structs_take(report: dict[str, Any], tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++ to measure the structs with")
    names = {
        "context_kernel": "tensor_core::ContextShared<{type}, {0}>",
        "statistics_kernel": "tensor_core::StatisticsShared<{type}, {0}, {1}>",
    }
    plain = {"plain_context_kernel": "plain::ContextShared", "plain_statistics_kernel": "plain::StatisticsShared"}
    packed = {"packed_plan_kernel": "PackedPlanShared"}
    small = {"threshold_kernel": "ThresholdShared", "rank_kernel": "RankShared", "plan_kernel": "PlanShared"}
    checks: dict[str, set[str]] = {}
    for entry in report["kernels"]:
        kernel = kernel_from_json({name: entry[name] for name in Kernel.__dataclass_fields__})
        struct = packed.get(kernel.name, {**names, **plain, **small}.get(work(kernel)))
        if struct is not None:
            struct = struct.format(*entry["parameters"], type={"fp16": "__half"}.get(entry["dtype"], "__nv_bfloat16"))
            line = f"static_assert(sizeof({struct}) == {entry['dynamic_shared']});\n"
            checks.setdefault(entry["file"], set()).add(line)
    assert len(checks) == 7
    for file, lines in checks.items():
        space = "compact" if "compact" in file else "attention"
        source = tmp_path / "sizes.cpp"
        source.write_text(f'#include "{file}"\nnamespace madtp::{space} {{\n{"".join(sorted(lines))}}}\n')
        folders = [f"-I{folder}" for folder in (ROOT / "tests" / "native" / "simt", PLUGINS, PLUGINS / "include")]
        command = [compiler, "-std=c++17", "-fsyntax-only", "-w", "-DMADTP_SIMT", *folders, str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_dynamic_shared_memory_of_the_report_is_current(report: dict[str, Any]) -> None:
    for entry in report["kernels"]:
        kernel = kernel_from_json({name: entry[name] for name in Kernel.__dataclass_fields__})
        assert entry["dynamic_shared"] == dynamic_shared(kernel)


def test_sass_is_read() -> None:
    (code,) = parse(LISTING).values()
    summary = summarize(code)
    assert summary.instructions == 13
    assert summary.counts["hmma"] == summary.counts["ldgsts_128"] == summary.counts["stg_128"] == 1
    # Branch, copy, branch to the end; the branch over the store, and not the store; product and branch back.
    assert summary.loop == {"instructions": 6, "exp": 0, "hmma": 1}
    assert summary.once == 3


def test_a_block_that_most_warps_jump_over_is_not_counted() -> None:
    """One that neither loads nor multiplies; the condition may be the branch's first operand."""
    for condition in ("@!P6 BRA ", "BRA.U !UP0, "):
        listing = LISTING.replace("@P1 BRA ", condition).replace("STG.E desc[UR4][R2.64], R1", "FADD R1, R1, R2")
        (code,) = parse(listing).values()
        assert summarize(code).loop == {"instructions": 6, "exp": 0, "hmma": 1}


def test_ptxas_is_read() -> None:
    (kernel,) = read_ptxas(PTXAS, None)
    assert kernel.label == "sum_kernel<fp16, 64, 2>"
    assert (kernel.registers, kernel.static_shared, kernel.stack) == (40, 4096, 16)
    assert (kernel.spill_stores, kernel.spill_loads) == (8, 12)


def test_occupancy_by_each_limit() -> None:
    assert occupancy(90, 255, 0, 128).blocks == 2
    assert occupancy(90, 32, 60_000, 128).blocks == 3
    assert occupancy(86, 32, 0, 256).warps == 48
    assert occupancy(86, 16, 0, 32).limited_by == "blocks"
    assert not occupancy(75, 32, 65_537, 128).can_start
    assert occupancy(75, 32, 65_536, 128).can_start


def test_tail_of_the_last_wave() -> None:
    assert tail_factor(264, 132, 2) == 1.0
    assert tail_factor(66, 132, 2) == pytest.approx(2.0)  # half of the multiprocessors have nothing to do


def test_rates_are_consistent() -> None:
    for gpu in GPUS.values():
        # The tensor rate is a whole number of operations a clock and multiprocessor, within the clock's rounding.
        a_clock = gpu.tensor / gpu.multiprocessors / gpu.clock
        assert min(abs(a_clock / power - 1) for power in (512, 1024, 2048, 4096)) < 0.01


def test_benchmark_without_a_gpu_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from click.testing import CliRunner

    from benchmarks.kernels import main

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 2
    text = re.sub(r"\s+", " ", result.stderr)
    assert "there is no CUDA device" in text
    assert "nvidia-smi" in text
    assert "Traceback" not in text
