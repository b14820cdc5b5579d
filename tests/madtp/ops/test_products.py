"""What 16-bit artifacts and kernels are held to depends on no host: oneDNN has no hand in it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import madtp
from export.validate.contestants import TorchContestant
from madtp.data.samples import collate, load_samples
from madtp.ops.products import PRODUCTS, is_narrow, product
from madtp.ops.reference import aligned_attention
from tests import golden
from tests.helpers.checkpoints import TASK_SIZES, TINY, save_checkpoint, state_of, write_task_checkpoint
from tests.helpers.paths import CARRIED, ROOT

NARROW = [torch.float16, torch.bfloat16]
HOSTS = ("AMX", "AVX512_CORE", "AVX2")  # the most that oneDNN may use of this processor


class Watch(TorchDispatchMode):
    """Notes the products of 16-bit tensors that torch computes on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow: list[str] = []
        self.ops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        multiplies = func.overloadpacket in PRODUCTS or func.overloadpacket in flop_registry
        self.ops += multiplies
        if multiplies and any(map(is_narrow, args)):
            self.narrow.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("temperature", [0.0, 2.0])
@pytest.mark.parametrize("task", ["nlvr", *TASK_SIZES])
def test_no_16_bit_product_of_a_model_is_left_to_the_host(
    task: str, temperature: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "tiny.pt"
    if task == "nlvr":
        save_checkpoint(checkpoint, state_of(TINY))
    else:
        write_task_checkpoint(task, checkpoint)
    model = madtp.load(checkpoint)
    reference = TorchContestant("torch", model, dtype)
    inputs = collate(load_samples(None, checkpoint, model.config).requests[:2], model.config)
    with Watch() as watch:
        reference.answer(inputs, temperature)
    assert watch.ops > 10
    assert not watch.narrow


@pytest.mark.parametrize("dtype", NARROW)
def test_no_16_bit_product_of_the_attention_op_is_left_to_the_host(dtype: torch.dtype) -> None:
    qkv = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(0)).to(dtype)
    with Watch() as watch:
        aligned_attention(qkv, torch.zeros(2, 9), 0, 4)
    assert watch.ops == 2
    assert not watch.narrow


@pytest.mark.parametrize("dtype", NARROW)
def test_a_product_is_rounded_once(dtype: torch.dtype) -> None:
    """Even float32 sums would lose the ones."""
    left = torch.tensor([[2.0**14, 1.0, 1.0, -(2.0**14)]], dtype=dtype)
    right = torch.tensor([[2.0**11], [1.0], [1.0], [2.0**11]], dtype=dtype)
    assert torch.equal(product(left, right), torch.full((1, 1), 2.0, dtype=dtype))


def bits_of_the_reference() -> bytes:
    """The attention op with and without numbers that are not finite, and a model's logits, in both 16-bit types."""
    generator = torch.Generator().manual_seed(0)
    model = golden.load_model(CARRIED)
    case = next(golden.load_cases(CARRIED, model.config.image_size))
    outputs = []
    for dtype in NARROW:
        qkv = torch.randn(2, 67, 3 * 128, generator=generator)
        outputs += aligned_attention(qkv.to(dtype), torch.zeros(2, 67), 0, 2)
        qkv[0, 3, 2] = torch.inf
        outputs += aligned_attention(qkv.to(dtype), torch.zeros(2, 67), 0, 2)
        reference = TorchContestant("torch", model, dtype)
        for temperature in (0.0, 0.5):
            outputs.append(reference.answer(case.inputs, temperature).outputs["logits"])
    return b"".join(tensor.contiguous().view(torch.uint8).numpy().tobytes() for tensor in outputs)


def test_the_reference_has_the_same_bits_whatever_onednn_may_use() -> None:
    script = "import sys; from tests.madtp.ops.test_products import *; sys.stdout.buffer.write(bits_of_the_reference())"
    results = []
    for host in HOSTS:
        variables = {"OMP_NUM_THREADS": "1"} | ({} if host == "AMX" else {"ONEDNN_MAX_CPU_ISA": host})
        command = [sys.executable, "-c", script]
        run = subprocess.run(command, env=os.environ | variables, cwd=ROOT, capture_output=True, check=False)
        assert run.returncode == 0, run.stderr.decode()
        results.append(run.stdout)
    assert len(results[0]) > 1000
    assert results[0] == results[1] == results[2]
