"""The ops of ONNX Runtime's CUDA provider, their kernels on the host: ONNX Runtime itself drives them as it would on a
GPU, with the stand-in's memory for the device's."""

import ctypes
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.helpers.kernel_calls import attention_inputs, check_attention, check_compact, compact_call, compact_inputs
from tests.helpers.native_build import build, cuda_library
from tests.helpers.onnxruntime_ops import OnnxRuntimeOps

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(scope="module")
def ops() -> OnnxRuntimeOps:
    return OnnxRuntimeOps(build().cuda_ops)


@pytest.fixture
def device() -> Iterator[ctypes.CDLL]:
    """The stand-in for the device; it holds no memory but what a call forgot."""
    library = ctypes.CDLL(str(build().kernels))
    library.simt_most_memory.argtypes = [ctypes.c_size_t]
    held = library.simt_held_memory()
    yield library
    library.simt_most_memory(2**64 - 1)
    assert library.simt_held_memory() == held


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_is_the_references(ops: OnnxRuntimeOps, device: ctypes.CDLL, dtype: torch.dtype) -> None:
    check_attention(ops, *attention_inputs(2, 37, 2, 32, dtype, seed=1))


def test_causal_attention_is_the_references(ops: OnnxRuntimeOps) -> None:
    qkv, mask, _, heads = attention_inputs(1, 9, 2, 8, torch.float32, seed=2)
    check_attention(ops, qkv, mask, 1, heads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tau", [0.7, 0.0])
def test_compaction_is_the_references(ops: OnnxRuntimeOps, device: ctypes.CDLL, dtype: torch.dtype, tau: float) -> None:
    got = check_compact(ops, tuple(compact_call(2, 41, 3, dtype, tau, width=16)))
    assert (got.count < 42) == (tau > 0)


def test_a_margin_keeps_more(ops: OnnxRuntimeOps) -> None:
    counts = [check_compact(ops, tuple(compact_call(1, 60, 5, torch.float32, margin=m))).count for m in (0.0, 0.3)]
    assert counts[0] < counts[1]


def test_scores_that_are_not_finite_keep_all(ops: OnnxRuntimeOps) -> None:
    inputs = compact_call(1, 20, 4, torch.float32)
    inputs[3][0, 7] = torch.nan
    assert check_compact(ops, tuple(inputs)).count == 21


def test_no_samples_are_no_work(ops: OnnxRuntimeOps, device: ctypes.CDLL) -> None:
    none = attention_inputs(1, 5, 1, 8, torch.float32, seed=0)
    context, column, _ = ops.aligned_attention(none[0][:0], none[1][:0], *none[2:])
    assert (context.shape, column.shape) == ((0, 5, 8), (0, 4))
    inputs = [tensor[:0] for tensor in compact_inputs(1, 8, 0).values()]
    compacted = ops.token_compact(*inputs, torch.tensor(0.7), torch.tensor(1), 0)
    assert (compacted.tokens.shape, compacted.count) == ((0, 9, 8), 9)


def refused(ops: OnnxRuntimeOps, *inputs: object) -> str:
    """What ONNX Runtime says of an AlignedAttention call (4 inputs) or a TokenCompact call."""
    with pytest.raises(Exception, match=r"AlignedAttention|TokenCompact") as error:
        (ops.aligned_attention if len(inputs) == 4 else ops.token_compact)(*inputs)
    return str(error.value)


@pytest.mark.parametrize(
    ("qkv", "mask", "heads", "words"),
    [
        ((1, 5, 16), (1, 5), 1, "qkv of AlignedAttention is [1, 5, 16]; it has to be [samples, tokens, 3 * width]"),
        ((1, 5, 24), (1, 4), 1, "key_mask of AlignedAttention is [1, 4]; qkv asks for [1, 5]"),
        ((1, 5, 3 * 12), (1, 5), 1, "widths that are multiples of 8"),
        ((1, 2, 3 * 264), (1, 2), 1, "heads of at most 256 columns"),
        ((65536, 1, 24), (65536, 1), 1, "at most 65535 samples"),
    ],
)
def test_attention_of_wrong_sizes_is_refused_in_a_sentence(
    ops: OnnxRuntimeOps, qkv: tuple[int, ...], mask: tuple[int, ...], heads: int, words: str
) -> None:
    assert words in refused(ops, torch.zeros(qkv), torch.zeros(mask), 0, heads)


@pytest.mark.parametrize(
    ("index", "value", "words"),
    [
        (0, torch.zeros(1, 9, 12), "widths that are multiples of 8"),
        (3, torch.zeros(1, 9), "column_score of TokenCompact is [1, 9]; its tokens ask for [1, 8]"),
        (5, torch.zeros(1, 8, 0), "alignment of TokenCompact is [1, 8, 0]"),
        (6, torch.zeros(0), "temperature of TokenCompact is [0]; it has to be one number"),
        (8, -1, "layer of TokenCompact is -1"),
        (9, -0.5, "keep_margin of TokenCompact is -0.5"),
    ],
)
def test_compaction_of_wrong_inputs_is_refused_in_a_sentence(
    ops: OnnxRuntimeOps, index: int, value: Tensor | float, words: str
) -> None:
    inputs = compact_call(1, 8, 0, torch.float32)
    inputs[index] = value
    assert words in refused(ops, *inputs)


def test_short_memory_is_a_sentence_and_the_next_call_right(ops: OnnxRuntimeOps, device: ctypes.CDLL) -> None:
    attention, compaction = attention_inputs(1, 9, 1, 8, DTYPES[0], seed=3), compact_call(1, 60, 3, DTYPES[0], width=64)
    device.simt_most_memory(4)
    assert "the GPU is out of memory" in refused(ops, *attention)
    device.simt_most_memory(8192)  # enough for the workspace, and not for the tokens
    assert "the GPU is out of memory" in refused(ops, *compaction)
    device.simt_most_memory(2**64 - 1)
    check_attention(ops, *attention)
    check_compact(ops, tuple(compaction))


def test_a_launch_that_is_refused_is_a_sentence(ops: OnnxRuntimeOps, device: ctypes.CDLL) -> None:
    wide = attention_inputs(1, 20, 1, 128, torch.float16, seed=3)  # takes more shared memory than this device has
    device.simt_allow_at_most(48 * 1024)
    try:
        assert "AlignedAttention failed: " in refused(ops, *wide)
    finally:
        device.simt_allow_at_most(99 * 1024)
    check_attention(ops, *wide)


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_ops_of_a_gpu_leave_sessions_on_the_cpu_right(dtype: torch.dtype) -> None:
    """The library as it is shipped: what has a kernel of a GPU alone runs on the CPU's, in float32 between casts."""
    library = cuda_library("onnxruntime")
    if library is None:
        pytest.skip("the library is not built here (./build.sh plugins)")
    shipped = OnnxRuntimeOps(library)
    check_attention(shipped, *attention_inputs(2, 37, 2, 32, dtype, seed=1))
    check_compact(shipped, tuple(compact_call(2, 41, 3, dtype, width=16)))
