"""Bytes and operations of each kernel at base size, and the time that they take at a GPU's published rates.

The model, per kernel, in seconds:
    dram, l2    bytes over bandwidth. Every input is read from memory once; what the tiling rereads comes from L2,
                unless it no longer fits there.
    tensor      FLOP of the padded tiles over the rate that mma.sync reaches.
    exp         exponentials over 16 per clock and SM.
    issue       warp instructions of the main loop and around it (counted in SASS) over 4 per clock and SM.
    tail        factor for the last, partly filled wave of blocks.
`floor` is the largest of the five times the tail: nothing overlaps better than that. `predicted` is what a measurement
is compared with: tensor + max(exp, issue), since within a warp the products and the softmax between them take turns,
but no less than dram and l2, and START for each kernel. A check on plausibility: for the context kernel, which is a
FlashAttention-2, it comes to 29 % of an H200's published rate at B = 128; FlashAttention-2 itself was reported at 35 %
on an H100 (arXiv 2407.08608, abstract). With one block of four warps per SM, as at B = 1, latencies stay visible that
the model does not have: there it is optimistic.
"""

from dataclasses import dataclass, replace
from math import ceil

from benchmarks.gpu.architectures import Gpu, occupancy
from benchmarks.gpu.compile import Kernel
from benchmarks.gpu.launches import TILE, dynamic_shared, threads
from benchmarks.gpu.sass import Code

LENGTH, WIDTH, HEADS, ALIGNMENTS = 577, 768, 12, 100  # tokens with the class token, C, H, T of the base model
HEAD = WIDTH // HEADS
BATCHES = (1, 8, 32, 128)
HALF, FLOAT = 2, 4  # bytes
START = 2e-6  # assumption: seconds to start and drain a kernel in a stream
TURN = 400  # assumption: clocks of a dependent turn of the threshold loop: a load from L2, two exponentials, additions
RANK_TURN = 9 / 4  # warp instructions of one comparison in rank_kernel: a load, four compares, four additions for four
MANY_BLOCKS = 256  # kManyBlocks of tensor_core.cu
# Eager torch moves this many bytes a score: product 2, mask 4, to float32 6, softmax 8, to float16 6, product with the
# values 2, maximum over heads 4 and a twelfth of 8.
EAGER_BYTES = 32 + 8 / HEADS


@dataclass(frozen=True)
class Former:
    """statistics_kernel<fp16, 64, M> while it took an exponential for every head, and the class token too."""

    registers: int
    instructions: int  # of a turn of the main loop
    exp: int
    once: int


# Compiled by nvcc 13.0.88 from the last sources that had it. By SM and M.
FORMER = {
    (89, 1): Former(166, 326, 32, 634),
    (89, 2): Former(252, 617, 64, 939),
    (90, 1): Former(184, 334, 32, 627),
    (90, 2): Former(248, 633, 64, 960),
}


@dataclass(frozen=True)
class Cost:
    """Work of one kernel, and its time on one GPU in seconds."""

    kernel: str
    blocks: int
    dram_bytes: float
    l2_bytes: float
    flop: float
    exponentials: float
    warp_instructions: float
    dram: float
    l2: float
    tensor: float
    exp: float
    issue: float
    tail: float
    serial: float  # of the longest chain of dependent steps in a block
    floor: float
    predicted: float


def tail_factor(blocks: int, multiprocessors: int, resident: int) -> float:
    """Time of `blocks` equal blocks over their time on evenly filled SMs, each holding `resident` of them at a time."""
    waves, left = divmod(blocks, multiprocessors * resident)
    return (waves + ceil(left / multiprocessors) / resident) / (blocks / (multiprocessors * resident))


def _cost(
    gpu: Gpu,
    kernel: Kernel,
    blocks: int,
    *,
    dram: float,
    l2: float = 0.0,
    flop: float = 0.0,
    exponentials: float = 0.0,
    instructions: float = 0.0,
    serial: float = 0.0,
) -> Cost:
    shared = kernel.static_shared + dynamic_shared(kernel)
    resident = max(occupancy(gpu.sm, kernel.registers, shared, threads(kernel)).blocks, 1)
    tail = tail_factor(blocks, gpu.multiprocessors, resident)
    times = {
        "dram": dram / gpu.dram,
        "l2": l2 / gpu.l2,
        "tensor": flop / (gpu.tensor * gpu.mma_share),
        "exp": exponentials / gpu.exponentials,
        "issue": instructions / gpu.issue,
    }
    busy = tail * (times["tensor"] + max(times["exp"], times["issue"]))
    return Cost(
        kernel.label,
        blocks,
        dram,
        l2,
        flop,
        exponentials,
        instructions,
        **times,
        tail=tail,
        serial=serial,
        floor=max(times["dram"], tail * max(times[name] for name in ("l2", "tensor", "exp", "issue")), serial),
        predicted=START + max(times["dram"], times["l2"], busy, serial),
    )


