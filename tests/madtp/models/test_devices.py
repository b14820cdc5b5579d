"""Models on another device, a pretended one (tests/helpers/pretend_gpu.py): everything lies there, little is waited
for."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from madtp.models.pruning import resolve_temperature
from tests import golden
from tests.helpers.golden_runtimes import TorchRuntime
from tests.helpers.paths import CARRIED, golden_folders
from tests.helpers.pretend_gpu import DEVICE, PretendGpu, PretendTensor, on_gpu, to_gpu


@pytest.mark.parametrize("folder", golden_folders(), ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_recorded_cases_with_everything_on_the_device(folder: Path) -> None:
    if folder.name == "base":
        pytest.skip("the small models run the same code")
    model = golden.load_model(folder)
    cases = list(golden.load_cases(folder, model.config.image_size))
    to_gpu(model)
    for case in cases:
        moved = replace(case, inputs=on_gpu(case.inputs))
        with PretendGpu():
            runtimes = [TorchRuntime(model), *([TorchRuntime(model, dense=True)] if case.temperature <= 0 else [])]
            replays = [golden.replay(model.config, runtime, moved) for runtime in runtimes]
        for replay in replays:
            assert not golden.compare(case, replay).mismatches, case.name


def test_a_dense_model_waits_for_nothing_so_that_a_cuda_graph_can_hold_it() -> None:
    model = golden.load_model(CARRIED)
    case = next(golden.load_cases(CARRIED, model.config.image_size))
    to_gpu(model)
    with PretendGpu() as gpu, torch.no_grad():
        output = model(**on_gpu(case.inputs), temperature=0.0)
    assert (gpu.read_back, gpu.copied) == (0, 0)
    assert output.logits.device == DEVICE


def test_a_temperature_given_as_a_number_is_not_copied_to_the_device() -> None:
    model = golden.load_model(CARRIED)
    case = next(golden.load_cases(CARRIED, model.config.image_size))
    to_gpu(model)
    with PretendGpu() as gpu, torch.no_grad():
        model(**on_gpu(case.inputs), temperature=0.5)
        made = resolve_temperature(0.5, 0.0, DEVICE)
    assert gpu.copied == 0
    assert isinstance(made, PretendTensor)  # on the CPU, every layer would copy it


def test_a_temperature_on_the_cpu_is_copied_once_and_not_in_every_layer() -> None:
    model = golden.load_model(CARRIED)
    case = next(golden.load_cases(CARRIED, model.config.image_size))
    to_gpu(model)
    with PretendGpu() as gpu, torch.no_grad():
        model(**on_gpu(case.inputs), temperature=torch.tensor(0.5))
    assert gpu.copied == 1


def test_the_pretended_device_is_as_strict_as_a_real_one() -> None:
    with PretendGpu() as gpu:
        there = torch.zeros(3, device=DEVICE)
        assert isinstance(there + 1, PretendTensor)
        with pytest.raises(RuntimeError, match="two devices"):
            there + torch.ones(3)
        assert int((there + torch.ones(3).to(DEVICE)).sum()) == 3
        assert torch.tensor([1, 2], device=DEVICE).tolist() == [1, 2]
    assert (gpu.read_back, gpu.copied) == (2, 2)
