"""Sensitivity: what is tried, what is proposed, and what is written of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import madtp
from calibration.agreement import compare, observe
from calibration.fake_quantization import FakeQuantization
from calibration.keep import check_keep, read_keep
from calibration.sensitivity import Goal, Trials, rank_and_propose
from madtp.data.samples import collate
from madtp.data.synthetic import synthetic_samples
from madtp.files.inputs import sha256
from madtp.models.parts import encoder_layers, parts_of
from madtp.models.weight_products import weight_products
from tests.helpers.checkpoints import TAU, write_task_checkpoint

Write = Callable[..., Path]


def trials_of(model: Any, samples: int = 2, **changes: Any) -> Trials:
    requests = synthetic_samples(model.config).requests[:samples]
    given: dict[str, Any] = {
        "model": model,
        "inputs": [collate([request], model.config) for request in requests],
        "temperature": TAU,
        "quantization": FakeQuantization(model, "int8"),
        "labels": [request.label for request in requests],
        "probe": 1,
        "never": frozenset(),
        "on_step": lambda *_: None,
    }
    return Trials(**(given | changes))


@pytest.mark.parametrize("task", ["vqa", "caption", "retrieval", "clip"])
def test_a_run_agrees_with_itself_and_16_bits_nearly_do(task: str, tmp_path: Path) -> None:
    model = madtp.load(write_task_checkpoint(task, tmp_path / "tiny.pt"))
    trials = trials_of(model, quantization=FakeQuantization(model, "fp16"))
    same = trials.run([], lambda: None)
    assert (same.decisions, same.jaccard, same.flips, same.tokens, same.output_error) == (1, 1, 0, 0, 0)
    assert [(layer.encoder, layer.layer) for layer in same.layers] == encoder_layers(parts_of(model))
    near = trials.run(list(trials.products), lambda: None)
    assert 0 < near.output_error < 0.01
    assert all(0 < layer.noise < 0.05 for layer in near.layers)


def test_tokens_that_one_run_drops_are_flips(tiny_checkpoint: Write) -> None:
    model = madtp.load(tiny_checkpoint())
    trials = trials_of(model)
    mild = observe(model, trials.inputs, 0.01, FakeQuantization(model, "fp16").of([]))
    harsh = observe(model, trials.inputs, 100.0, FakeQuantization(model, "fp16").of([]))
    found = compare(model, harsh, mild, [0, 1])
    vision = found.layers[0]
    kept, others = (set(run[0].steps[0].source_ids[0].tolist()) for run in (mild, harsh))
    assert kept != others
    assert vision.tokens[0] != vision.tokens[1]
    assert 0 < vision.flips < 1
    assert 0 < vision.jaccard < 1
    assert found.accuracy is not None


def test_everything_is_kept_where_nothing_less_is_enough(tiny_checkpoint: Write) -> None:
    model = madtp.load(tiny_checkpoint())
    trials = trials_of(model, quantization=FakeQuantization(model, "static-int8", {}))  # ranges of nothing: all zero
    proposal = rank_and_propose(trials, Goal())
    assert proposal.reached
    assert proposal.everything.jaccard < 0.97 or proposal.everything.decisions < 0.995
    assert proposal.found.decisions == 1
    assert {place.name for place in proposal.places} == {product.place for product in weight_products(model).values()}
    assert sum(place.share for place in proposal.places) == pytest.approx(1)
    damages = [place.found.damage for place in proposal.places]
    assert damages == sorted(damages, reverse=True)


def test_nothing_is_kept_where_nothing_is_asked(tiny_checkpoint: Write) -> None:
    proposal = rank_and_propose(trials_of(madtp.load(tiny_checkpoint())), Goal(agreement=0, jaccard=0))
    assert (proposal.keep, proposal.kept_share) == ((), 0) or proposal.found.tokens > 0.01


def test_dynamic_int8_is_tried_on_what_onnx_runtime_has_kernels_for(tiny_checkpoint: Write) -> None:
    model = madtp.load(tiny_checkpoint())
    places = {product.place for product in trials_of(model).products.values()}
    assert "vision.0.qkv" in places
    assert not {"vision.patches", "model.head"} & places


def test_the_command_writes_a_keep_file(tiny_checkpoint: Write, samples_folder: Path, tmp_path: Path, run: Any) -> None:
    checkpoint, table, output = tiny_checkpoint(), tmp_path / "ranges.json", tmp_path / "keep.json"
    given = ("--ckpt", checkpoint, "--data", samples_folder)
    assert run("ranges", *given, "-o", table).status == 0
    ran = run("sensitivity", *given, "--precision", "fp8", "--ranges", table, "--probe", "1", "-o", output)
    assert ran.status == 0, ran
    assert "keep in float32: " in ran.out
    found = read_keep(output)
    check_keep(found, sha256(checkpoint), "nlvr", "fp8", set(weight_products(madtp.load(checkpoint))), output)
    assert "space_dict" not in found.keep
    content = json.loads(output.read_text())
    assert content["proposal"]["samples"] == 8
    assert content["proposal"]["accuracy"] is not None
    assert {entry["place"] for entry in content["layers"]} >= {"vision.0", "text.0", "text.1"}


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--precision", "fp8"), "fp8 needs ranges of activations"),
        (("--precision", "int4"), "int4"),
        (("--agreement", "2"), "--agreement"),
        (("--ranges", "nowhere.json"), "cannot read the range table 'nowhere.json'"),
        (("--limit", "1"), "1 sample cannot be calibrated with"),
        (("--data", "nowhere"), "there is no folder 'nowhere'"),
    ],
)
def test_bad_input(
    arguments: tuple[str, str], part: str, tiny_checkpoint: Write, samples_folder: Path, tmp_path: Path, run: Any
) -> None:
    given = {"--ckpt": tiny_checkpoint(), "--data": samples_folder, "-o": tmp_path / "keep.json"} | dict([arguments])
    run("sensitivity", *(entry for pair in given.items() for entry in pair)).refused(part)
    assert not (tmp_path / "keep.json").exists()
