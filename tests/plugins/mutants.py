"""Kernels with one barrier taken out: `python -m tests.plugins.mutants`. One line for each `__syncthreads()` of each
kernel.

Every barrier in turn is skipped on the host build, in a process of its own, under some orders of threads. That is
noticed when a result changes in any bit or the stand-in aborts. A survivor is a barrier that is not needed, or that the
inputs here do not need.
"""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tests.helpers.kernel_calls import compact_inputs
from tests.helpers.kernels import Kernels
from tests.helpers.native_build import build
from tests.helpers.packed_calls import attention_call
from tests.helpers.paths import ROOT

SEEDS = 6
Run = Callable[[Kernels], tuple[Tensor, ...]]


def _attention(length: int, heads: int, size: int, dtype: torch.dtype, causal: int = 0) -> Run:
    generator = torch.Generator().manual_seed(length)
    qkv = torch.randn(1, length, 3 * heads * size, generator=generator).to(dtype)
    mask = -3.0 * torch.rand(1, length, generator=generator)
    return lambda kernels: kernels.aligned_attention(qkv, mask, causal, heads)


def _packed_attention(length: int, size: int, dtype: torch.dtype) -> Run:
    call = attention_call([length], 1, size, 0, 0, dtype)
    return lambda kernels: kernels.packed_aligned_attention(*call)


def _compact(batch: int, tokens: int) -> Run:
    inputs = list(compact_inputs(batch, tokens, 1, width=264, entries=33).values())
    inputs[5] = inputs[5].abs()
    scalars = (torch.tensor(0.7), torch.tensor(1), 2)

    def run(kernels: Kernels) -> tuple[Tensor, ...]:
        result = kernels.token_compact(*inputs, *scalars)
        assert result.count < tokens
        return result.tokens, result.mask, result.ids

    return run


def runs() -> list[Run]:
    """Small inputs with which every barrier matters: several tiles, heads, rounds and parts."""
    return [
        _attention(130, 2, 40, torch.float32),
        _attention(70, 1, 136, torch.float32, causal=1),
        _attention(200, 3, 32, torch.float16),
        _compact(2, 600),
        _packed_attention(1030, 8, torch.float32),  # a block takes more than one group of queries
        _packed_attention(1030, 32, torch.float16),
    ]


def sites_in_sources() -> set[str]:
    """file:line of every barrier in the kernels."""
    found = set()
    for path in sorted((ROOT / "plugins").glob("*/*.[ch]*")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(r"^[^/]*__syncthreads\(\)", line):
                found.add(f"{path.name}:{number}")
    return found


def sites_passed(kernels: Kernels, run: Run) -> set[str]:
    """file:line of every barrier that a run passes."""
    kernels.library.simt_forget_barriers()
    run(kernels)
    return {line.split()[0] for line in kernels.library.simt_barriers().decode().splitlines()}


def is_noticed(kernels: Kernels, site: str, checks: list[tuple[Run, tuple[Tensor, ...]]]) -> bool:
    """Whether skipping this barrier changes any result or aborts; tried in a fork of this process."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        file, line = site.split(":")
        kernels.library.simt_skip_barrier(file.encode(), int(line))
        for seed in range(SEEDS):
            for run, expected in checks:
                kernels.seed(seed)
                try:
                    same = all(map(_same_bits, run(kernels), expected))
                except AssertionError:
                    same = False
                if not same:
                    os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def survivors(library: Path, report: Callable[[str], None] = lambda line: None) -> tuple[set[str], set[str]]:
    """(every barrier that some input passes, those of them that nobody misses)."""
    kernels = Kernels(library, "cpu")
    results = [(run, run(kernels), sites_passed(kernels, run)) for run in runs()]
    sites, survived = set.union(*(passed for *_, passed in results)), set()
    for site in sorted(sites):
        checks = [(run, expected) for run, expected, passed in results if site in passed]
        if not is_noticed(kernels, site, checks):
            survived.add(site)
        report(f"{'SURVIVED' if site in survived else 'noticed'}  {site}")
    return sites, survived


if __name__ == "__main__":
    torch.set_num_threads(1)
    sites, survived = survivors(build().kernels, lambda line: sys.stdout.write(line + "\n"))
    if never := sites_in_sources() - sites:
        sys.stdout.write(f"never passed: {sorted(never)}\n")
    sys.exit(bool(survived or never))
