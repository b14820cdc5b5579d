"""Launch configurations: threads and dynamic shared memory of each kernel, and which kernels can be launched.

Mirrors the shared structs of plugins/**; `tests/benchmarks/test_static.py` compiles a check of these numbers against
the structs.
"""

from benchmarks.gpu.compile import Kernel

TILE = 64
FLOAT = 4
_SIZE = {"fp16": 2, "bf16": 2, "fp32": 4, "": 4}
_SMALL = {"importance_kernel": 32, "threshold_kernel": 12288, "rank_kernel": 1056, "plan_kernel": 1120}
_PACKED_PLAN = 160
_FORMS = ("packed_", "varlen_")  # beginnings of names: such a kernel does the work of the one without


def work(kernel: Kernel) -> str:
    """The kernel of the dynamic layout that does the same work."""
    form = next((form for form in _FORMS if kernel.name.startswith(form)), "")
    return kernel.name.removeprefix(form)


def threads(kernel: Kernel) -> int:
    """Threads per block."""
    name = work(kernel)
    if name == "threshold_kernel":
        return 1024
    return 128 if name in ("context_kernel", "statistics_kernel", "finish_kernel") else 256


def dynamic_shared(kernel: Kernel) -> int:
    """Bytes of dynamic shared memory per block."""
    size, name = _SIZE[kernel.dtype], work(kernel)
    if name == "context_kernel":  # ContextShared: two stages of keys and values, two masks
        return 2 * 2 * TILE * kernel.parameters[0] * size + 2 * TILE * FLOAT
    if name == "statistics_kernel":  # StatisticsShared: two stages of queries and keys, a mask
        head, many = kernel.parameters
        return 2 * (many + 1) * TILE * head * size + TILE * FLOAT  # four warps' sums take the room of the stages
    operands = 2 * 32 * (TILE + 4) * FLOAT  # ScoreOperands of the plain path
    if name == "plain_context_kernel":
        return TILE * (TILE + 4) * FLOAT + max(operands, TILE * (TILE + 4) * FLOAT)
    if name == "plain_statistics_kernel":
        return max(operands, 16 * TILE * FLOAT)
    if name == "write_kernel":  # partial sums of eight groups of 32 lanes, a 16-byte vector each
        return FLOAT * 8 * (16 // size) * 32
    if kernel.name == "packed_plan_kernel":
        return _PACKED_PLAN
    return _SMALL.get(name, 0)


def launched(kernel: Kernel, sm: int) -> bool:
    """Whether the launchers ever start it there: no bfloat16 attention, no tiles or heads of 128 before 8.0."""
    if sm >= 80 or work(kernel) == "write_kernel":
        return True
    tensor_core = work(kernel) in ("context_kernel", "statistics_kernel")
    wide = tensor_core and (kernel.parameters[0] > 64 or kernel.parameters[1] > 1)
    return kernel.dtype != "bf16" and not wide
