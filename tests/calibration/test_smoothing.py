"""Smoothing: the model computes the same, and its channels are alike."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import madtp
from calibration.agreement import compare, observe
from calibration.fake_quantization import FakeQuantization
from calibration.smoothing import channel_ranges, smooth, smooth_pairs
from madtp.data.samples import collate
from madtp.data.synthetic import synthetic_samples
from madtp.errors import RangesError
from madtp.models.weight_products import weight_products
from tests.helpers.checkpoints import TAU, TINY, save_checkpoint, state_of, write_task_checkpoint


def model_of(task: str, folder: Path) -> Any:
    """A tiny model with one channel that is a hundred times as large as the others after every norm."""
    path = folder / "tiny.pt"
    checkpoint = save_checkpoint(path, state_of(TINY)) if task == "nlvr" else write_task_checkpoint(task, path)
    model = madtp.load(checkpoint)
    with torch.no_grad():
        for pair in smooth_pairs(model):
            pair.norm.weight[3] *= 100
            pair.norm.bias[3] += 50
            pair.weight[:, 3] /= 100
    return model


def requests_of(model: Any) -> list[Mapping[str, Tensor]]:
    return [collate([request], model.config) for request in synthetic_samples(model.config).requests[:4]]


def errors(model: Any, reference: Any, quantization: FakeQuantization, products: list[str]) -> Any:
    requests = requests_of(model)
    plain = observe(reference, requests, TAU, FakeQuantization(reference, "int8").of([]))
    return compare(model, plain, observe(model, requests, TAU, quantization.of(products)))


@pytest.mark.parametrize("task", ["nlvr", "vqa", "caption", "retrieval", "clip"])
def test_a_smoothed_model_computes_the_same_and_loses_less_in_int8(task: str, tmp_path: Path) -> None:
    model = model_of(task, tmp_path)
    smoothed = copy.deepcopy(model)
    names = smooth(smoothed, channel_ranges(model, requests_of(model), TAU))
    assert set(names) <= set(weight_products(model))
    same = errors(smoothed, model, FakeQuantization(smoothed, "int8"), [])
    assert same.jaccard == 1
    assert same.output_error < 1e-5
    before = errors(model, model, FakeQuantization(model, "int8"), names)
    after = errors(smoothed, model, FakeQuantization(smoothed, "int8"), names)
    assert after.layers[0].noise < before.layers[0].noise / 3


def test_channels_lie_around_zero_and_are_of_like_size(tmp_path: Path) -> None:
    model = model_of("nlvr", tmp_path)
    smooth(model, channel_ranges(model, requests_of(model), TAU))
    for low, high in channel_ranges(model, requests_of(model), TAU).values():
        torch.testing.assert_close(low, -high, atol=1e-3, rtol=1e-3)
        assert high.max() < 30 * high.median()


def test_channels_that_are_always_zero_stay_as_they_are(tmp_path: Path) -> None:
    model = model_of("nlvr", tmp_path)
    with torch.no_grad():
        for pair in smooth_pairs(model):
            pair.norm.weight[1], pair.norm.bias[1] = 0, 0
            pair.weight[:, 2] = 0
    before = copy.deepcopy(model)
    smooth(model, channel_ranges(model, requests_of(model), TAU))
    for old, new in zip(smooth_pairs(before), smooth_pairs(model), strict=True):
        assert torch.equal(old.weight[:, 1:3], new.weight[:, 1:3])
        assert new.norm.weight.isfinite().all()


def test_channels_without_a_range_are_refused(tmp_path: Path) -> None:
    model = model_of("nlvr", tmp_path)
    requests = requests_of(model)
    requests[1]["image0"][:] = float("nan")
    with pytest.raises(RangesError, match="is NaN or infinite"):
        channel_ranges(model, requests, TAU)
