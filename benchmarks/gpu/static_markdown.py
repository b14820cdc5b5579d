"""Writes static.json as static.md."""

from typing import Any

from benchmarks.gpu.architectures import GPUS, LIMITS
from benchmarks.gpu.floor import ALIGNMENTS, BATCHES, HEADS, LENGTH, WIDTH, context_tiles, one_pass_shape
from benchmarks.gpu.markdown import table

MICRO = 1e6
MEGA = 1e-6

INTRODUCTION = """\
# What the kernels are, before any GPU has run them

Written by `python -m benchmarks.static_report` with nvcc {toolkit}; sources {source}. Nothing on this page was measured
on a GPU: registers, shared memory and spills are what ptxas reports, instructions what nvdisasm shows, and times are
arithmetic on published rates."""
RESOURCES = """\
## Resources and occupancy

Limits and granularity of each SM: `benchmarks/gpu/architectures.py`, with sources. Kernels that the launchers never
start (bfloat16 attention, heads of 128 and tiles of 128 queries on sm_75) are left out. Dynamic shared memory is what
the launchers ask for."""
MACHINE_CODE = """\
## Machine code

Counts over the whole kernel. A turn of the main loop is one tile of keys (context) or one head (statistics), in
instructions of one warp, without the code that only causal attention runs. sm_75 has no asynchronous copies."""
FLOOR = """\
## Floor and prediction

Base size: {length} tokens with the class token, C = {width}, H = {heads}, T = {alignments}, fp16, B = {batches}; half
of the tokens stay in TokenCompact. Model, sources and what is assumed: `benchmarks/gpu/floor.py`. Rates; columns with *
are assumptions, not published:"""
ONE_EXPONENTIAL = """\
## One exponential a score, not one a head

The maximum over heads of exp(score - maximum) / sum is the exponential of the maximum of score - maximum - log(sum).
So the second kernel starts each product from (log of one over the sum) - maximum, keeps the largest over the heads,
and takes one exponential of each at the end; scale, key mask and causal mask are the same for all heads and wait until
then. It also leaves the class token out, which the column score does not need: of {length} = 9 x 64 + 1 queries and
keys that one made a tenth tile each way. Predicted microseconds at base size, before (as compiled then) and now:"""
PEELING = """\
The context kernel does need the class token: of its {tiles} tiles of 64 x 64 a head, {saved} hold only one row or
column of use. Without them it would take up to {share:.0f} % less, {micros:.0f} of {of:.0f} us at B = 32 on an H200.
That needs the class key as the start of every row's softmax and a pass of its own for the class query: two more pieces
of code whose sums have to come out the same in every tile shape. It waits until a GPU has shown what the kernels
take."""
TIMES = """\
Times in microseconds. In brackets: our prediction over SDPA's, and eager torch over our prediction. SDPA computes less:
two products a score, where AlignedAttention has three."""
WHY_TWO_PASSES = """\
## Why two passes

The column score needs the maximum over heads of finished probabilities, and a probability is finished only when its
row's sum is. So either a second pass computes the scores again from the rows' sums (what is here), or one pass keeps
whole rows of scores, and of maxima, on the chip while it walks the heads:"""
ONE_PASS = """\
One pass saves a third of the products. But a block that keeps whole rows of float32
scores and maxima can have few queries, and keys and values are read again by each group of queries: with 16 queries
the traffic from L2 alone (at the rate assumed above) takes longer than both of our passes are predicted to. With 32
queries the rows (164 kB) exceed the 99 kB that a block can have on sm_86, sm_89 and sm_120, and with 64 (328 kB) the
shared memory of all of these architectures. At B = 1 groups of 16 make 37 blocks for the 132 SMs of an H200, each
with all the heads to walk. Two passes ask for at most 67 kB (51 kB at base size), fill the GPU better from B = 1 on,
and are one piece of code for all batches; the price is one more product a score."""


