"""TF32 is off wherever a model may run on a GPU; and what it would do, rounded by hand on the CPU."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import madtp
from export.engine.backends import choose_backend
from export.validate.contestants import TorchContestant
from madtp.ops.tf32 import forbid_tf32
from tests import golden
from tests.helpers.checkpoints import TINY
from tests.helpers.paths import CARRIED, ROOT

BACKENDS: Any = torch.backends


def is_off() -> bool:
    """By the new switches, and by the old ones, which refuse to be read where the new ones disagree."""
    switches = (BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv)
    allowed = BACKENDS.cudnn.allow_tf32 or BACKENDS.cuda.matmul.allow_tf32
    precise = torch.get_float32_matmul_precision() == "highest"
    return all(switch.fp32_precision == "ieee" for switch in switches) and not allowed and precise


def old_switches() -> None:
    BACKENDS.cudnn.allow_tf32 = True
    BACKENDS.cuda.matmul.allow_tf32 = True


def new_switches() -> None:
    for switch in (BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn):
        switch.fp32_precision = "tf32"


def whole_backends() -> None:
    BACKENDS.fp32_precision = "tf32"
    BACKENDS.cudnn.fp32_precision = "tf32"


@pytest.fixture(autouse=True)
def off_afterwards() -> Iterator[None]:
    yield
    BACKENDS.fp32_precision = BACKENDS.cudnn.fp32_precision = "none"
    forbid_tf32()


@pytest.mark.parametrize(
    "allow", [old_switches, new_switches, whole_backends, lambda: torch.set_float32_matmul_precision("medium")]
)
def test_tf32_is_off_whatever_was_set_before(allow: Callable[[], None]) -> None:
    allow()
    forbid_tf32()
    assert is_off()
    forbid_tf32()
    assert is_off()


def test_tf32_is_off_from_torchs_defaults() -> None:
    script = """
import torch
from madtp.ops.tf32 import forbid_tf32
cudnn = torch.backends.cudnn
assert cudnn.allow_tf32 and cudnn.conv.fp32_precision == "tf32"  # or this test says nothing
forbid_tf32()
assert not cudnn.allow_tf32 and cudnn.conv.fp32_precision == torch.backends.cuda.matmul.fp32_precision == "ieee"
"""
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", script], cwd=ROOT, check=True)


def test_whoever_gets_a_model_has_tf32_off(tiny_checkpoint: Callable[..., Path]) -> None:
    model = madtp.NlvrModel(madtp.NlvrConfig(**TINY))
    for get in (
        lambda: madtp.load(tiny_checkpoint()),
        lambda: TorchContestant("torch", model, torch.float32),
        lambda: golden.load_model(CARRIED),
    ):
        old_switches()
        get()
        assert is_off()


def test_plans_are_built_without_tf32() -> None:
    script = """
import os, sys
os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"
import tensorrt_rtx as trt
from export.engine.worker import Profile, builder_config, create_network
builder, network = create_network(strongly_typed=True)
assert builder.create_builder_config().get_flag(trt.BuilderFlag.TF32)  # TensorRT's default
assert not builder_config(trt, builder, network, Profile(), None).get_flag(trt.BuilderFlag.TF32)
os._exit(0)  # its teardown without a driver may abort
"""
    assert choose_backend("tensorrt-rtx", ".plan").module == "tensorrt_rtx"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def rounded(value: Tensor) -> Tensor:
    """float32 as TF32 holds it: 10 explicit bits of the mantissa, to nearest, ties to even."""
    bits = value.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def test_rounding_to_tf32_is_to_nearest_even() -> None:
    step = 2.0**-10
    values = torch.tensor(
        [1.0, 1 + 0.49 * step, 1 + 0.5 * step, 1 + 0.51 * step, 1 + 1.5 * step, -1 - 0.51 * step, 0.0]
    )
    assert rounded(values).tolist() == [1.0, 1.0, 1.0, 1 + step, 1 + 2 * step, -1 - step, 0.0]


def test_a_patch_embedding_in_tf32_fails_every_recorded_case() -> None:
    model = golden.load_model(CARRIED)
    (embedding,) = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    runtime = golden.TorchRuntime(model)
    cases = list(golden.load_cases(CARRIED, model.config.image_size))
    assert not any(golden.compare(case, golden.replay(model.config, runtime, case)).mismatches for case in cases)
    embedding.weight.data = rounded(embedding.weight.data)
    embedding.register_forward_pre_hook(lambda _, images: (rounded(images[0]),))
    worst = []
    for case in cases:
        verdict = golden.compare(case, golden.replay(model.config, runtime, case))
        assert any("logits off" in mismatch for mismatch in verdict.mismatches), case.name
        worst.append(verdict.worst)
    assert len(worst) == 9
    assert max(worst) < 0.01  # the rounding of an embedding, not another model
