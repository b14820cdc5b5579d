"""The plugins of the packed ops run as their kernels do, on a host build of both."""

from typing import Any

import pytest
import torch
from torch import Tensor

from madtp.ops.spec import INCOMING, PACKED_ATTENTION, PACKED_COMPACT, PACKED_OPS, VARLEN_ATTENTION, OpSpec
from tests.helpers import harness
from tests.helpers.harness import PluginLibrary
from tests.helpers.kernel_calls import bits
from tests.helpers.kernels import Kernels
from tests.helpers.native_build import build
from tests.helpers.packed_calls import attention_call, compact_call, varlen_call
from tests.helpers.plugin_case import CAPACITY, HEADS, C, Case, M, Q, R, S, T, the_message

LENGTHS, KEYS = (15, 10, 0, 12), (10, 1, 9, 10)  # of queries and compacted; three rows are spare
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def host() -> PluginLibrary:
    return PluginLibrary(build().plugins)


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels(build().kernels, "cpu")


def inputs_of(spec: OpSpec, dtype: torch.dtype) -> list[Any]:
    """The tensors of a call, in the sizes of `plugin_case`."""
    spare = R - sum(LENGTHS)
    if spec is PACKED_ATTENTION:
        return list(attention_call(LENGTHS, HEADS, C // HEADS, 0, spare, dtype)[:3])
    if spec is VARLEN_ATTENTION:
        query, key_value, *ends = varlen_call(LENGTHS, KEYS, HEADS, C // HEADS, 0, spare)[:4]
        assert len(key_value) == M + spare
        key_value = key_value[:M]
        return [query.to(dtype), key_value.to(dtype), *ends]
    call = list(compact_call(LENGTHS, 0, temperature=0.7, group=S // Q, spare=spare, width=C, entries=T)[:9])
    return [call[0].to(dtype), *call[1:]]


def room_of(spec: OpSpec, dtype: torch.dtype) -> list[Tensor]:
    known = {"R": R, "C": C, "n": CAPACITY, "S+1": S + 1}
    types = {"T": dtype, "float32": torch.float32, "int32": torch.int32, "int64": torch.int64}
    sizes = [([known[symbol] for symbol in entry.dims], types[entry.dtype]) for entry in spec.outputs]
    raw = [torch.full((torch.Size(size).numel() * kind.itemsize,), 0xFF, dtype=torch.uint8) for size, kind in sizes]
    return [memory.view(kind).view(size) for memory, (size, kind) in zip(raw, sizes, strict=True)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", PACKED_OPS, ids=lambda spec: spec.onnx_name)
def test_a_plugin_gives_the_bits_of_the_kernels(
    host: PluginLibrary, kernels: Kernels, spec: OpSpec, dtype: torch.dtype
) -> None:
    case, inputs, outputs = Case(spec, host), inputs_of(spec, dtype), room_of(spec, dtype)
    plugin = case.create().clone(attach=True)
    room = plugin.workspace(case.tensors(harness.TYPE_OF[dtype]), *case.counts)
    assert plugin.enqueue(inputs, outputs, torch.empty(max(room, 16), dtype=torch.uint8)) == 0, host.messages()
    if spec is PACKED_ATTENTION:
        expected = kernels.packed_aligned_attention(*inputs, 0, HEADS)
    elif spec is VARLEN_ATTENTION:
        expected = (kernels.varlen_attention(*inputs, HEADS),)
    else:
        *expected, count = kernels.packed_token_compact(*inputs, group=S // Q, capacity=CAPACITY)
        assert count == int(outputs.pop()) < CAPACITY
    for got, wanted in zip(outputs, expected, strict=True):
        assert torch.equal(bits(got), bits(wanted))


def test_compaction_has_room_for_what_comes_in(host: PluginLibrary, kernels: Kernels) -> None:
    case, inputs = Case(PACKED_COMPACT, host), inputs_of(PACKED_COMPACT, torch.float32)
    plugin = case.create(capacity=INCOMING).clone(attach=True)
    assert CAPACITY < R
    *expected, count = kernels.packed_token_compact(*inputs, group=S // Q, capacity=R)
    outputs = [torch.full_like(column, -1) for column in expected] + [torch.zeros((), dtype=torch.int64)]
    assert plugin.enqueue(inputs, outputs, torch.empty(1 << 20, dtype=torch.uint8)) == 0, host.messages()
    assert int(outputs.pop()) == count
    for got, wanted in zip(outputs, expected, strict=True):
        rows = count if len(got) == R else len(got)
        assert torch.equal(bits(got[:rows].contiguous()), bits(wanted[:rows].contiguous()))


@pytest.mark.parametrize("spec", PACKED_OPS, ids=lambda spec: spec.onnx_name)
def test_sizes_that_do_not_fit_are_reported_at_enqueue(host: PluginLibrary, spec: OpSpec) -> None:
    case, good, outputs = Case(spec, host), inputs_of(spec, torch.float32), room_of(spec, torch.float32)
    plugin, workspace = case.create(), torch.empty(1 << 20, dtype=torch.uint8)
    host.messages()
    wrong = [[good[0][:0], *good[1:]], [good[0].to(torch.int64), *good[1:]], [good[0][:, :12].contiguous(), *good[1:]]]
    if spec is PACKED_COMPACT:
        wrong.append([*good[:8], good[8][:1]])  # of fewer requests than there are sequences for
    if spec is VARLEN_ATTENTION:
        wrong.append([*good[:3], good[3][:-1]])
    for inputs in wrong:
        assert plugin.enqueue(inputs, outputs, workspace) != 0
        assert f"invalid argument, for {len(inputs[0])} rows" in the_message(host, case.name)
    assert all((bits(tensor.reshape(-1)) == 0xFF).all() for tensor in outputs)