def _resources(kernels: list[dict[str, Any]]) -> str:
    header = ("kernel", "sm", "registers", "shared static + dynamic, bytes", "stack", "spill stores / loads")
    rows = []
    for kernel in kernels:
        occupied = kernel["occupancy"]
        held = f"**cannot start**: {occupied['limited_by']}" if not occupied["blocks"] else occupied["blocks"]
        spill = f"{kernel['spill_stores']} / {kernel['spill_loads']}"
        rows.append(
            (
                f"`{kernel['label']}`",
                kernel["sm"],
                kernel["registers"],
                f"{kernel['static_shared']} + {kernel['dynamic_shared']}",
                kernel["stack"],
                spill if spill == "0 / 0" else f"**{spill}**",
                held,
                f"{occupied['warps']} of {LIMITS[kernel['sm']].warps}",
                occupied["limited_by"],
            )
        )
    return table((*header, "blocks/SM", "warps/SM", "limited by"), rows)


def _evidence(kernels: list[dict[str, Any]]) -> str:
    names = ("hmma", "ldgsts_128", "ldsm", "ldg_128", "stg_128", "exp", "local")
    shown = ("HMMA", "LDGSTS .128", "LDSM", "LDG .128", "STG .128", "MUFU.EX2", "LDL/STL")
    rows = []
    for kernel in kernels:
        code = kernel["code"]
        if code is None:
            continue
        turn = code["loop"]["instructions"] if code["loop"] else "-"
        rows.append(
            (
                f"`{kernel['label']}`",
                kernel["sm"],
                code["instructions"],
                *(code["counts"][name] for name in names),
                turn,
            )
        )
    return table(("kernel", "sm", "instructions", *shown, "a turn of the main loop"), rows)


def _costs(costs: dict[str, Any]) -> str:
    header = ("kernel", "B", "blocks", "DRAM MB", "L2 MB", "GFLOP", "Gexp", "DRAM", "L2", "tensor", "exp", "issue")
    rows = []
    for batch, ops in costs.items():
        for cost in (*ops["aligned_attention"]["kernels"], *ops["token_compact"]["kernels"]):
            work = (f"{cost[name] * MEGA:.1f}" for name in ("dram_bytes", "l2_bytes"))
            counts = (f"{cost[name] * 1e-9:.2f}" for name in ("flop", "exponentials"))
            times = ("dram", "l2", "tensor", "exp", "issue", "tail", "serial", "floor", "predicted")
            shown = (f"{cost[name] * (1 if name == 'tail' else MICRO):.2f}" for name in times)
            rows.append((f"`{cost['kernel']}`", batch, cost["blocks"], *work, *counts, *shown))
    return table((*header, "tail", "serial", "floor", "predicted"), rows)


def _predictions(name: str, costs: dict[str, Any]) -> str:
    rows = []
    for batch, ops in costs.items():
        attention, compact = ops["aligned_attention"], ops["token_compact"]
        sdpa = attention["sdpa"]
        rows.append(
            (
                name,
                batch,
                f"{attention['floor'] * MICRO:.1f}",
                f"{attention['predicted'] * MICRO:.1f}",
                *(
                    f"{sdpa[kind] * MICRO:.1f} ({attention['predicted'] / sdpa[kind]:.2f})" if kind in sdpa else "-"
                    for kind in ("like context_kernel", "wgmma, perfect overlap")
                ),
                f"{attention['eager'] * MICRO:.0f} ({attention['eager'] / attention['predicted']:.1f})",
                f"{compact['floor'] * MICRO:.1f}",
                f"{compact['predicted'] * MICRO:.1f}",
                f"{compact['share_of_bandwidth'] * 100:.0f} %",
            )
        )
    header = (
        "GPU",
        "B",
        "attention floor",
        "attention predicted",
        "SDPA like our first kernel (ratio)",
        "SDPA with wgmma, perfect overlap (ratio)",
        "eager (times slower)",
        "compact floor",
        "compact predicted",
        "of published bandwidth",
    )
    return table(header, rows)


def _gain(predictions: dict[str, Any]) -> str:
    rows = []
    for name, costs in predictions.items():
        for batch, ops in costs.items():
            attention = ops["aligned_attention"]
            now, before = attention["kernels"][1]["predicted"], attention["former_statistics"]["predicted"]
            total = attention["predicted"]
            former = total - now + before
            kernel = (f"{before * MICRO:.1f}", f"{now * MICRO:.1f}", f"{(1 - now / before) * 100:.0f} %")
            op = (f"{former * MICRO:.1f}", f"{total * MICRO:.1f}", f"{(1 - total / former) * 100:.0f} %")
            rows.append((name, batch, *kernel, *op))
    kernel_columns = ("statistics before", "now", "less")
    return table(("GPU", "B", *kernel_columns, "attention before", "now", "less"), rows)