def query_tiles(batch: int, sm: int) -> int:
    """Groups of 64 queries that a block of the tensor-core path has at base size: 1 or 2."""
    return 2 if sm >= 80 and batch * HEADS * ceil(LENGTH / (2 * TILE)) >= MANY_BLOCKS else 1


def _find(kernels: list[Kernel], name: str, dtype: str = "", parameters: tuple[int, ...] = ()) -> Kernel:
    wanted = (name, dtype, parameters)
    return next(kernel for kernel in kernels if (kernel.name, kernel.dtype, kernel.parameters) == wanted)


def _main_loop(kernel: Kernel) -> tuple[dict[str, int], int]:
    """What a turn of it runs, and the instructions before and after it."""
    if kernel.code is None or kernel.code.loop is None or kernel.code.once is None:
        raise ValueError(f"{kernel.label} was compiled without nvdisasm, or has no loop of tensor-core instructions")
    return kernel.code.loop, kernel.code.once


def _context_cost(gpu: Gpu, kernel: Kernel, batch: int, many: int) -> Cost:
    tiles, wide = ceil(LENGTH / TILE), ceil(LENGTH / (TILE * many))
    rows, blocks = batch * LENGTH, batch * HEADS * wide
    turn, once = _main_loop(kernel)
    return _cost(
        gpu,
        kernel,
        blocks,
        dram=rows * (3 * WIDTH * HALF + FLOAT) + rows * (WIDTH * HALF + 4 * HEADS * FLOAT),
        l2=batch * HEADS * (wide * 2 * LENGTH + LENGTH) * HEAD * HALF,
        flop=2 * 2 * blocks * tiles * many * TILE * TILE * HEAD,
        exponentials=blocks * tiles * 4 * turn["exp"] * 32,
        instructions=blocks * 4 * (tiles * turn["instructions"] + once),
    )


def _statistics_cost(gpu: Gpu, kernel: Kernel, batch: int, many: int, tokens: int, groups: int) -> Cost:
    """Of `tokens` queries and keys each, in so many groups of 64 queries."""
    tiles, wide = ceil(tokens / TILE), ceil(tokens / (TILE * many))
    rows, blocks = batch * LENGTH, batch * tiles * wide
    turn, once = _main_loop(kernel)
    query_key = 2 * rows * WIDTH * HALF
    again = query_key if query_key > gpu.l2_size else 0
    turns = batch * tiles * groups / many * HEADS * 4  # of warps
    in_the_end = 0 if turn["exp"] else batch * tiles * groups * TILE * TILE
    return _cost(
        gpu,
        kernel,
        blocks,
        dram=again + rows * HEADS * FLOAT * 2 + batch * tokens * ceil(tokens / TILE) * FLOAT,
        l2=batch * tiles * HEADS * (groups + wide) * TILE * HEAD * HALF,
        flop=2 * batch * tiles * groups * HEADS * TILE * TILE * HEAD,
        exponentials=turns * turn["exp"] * 32 + in_the_end,
        instructions=turns * turn["instructions"] + blocks * 4 * once,
    )


def former_statistics_cost(gpu: Gpu, kernels: list[Kernel], batch: int) -> Cost:
    """What statistics_kernel cost while it took an exponential for every head, by the same model."""
    many = query_tiles(batch, gpu.sm)
    former = FORMER[gpu.sm, many]
    kernel = _find(kernels, "statistics_kernel", "fp16", (HEAD, many))
    loop = {"instructions": former.instructions, "exp": former.exp, "hmma": 32 * many}
    code = Code(former.once + former.instructions, {}, loop, former.once)
    wide = ceil(LENGTH / (TILE * many))
    return _statistics_cost(
        gpu, replace(kernel, registers=former.registers, code=code), batch, many, LENGTH, wide * many
    )


def attention_costs(gpu: Gpu, kernels: list[Kernel], batch: int) -> list[Cost]:
    """The three kernels of AlignedAttention, fp16."""
    many, body = query_tiles(batch, gpu.sm), LENGTH - 1
    context = _find(kernels, "context_kernel", "fp16", (HEAD, many))
    statistics = _find(kernels, "statistics_kernel", "fp16", (HEAD, many))
    partials = batch * body * ceil(body / TILE) * FLOAT
    return [
        _context_cost(gpu, context, batch, many),
        _statistics_cost(gpu, statistics, batch, many, body, ceil(body / TILE)),
        _cost(
            gpu,
            _find(kernels, "finish_kernel"),
            batch * ceil(body / 128),
            dram=partials + batch * LENGTH * (2 * HEADS + 2) * FLOAT,
        ),
    ]


