"""The torch ops on the kernels (`madtp.ops.register_kernels`): here on their build for the host, as a GPU runs them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from madtp.errors import InputError
from madtp.ops.kernels import OPS, KernelOps, register_kernels
from madtp.ops.library import VARIABLE, KernelError, library_path, load_library
from madtp.ops.reference import ALIGNED_ATTENTION_OP, TOKEN_COMPACT_OP
from tests import golden
from tests.helpers import native_build
from tests.helpers.golden_runtimes import TorchRuntime
from tests.helpers.kernel_calls import attention_inputs, compact_call
from tests.helpers.kernels import check_accuracy
from tests.helpers.paths import golden_folders

ATTEND, COMPACT = torch.ops.madtp.aligned_attention, torch.ops.madtp.token_compact
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def ops() -> KernelOps:
    return KernelOps(load_library(native_build.build().kernels))


@pytest.fixture
def registered() -> Iterator[KernelOps]:
    """The host's kernels in the place of the reference, on CPU tensors."""
    ops = register_kernels(native_build.build().kernels, device="cpu")
    yield ops
    for op in OPS.values():
        op.register_kernel("cpu", op._init_fn)


def same(left: tuple[Any, ...], right: tuple[Any, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_registered_ops_run_the_kernels_and_give_dense_outputs(registered: KernelOps) -> None:
    qkv, mask, causal, heads = attention_inputs(2, 70, 2, 32, torch.float16, 0)
    attended = ATTEND(qkv, mask, causal, heads)
    assert same(attended, registered.aligned_attention(qkv, mask, causal, heads))
    inputs = compact_call(2, 40, 3, torch.float32)
    compacted = COMPACT(*inputs)
    assert same(compacted, registered.token_compact(*inputs))
    for tensor in (*attended, *compacted):
        assert tensor.is_contiguous()
    assert [tensor.shape[1] for tensor in compacted[:3]] == [int(compacted[3])] * 3
    assert 2 < int(compacted[3]) < 41


def test_without_registration_the_reference_runs(ops: KernelOps) -> None:
    qkv, mask, causal, heads = attention_inputs(2, 70, 2, 32, torch.float32, 0)
    results = ATTEND(qkv, mask, causal, heads)
    assert same(results, ALIGNED_ATTENTION_OP._init_fn(qkv, mask, causal, heads))
    assert not same(results, ops.aligned_attention(qkv, mask, causal, heads))  # as near as float32, not the same bits


@pytest.mark.parametrize("folder", golden_folders(), ids=lambda folder: f"{folder.parent.name}-{folder.name}")
@pytest.mark.usefixtures("registered")
def test_recorded_cases_on_the_kernels(folder: Path) -> None:
    """Every task as on a GPU: outputs within 1e-4, token counts and kept sets as recorded."""
    if folder.name == "base":
        pytest.skip("full-size layers take the emulated kernels minutes; tests/plugins/test_kernels.py runs one case's")
    model = golden.load_model(folder)
    for case in golden.load_cases(folder, model.config.image_size):
        verdict = golden.compare(case, golden.replay(model.config, TorchRuntime(model), case))
        assert not verdict.mismatches, (case.name, verdict.mismatches)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.usefixtures("registered")
def test_sixteen_bit_models_run_on_the_kernels(dtype: torch.dtype) -> None:
    folder = golden_folders("nlvr")[0]
    model = golden.load_model(folder).to(dtype)
    case = next(case for case in golden.load_cases(folder, model.config.image_size) if "prune" in case.name)
    with torch.no_grad():
        output = model(**case.inputs, temperature=case.temperature)
    torch.testing.assert_close(output.logits, case.recorded.outputs["logits"], rtol=0.1, atol=0.1)
    assert output.vision_token_counts.min() < case.entry["trace"][0]["tokens_in"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_source_ids_of_one_row_and_views_off_the_boundary(ops: KernelOps, dtype: torch.dtype) -> None:
    """Source ids enter the first layer with stride 0; what a slice hands over may begin anywhere."""
    inputs = compact_call(3, 40, 3, dtype)
    expected = ops.token_compact(*inputs)
    ids = torch.arange(41, dtype=torch.int32).expand(3, -1)
    assert ids.stride(0) == 0

    def shifted(tensor: Tensor) -> Tensor:
        room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
        room[1:] = tensor.flatten()
        view = room[1:].view(tensor.shape)
        assert view.data_ptr() % 16 != 0
        return view

    views = [shifted(tensor) for tensor in inputs[:6]]
    assert same(ops.token_compact(*views[:2], ids, *views[3:], *inputs[6:]), expected)
    qkv, mask, causal, heads = attention_inputs(2, 70, 2, 32, dtype, 0)
    attended = ops.aligned_attention(qkv, mask, causal, heads)
    wide = torch.cat([qkv, qkv], dim=2)[..., : qkv.shape[2]]
    assert not wide.is_contiguous()
    assert same(ops.aligned_attention(wide, shifted(mask), causal, heads), attended)
    assert same(ops.aligned_attention(shifted(qkv), mask, causal, heads), attended)


def test_float64_runs_the_reference(ops: KernelOps) -> None:
    qkv, mask, causal, heads = attention_inputs(2, 20, 2, 8, torch.float32, 0)
    exact = ops.aligned_attention(qkv.double(), mask, causal, heads)
    assert exact[0].dtype == torch.float64
    for got, truth in zip(ops.aligned_attention(qkv, mask, causal, heads), exact, strict=True):
        check_accuracy(got, got, truth, torch.float32)
    inputs = compact_call(2, 40, 3, torch.float32)
    wide = ops.token_compact(*(tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs[:8]), 3)
    assert wide[0].dtype == torch.float64


@pytest.mark.usefixtures("registered")
def test_gradients_are_the_references() -> None:
    inputs = compact_call(2, 40, 3, torch.float32)
    gradients = []
    for op in (COMPACT, TOKEN_COMPACT_OP._init_fn):
        tokens = inputs[0].clone().requires_grad_()
        (op(tokens, *inputs[1:])[0] ** 2).sum().backward()
        gradients.append(tokens.grad)
    torch.testing.assert_close(*gradients)


def test_sizes_that_the_kernels_do_not_take_are_named(ops: KernelOps) -> None:
    qkv, mask, causal, _ = attention_inputs(1, 5, 1, 12, torch.float32, 0)
    with pytest.raises(KernelError, match="multiples of 8") as caught:
        ops.aligned_attention(qkv, mask, causal, 1)
    assert caught.value.code == 1


def test_tensors_of_two_devices_are_refused(ops: KernelOps) -> None:
    qkv, mask, causal, heads = attention_inputs(1, 5, 1, 8, torch.float32, 0)
    with pytest.raises(InputError, match="same device"):
        ops.aligned_attention(qkv, mask.to("meta"), causal, heads)


@pytest.mark.parametrize("sizes", [(1, 1), (1, 5), (2,), (2, 6), ()])
def test_attention_takes_no_tensor_that_would_be_broadcast(ops: KernelOps, sizes: tuple[int, ...]) -> None:
    """The reference broadcasts; a kernel would read what lies behind."""
    qkv, _, causal, heads = attention_inputs(2, 5, 2, 8, torch.float32, 0)
    with pytest.raises(InputError, match=r"key_mask of aligned_attention is \[.*\n.*B = 2, L = 5"):
        ops.aligned_attention(qkv, torch.zeros(sizes), causal, heads)


@pytest.mark.parametrize("index", range(8))
def test_compaction_takes_no_tensor_of_another_size(ops: KernelOps, index: int) -> None:
    inputs = list(compact_call(2, 40, 3, torch.float32))
    inputs[index] = inputs[index][:1] if inputs[index].dim() else inputs[index].expand(1)
    with pytest.raises(InputError, match="of token_compact is"):
        ops.token_compact(*inputs)


def test_library_is_found_and_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert library_path().parts[-3:] == ("install", "lib", "libmadtp_kernels.so")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.so"))
    with pytest.raises(KernelError, match=r"(?s)none\.so.*build\.sh plugins"):
        register_kernels()
    with pytest.raises(KernelError, match="is missing"):
        register_kernels(str(tmp_path / "none.so"))
    (tmp_path / "none.so").write_bytes(b"no library")
    with pytest.raises(KernelError, match="cannot be loaded"):
        register_kernels()
    monkeypatch.setenv(VARIABLE, str(native_build.build().probe))  # a library, but not of kernels
    with pytest.raises(KernelError, match="undefined symbol: madtp_aligned_attention"):
        register_kernels()