def _peeling(predicted: float) -> str:
    whole, peeled = context_tiles(False), context_tiles(True)
    share = 1 - peeled / whole
    micros = predicted * MICRO
    return PEELING.format(tiles=whole, saved=whole - peeled, share=share * 100, micros=share * micros, of=micros)


def _rates() -> str:
    rows = [
        (
            gpu.name,
            f"{gpu.dram * 1e-12:.3f}",
            f"{gpu.tensor * 1e-12:.0f}",
            f"{gpu.mma_share * 100:.0f} %",
            f"{gpu.exponentials * 1e-12:.2f}",
            f"{gpu.issue * 1e-12:.2f}",
            f"{gpu.l2 * 1e-12:.1f}",
            f"{gpu.l2_size * MEGA:.0f}",
        )
        for gpu in GPUS.values()
    ]
    header = ("GPU", "DRAM TB/s", "dense fp16 TFLOPS", "of it by mma.sync*", "Texp/s", "T instructions/s")
    return table((*header, "L2 TB/s*", "L2 MB"), rows)


def _shapes(content: dict[str, Any]) -> str:
    batch = "32"
    ops = content["predictions"]["H200"][batch]["aligned_attention"]
    two_pass = sum(cost["l2_bytes"] for cost in ops["kernels"])
    blocks = [cost["blocks"] for cost in content["predictions"]["H200"]["1"]["aligned_attention"]["kernels"][:2]]
    bandwidth = GPUS["H200"].l2
    rows = [
        (
            "two passes",
            "128 and 128 x 64",
            f"{blocks[0]} and {blocks[1]} (tiles of 64)",
            f"{two_pass * MEGA:.0f}",
            f"{two_pass / bandwidth * MICRO:.0f}",
            "none: 64 x 64 in registers",
            "tiles of 64 keys",
        )
    ]
    for size in (16, 32, 64):
        one, large = one_pass_shape(1, size), one_pass_shape(int(batch), size)
        rows.append(
            (
                "one pass",
                f"{size} x all",
                f"{one['blocks']:.0f}",
                f"{large['l2_bytes'] * MEGA:.0f}",
                f"{large['l2_bytes'] / bandwidth * MICRO:.0f}",
                f"{(one['scores_bytes'] + one['best_bytes']) / 1000:.0f}",
                f"{one['head_bytes'] / 1000:.0f}",
            )
        )
    header = ("shape", "queries x keys of a block", "blocks at B = 1", f"L2 MB at B = {batch}", "us of L2 on an H200")
    return table((*header, "kB of scores and maxima a block", "kB of a head's keys and values"), rows)


def render(content: dict[str, Any]) -> str:
    """static.md from the content of static.json."""
    kernels = content["kernels"]
    spilling = [kernel for kernel in kernels if kernel["spill_stores"] or kernel["spill_loads"]]
    stuck = [kernel for kernel in kernels if not kernel["occupancy"]["blocks"]]
    named = ", ".join(f"`{kernel['label']}` on sm_{kernel['sm']}" for kernel in stuck)
    parts = [
        INTRODUCTION.format(toolkit=content["toolkit"], source=content["source"][:12]),
        f"- Kernels that spill: {len(spilling)} of {len(kernels)}.\n- Kernels that the launchers would start and that"
        f" cannot start: {named or 'none'}.",
        RESOURCES,
        _resources(kernels),
        MACHINE_CODE,
        _evidence(kernels),
        FLOOR.format(
            length=LENGTH, width=WIDTH, heads=HEADS, alignments=ALIGNMENTS, batches=", ".join(map(str, BATCHES))
        ),
        _rates(),
        TIMES,
        *(_predictions(name, costs) for name, costs in content["predictions"].items()),
        ONE_EXPONENTIAL.format(length=LENGTH),
        _gain(content["predictions"]),
        _peeling(content["predictions"]["H200"]["32"]["aligned_attention"]["kernels"][0]["predicted"]),
        *(
            f"### {name}, kernel by kernel (microseconds; tail is a factor)\n\n{_costs(costs)}"
            for name, costs in content["predictions"].items()
        ),
        WHY_TWO_PASSES,
        _shapes(content),
        ONE_PASS,
    ]
    return "\n\n".join(parts) + "\n"