def context_tiles(peeled: bool) -> int:
    """Tiles of 64 x 64 that the context kernel multiplies for a head, with the class token among the others or not."""
    return ceil((LENGTH - peeled) / TILE) ** 2


def compact_bytes(batch: int, kept: int) -> float:
    """Minimum bytes that TokenCompact moves: every input and output once; `kept` tokens stay of each sample."""
    rows, body = batch * LENGTH, batch * (LENGTH - 1)
    read = rows * (WIDTH * HALF + 2 * FLOAT) + body * (ALIGNMENTS + 2) * FLOAT
    return read + batch * (kept + 2) * (WIDTH * HALF + 2 * FLOAT)


def compact_costs(gpu: Gpu, kernels: list[Kernel], batch: int) -> list[Cost]:
    """The six kernels of TokenCompact, fp16, where half of the tokens stay."""
    body = LENGTH - 1
    kept = body // 2
    tokens = batch * body
    alignment = tokens * ALIGNMENTS * FLOAT
    again = alignment if alignment > gpu.l2_size else 0
    tiles = ceil(ALIGNMENTS / 32)
    chunks = batch * ceil(body / 256)
    vectors = LENGTH * WIDTH * HALF // 16
    blocks = batch * (ceil(vectors / (256 * 4)) + ceil(WIDTH * HALF / 16 / 32))
    writes = compact_bytes(batch, kept) - alignment - tokens * 2 * FLOAT
    return [
        _cost(gpu, _find(kernels, "best_alignment_kernel"), batch * ceil(body / 8), dram=alignment + tokens * FLOAT),
        _cost(gpu, _find(kernels, "importance_kernel"), batch, dram=tokens * 4 * FLOAT),
        _cost(
            gpu,
            _find(kernels, "threshold_kernel"),
            batch * tiles,
            dram=again + tokens * FLOAT,
            l2=alignment,
            exponentials=2 * tokens * ALIGNMENTS,
            serial=body / 32 * TURN / gpu.clock,
        ),
        _cost(
            gpu,
            _find(kernels, "rank_kernel"),
            chunks,
            dram=tokens * 2 * FLOAT,
            instructions=chunks * 8 * body * RANK_TURN,
            serial=body * RANK_TURN * 2 / gpu.clock,  # two warps share a scheduler, whichever blocks there are
        ),
        _cost(gpu, _find(kernels, "plan_kernel"), batch, dram=tokens * 6 * FLOAT),
        _cost(gpu, _find(kernels, "write_kernel", "fp16"), blocks, dram=writes),
    ]


def sdpa_predictions(gpu: Gpu, kernels: list[Kernel], batch: int) -> dict[str, float]:
    """Seconds of F.scaled_dot_product_attention: as a FlashAttention-2 no better than our context kernel, and as a
    FlashAttention-3 or cuDNN that hides its exponentials behind wgmma at the published rate (Hopper only)."""
    context = attention_costs(gpu, kernels, batch)[0]
    predictions = {"like context_kernel": context.predicted}
    if gpu.mma_share < 1:
        hidden = max(context.flop / gpu.tensor, context.exp, context.dram)
        predictions["wgmma, perfect overlap"] = START + hidden
    return predictions


def eager_prediction(gpu: Gpu, batch: int) -> float:
    """Seconds of eager torch: its passes over [B, H, L, L] at memory bandwidth, and a start for each of 20 kernels."""
    return 20 * START + batch * HEADS * LENGTH**2 * EAGER_BYTES / gpu.dram


def one_pass_shape(batch: int, rows: int) -> dict[str, float]:
    """The other shape of the algorithm: a block owns `rows` queries, keeps whole rows of scores, and walks the heads.

    Returns:
        blocks; l2_bytes read for keys and values; scores_bytes and best_bytes of a block (float32 scores of one head
        and the running maximum over heads, for all keys); head_bytes (keys and values of one head, whole).
    """
    keys = ceil(LENGTH / TILE) * TILE
    blocks = batch * ceil(LENGTH / rows)
    return {
        "rows": rows,
        "blocks": blocks,
        "l2_bytes": blocks * HEADS * (2 * LENGTH + rows) * HEAD * HALF,
        "scores_bytes": rows * keys * FLOAT,
        "best_bytes": rows * keys * FLOAT,
        "head_bytes": 2 * keys * HEAD * HALF,
    }
