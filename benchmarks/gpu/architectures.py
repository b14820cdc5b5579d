"""Limits of a multiprocessor (SM) for each compute capability, published rates of some GPUs, and theoretical occupancy.

Sources:
    [guide] CUDA C++ Programming Guide 13.0, "Compute Capabilities", table "Technical Specifications per Compute
        Capability"; results per clock and SM from "Arithmetic Instructions", table of throughputs.
    [occ] cuda_occupancy.h of CUDA 13.0: granularity of allocation, blocks per SM, sizes of shared memory.
    [h200] NVIDIA H200 datasheet (SXM): 4.8 TB/s HBM3e, 1,979 TFLOPS FP16 with sparsity, half of it dense. Its L2 is not
        published; torch was seen to report 60 MB.
    [h100] NVIDIA H100 whitepaper and datasheet (SXM): 132 SMs, 4096 dense FP16 FLOP a clock and SM; 989 TFLOPS is
        1.83 GHz. 3.35 TB/s HBM3, 50 MB of L2.
    [ada] NVIDIA Ada whitepaper, RTX 4090: 128 SMs, 2.52 GHz boost, 165.2 TFLOPS FP16 with FP32 accumulate, 1008 GB/s,
        72 MB of L2.
    [mma] Luo et al., arXiv 2402.13499: `mma.sync` reaches about 62 % of the published rate on Hopper.
"""

from dataclasses import dataclass

WARP = 32
REGISTERS = 65536  # of an SM, all capabilities here [guide]
REGISTER_UNIT = 256  # registers are given to warps in units of this [occ]
SCHEDULERS = 4  # of an SM; each issues one warp instruction a clock [guide]
EXP_PER_CLOCK = 16  # exponentials a clock and SM, all capabilities here [guide]


@dataclass(frozen=True)
class Limits:
    """Resources of one SM. Sizes in bytes."""

    warps: int
    blocks: int
    shared: int  # of an SM
    shared_block: int  # most that one block may ask for
    shared_reserved: int  # taken by the system for each block
    shared_unit: int  # shared memory is given in units of this


KB = 1024
LIMITS = {
    75: Limits(warps=32, blocks=16, shared=64 * KB, shared_block=64 * KB, shared_reserved=0, shared_unit=256),
    80: Limits(warps=64, blocks=32, shared=164 * KB, shared_block=163 * KB, shared_reserved=KB, shared_unit=128),
    86: Limits(warps=48, blocks=16, shared=100 * KB, shared_block=99 * KB, shared_reserved=KB, shared_unit=128),
    89: Limits(warps=48, blocks=24, shared=100 * KB, shared_block=99 * KB, shared_reserved=KB, shared_unit=128),
    90: Limits(warps=64, blocks=32, shared=228 * KB, shared_block=227 * KB, shared_reserved=KB, shared_unit=128),
    120: Limits(warps=48, blocks=24, shared=100 * KB, shared_block=99 * KB, shared_reserved=KB, shared_unit=128),
}


@dataclass(frozen=True)
class Occupancy:
    """Blocks and warps that are resident on an SM; zero blocks if the kernel cannot start at all."""

    blocks: int
    warps: int
    limited_by: str  # registers, shared memory, warps or blocks

    @property
    def can_start(self) -> bool:
        """Whether a block fits."""
        return self.blocks > 0


def round_up(value: int, unit: int) -> int:
    """Return the smallest multiple of `unit` that is not below `value`."""
    return -(-value // unit) * unit


def occupancy(sm: int, registers: int, shared: int, threads: int) -> Occupancy:
    """Theoretical occupancy, computed as cuda_occupancy.h does.

    Args:
        sm: compute capability without its dot.
        registers: per thread.
        shared: static and dynamic shared memory per block, bytes.
        threads: per block.
    """
    limits = LIMITS[sm]
    warps = -(-threads // WARP)
    registers_warp = round_up(max(registers, 1) * WARP, REGISTER_UNIT)
    # Each of the four schedulers has a quarter of the registers and takes whole warps.
    warps_by_registers = REGISTERS // SCHEDULERS // registers_warp * SCHEDULERS
    taken = round_up(shared + limits.shared_reserved, limits.shared_unit)
    possible = {
        "registers": warps_by_registers // warps,
        "shared memory": limits.shared // taken if taken else limits.blocks,
        "warps": limits.warps // warps,
        "blocks": limits.blocks,
    }
    if shared > limits.shared_block:
        possible["shared memory"] = 0
    limited_by = min(possible, key=lambda name: possible[name])
    blocks = possible[limited_by]
    return Occupancy(blocks, blocks * warps, limited_by)


@dataclass(frozen=True)
class Gpu:
    """Published rates of a GPU, per second; assumptions are marked as such."""

    name: str
    device: str  # what its name ends with, as the driver gives it
    sm: int
    multiprocessors: int
    clock: float  # Hz, boost, of the published rates
    dram: float  # bytes
    tensor: float  # dense FP16 FLOP with FP32 accumulate
    mma_share: float  # assumption: share of `tensor` that mma.sync can reach
    l2: float  # assumption: bytes read from L2; not published
    l2_size: int  # bytes

    @property
    def exponentials(self) -> float:
        """Exponentials per second."""
        return self.multiprocessors * EXP_PER_CLOCK * self.clock

    @property
    def issue(self) -> float:
        """Warp instructions per second."""
        return self.multiprocessors * SCHEDULERS * self.clock


GPUS = {
    "H100": Gpu("H100", "H100 80GB HBM3", 90, 132, 1.83e9, 3.35e12, 989e12, 0.62, 5.5e12, 50_000_000),
    "H200": Gpu("H200", "H200", 90, 132, 1.83e9, 4.8e12, 989e12, 0.62, 5.5e12, 60_000_000),
    "RTX 4090": Gpu("RTX 4090", "RTX 4090", 89, 128, 2.52e9, 1.008e12, 165.2e12, 1.0, 5.0e12, 72_000_000),
}


def known_gpu(device_name: str) -> Gpu | None:
    """Return the entry of GPUS for a device's name as the driver reports it."""
    return next((gpu for gpu in GPUS.values() if device_name.endswith(gpu.device)), None)
