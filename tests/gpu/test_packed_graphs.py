"""A layer of the packed layout, captured once: replays follow the lengths of sequences, and the host never waits."""

import pytest
import torch
from torch import Tensor

from madtp.ops.kernels import KernelOps
from madtp.ops.library import load_library
from tests.helpers.gpu import gpu_only
from tests.helpers.kernel_calls import bits
from tests.helpers.native_build import build
from tests.helpers.packed_calls import attention_call, compact_call, varlen_call

HEADS, SIZE, ROWS, CAPACITY = 2, 32, 300, 250
LENGTHS = [(100, 60, 130), (7, 0, 200), (1, 290, 9)]


def inputs_of(lengths: tuple[int, ...], seed: int, device: str) -> list[Tensor]:
    """Of one layer: qkv, then what compaction needs beside it, then keys and their ends."""
    spare = ROWS - sum(lengths)
    qkv, mask, cu, _, _ = attention_call(lengths, HEADS, SIZE, seed, spare, torch.float16)
    compact = compact_call(lengths, seed, temperature=0.7, spare=spare, width=HEADS * SIZE)
    keys = [1 + length % 40 for length in lengths]
    _, key_value, _, cu_keys, _ = varlen_call(lengths, keys, HEADS, SIZE, seed)
    key_value = torch.cat([key_value, key_value.new_zeros(130 - len(key_value), key_value.shape[1])])
    given = [qkv, mask, compact[2], compact[5].abs(), cu, compact[7], compact[8], key_value.half(), cu_keys]
    return [tensor.to(device) for tensor in given]


def layer(ops: KernelOps, inputs: list[Tensor]) -> list[Tensor]:
    qkv, mask, ids, alignment, cu, temperature, least, key_value, cu_keys = inputs
    context, column, of_class = ops.packed_aligned_attention(qkv, mask, cu, 0, HEADS)
    compacted = ops.packed_token_compact(
        context, mask, ids, column, of_class, alignment, cu, temperature, least, CAPACITY, 1, 3
    )
    return [*compacted, ops.varlen_attention(compacted[0], key_value, compacted[3], cu_keys, HEADS)]


def results(outputs: list[Tensor]) -> list[Tensor]:
    """What the sequences have of them."""
    rows = int(outputs[3][-1])
    return [bits(part[:rows] if len(part) == CAPACITY else part).clone() for part in (*outputs[:4], outputs[5])] + [
        outputs[4].reshape(1).clone()
    ]


def ops_of(device: str) -> KernelOps:
    return KernelOps(load_library(build().kernels if device == "cpu" else None))


GPU = pytest.param("cuda", marks=gpu_only)


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_the_layer_prunes(device: str) -> None:
    outputs = layer(ops_of(device), inputs_of(LENGTHS[0], 0, device))
    assert 20 < int(outputs[4]) < sum(LENGTHS[0])
    assert not outputs[5][: int(outputs[3][-1])].isnan().any()


@pytest.mark.parametrize("device", [GPU])
def test_replays_follow_the_lengths_of_sequences(device: str) -> None:
    ops, inputs = ops_of(device), inputs_of(LENGTHS[0], 0, device)
    layer(ops, inputs)  # loads the kernels
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = layer(ops, inputs)
    for seed, lengths in enumerate(LENGTHS):
        others = inputs_of(lengths, seed, device)
        expected = results(layer(ops, others))
        for mine, theirs in zip(inputs, others, strict=True):
            mine.copy_(theirs)
        graph.replay()
        torch.cuda.synchronize()
        assert all(map(torch.equal, results(outputs), expected)), lengths


@pytest.mark.parametrize("device", [GPU])
def test_a_layer_waits_for_nothing(device: str) -> None:
    ops, inputs = ops_of(device), inputs_of(LENGTHS[0], 0, device)
    layer(ops, inputs)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(ops, inputs)
        with pytest.raises(RuntimeError, match="synchroniz"):
            inputs[0].sum().item()  # what the mode is there to notice
    finally:
        torch.cuda.set_sync_debug_mode("default")
