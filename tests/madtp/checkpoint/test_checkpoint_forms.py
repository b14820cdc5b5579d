"""Checkpoints close to the official form: read and noted where nothing has to be guessed, else named in a sentence."""

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import madtp
from madtp import CheckpointError, ConfigError, MadtpError
from madtp.checkpoint.loading import read_model
from tests.helpers.checkpoints import TASK_SIZES, TAU, TINY, state_of, write_task_checkpoint
from tests.helpers.command_line import Ran
from tests.helpers.manifests import manifest_json

Content = Callable[[dict[str, Any]], Any]
LONGEST = 1500  # characters of any message


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Weights whose sizes the tensors tell, heads included."""
    return state_of(OFFICIAL)


OFFICIAL = {key: value for key, value in TINY.items() if not key.endswith("_id")} | {
    "vit_dim": 64,
    "vit_heads": 1,
    "text_hidden": 64,
    "text_heads": 1,
    "sd_dim": 64,
    "vocab_size": 30524,
}
RECIPE = {
    "image_root": "images",
    "ann_root": "annotation",
    "batch_size_train": 16,
    "vit": "base",
    "init_lr": 3e-06,
    "weight_decay": 0.05,
}


def prefixed(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + key: value for key, value in state.items()}


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def official(model: Any, **entries: Any) -> dict[str, Any]:
    return {"model": model, "epoch": 3, "temperature": TAU, **entries}


def wrapped_within(state: Mapping[str, Any]) -> dict[str, Any]:
    """As torch.compile of one encoder and checkpointing of its blocks leave the keys."""
    return {
        key.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module.").replace(
            "visual_encoder.", "visual_encoder._orig_mod."
        ): value
        for key, value in state.items()
    }


OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}
READ: dict[str, tuple[Content, tuple[str, ...]]] = {
    **{
        prefix: (lambda state, prefix=prefix: official(prefixed(state, prefix)), (f"read without '{prefix}'",))
        for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "model.", "net.", "model.module.", "student.")
    },
    "within": (lambda state: official(wrapped_within(state)), ("read without '_orig_mod.'",)),
    **{
        entry: (
            lambda state, entry=entry: {entry: state, "temperature": TAU, "optimizer": OPTIMIZER},
            (f"read from the entry '{entry}'",),
        )
        for entry in ("state_dict", "model_state_dict", "module", "net", "ema")
    },
    "lightning": (
        lambda state: {"state_dict": prefixed(state, "model."), "hyper_parameters": {"lr": 1}, "temperature": TAU},
        ("read from the entry 'state_dict'", "read without 'model.'"),
    ),
    "in an entry": (lambda state: {"checkpoint": official(state)}, ("from the entry 'checkpoint'.'model'",)),
    "two levels": (
        lambda state: {"model": {"state_dict": state}, "temperature": TAU},
        ("from the entry 'model'.'state_dict'",),
    ),
    "bare": (lambda state: {**state, "temperature": TAU}, ("weights alone",)),
    "averaged too": (lambda state: official(state, model_ema=state), ("'model_ema' were left aside",)),
    "averaged, usual": (
        lambda state: {"ema": state, "state_dict": state, "temperature": TAU},
        ("'ema' were left aside", "from the entry 'state_dict'"),
    ),
    "recipe": (lambda state: official(state, config=RECIPE), ("is a training configuration", "image_root")),
    "recipe of another size": (
        lambda state: official(state, config={**RECIPE, "image_size": 224, "prompt": "a"}),
        ("left aside (ann_root",),
    ),
    "recipe, a path": (lambda state: official(state, config="configs/nlvr.yaml"), ("config entry is a str",)),
    "long recipe": (lambda state: official(state, config={f"k{i}": i for i in range(1000)}), ("and 992 more",)),
    "strides": (lambda state: official({**state, "space_dict": state["space_dict"].t().contiguous().t()}), ()),
}


@pytest.mark.parametrize(("content", "parts"), READ.values(), ids=READ)
def test_what_needs_no_guess_is_read_and_noted(
    content: Content, parts: tuple[str, ...], state: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(tmp_path / "x.pt", content(dict(state)))
    loaded = read_model(path)
    assert loaded.model.temperature == TAU
    weights = loaded.model.state_dict()
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[key], state[key]) and weights[key].is_contiguous() for key in state)
    assert bool(loaded.notes) == bool(parts)
    for part in parts:
        assert any(part in note for note in loaded.notes), loaded.notes
    assert all(len(note) < 400 for note in loaded.notes)
    with caplog.at_level(logging.WARNING):
        madtp.load(path)
    assert [record.getMessage() for record in caplog.records] == [f"'{path}': {note}" for note in loaded.notes]


@pytest.mark.parametrize("prefix", ["module.", "model._orig_mod."])
@pytest.mark.parametrize("task", TASK_SIZES)
def test_prefixes_of_every_task(task: str, prefix: str, tmp_path: Path) -> None:
    content = torch.load(write_task_checkpoint(task, tmp_path / "x.pt"))
    expected = madtp.load(tmp_path / "x.pt").state_dict()
    content["model"] = prefixed(content["model"], prefix)
    loaded = read_model(save(tmp_path / "y.pt", content))
    weights = loaded.model.state_dict()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    assert loaded.notes == (f"its keys were read without '{prefix}'",)


def test_weights_alone_are_dense_and_say_so(state: dict[str, Any], tmp_path: Path) -> None:
    loaded = read_model(save(tmp_path / "x.pt", state))
    assert loaded.model.temperature == 0
    assert any("records no temperature" in note for note in loaded.notes)


def test_notes_come_with_the_export(
    tiny_state: dict[str, Any], tmp_path: Path, run_cli: Callable[..., Ran], quick: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "x.pt", official(prefixed(tiny_state, "module."), config=TINY | RECIPE))
    ran = run_cli("check", "--ckpt", path, "--engine", tmp_path / "out.onnx")
    assert ran.status == 0
    assert "'module.'" in ran.out
    ran = run_cli("--ckpt", path, "--engine", tmp_path / "out.onnx")
    assert ran.status == 0, ran
    assert "checkpoint: its keys were read without 'module.'" in ran.out
    notes = manifest_json(tmp_path / "out.json")["checkpoint"]["notes"]
    assert [note[:10] for note in notes] == ["its keys w", "the config"]
    assert "read without 'module.'" in run_cli("inspect", tmp_path / "out.onnx").out


# The `config` entry.


def test_what_no_tensor_tells_is_taken_from_a_mixture(tiny_state: dict[str, Any], tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", official(tiny_state, config=TINY | RECIPE))
    config = madtp.load(path).config
    assert {name: getattr(config, name) for name in TINY} == TINY


@pytest.mark.parametrize("name", ["vit_head", "vit_hedas", "text_head", "sep_token_ids"])
def test_misspelt_sizes_are_no_training_configuration(name: str, tiny_state: dict[str, Any], tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", official(tiny_state, config=TINY | {name: 2}))
    with pytest.raises(ConfigError, match=f"unknown fields: {name}\n") as caught:
        madtp.load(path)
    assert "--config" in caught.value.fix
    config = madtp.load(path, {"vit_heads": 4}).config  # wins over the entry, whatever is in it
    assert (config.vit_heads, config.text_heads) == (4, 2)


def test_all_that_is_wrong_with_a_configuration_is_said_at_once(tiny_state: dict[str, Any], tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", official(tiny_state, config=TINY))
    for given, parts in (
        ({"vit_heads": "2", "text_heads": 0}, ("'vit_heads' is '2'", "'text_heads' is 0")),
        ({"vit_heads": 3, "image_size": 33, "sd_dim": 32}, ("vit_heads = 3", "image_size 33", "sd_dim 32")),
    ):
        with pytest.raises(ConfigError) as caught:
            madtp.load(path, given)
        assert all(part in str(caught.value) for part in parts)


@pytest.mark.parametrize("task", ["vqa", "caption", "retrieval"])
def test_fields_of_another_tasks_models_are_left_aside(task: str, tmp_path: Path) -> None:
    content = torch.load(write_task_checkpoint(task, tmp_path / "x.pt"))
    content["config"] = TASK_SIZES[task] | {"merge_from": 6, "vision_width": 7}
    loaded = read_model(save(tmp_path / "y.pt", content))
    assert f"fields that no {task} model has, left aside (merge_from, vision_width)" in loaded.notes[0]
    assert loaded.model.config == madtp.load(tmp_path / "x.pt").config


@pytest.mark.parametrize("task", ["vqa", "nlvr2"])
def test_a_wrong_task_can_be_corrected(task: str, state: dict[str, Any], tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", official(state, config={"task": task}))
    with pytest.raises(CheckpointError) as caught:
        madtp.load(path)
    assert 'say "task": "nlvr" in --config' in caught.value.fix
    assert madtp.load(path, {"task": "nlvr"}).task == "nlvr"


@pytest.mark.parametrize("entries", [{"config": {"vit_heads": "1"}}, {"temperature": None}, {"temperature": -1}])
def test_a_wrong_value_says_what_to_do(entries: dict[str, Any], state: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(MadtpError) as caught:
        madtp.load(save(tmp_path / "x.pt", official(state) | entries))
    assert caught.value.why
    assert caught.value.fix


def test_the_lines_that_save_tensors_alone_work(
    state: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "x.pt", official(state) | {"temperature": np.float64(TAU)})
    with pytest.raises(CheckpointError) as caught:
        madtp.load(path)
    lines = [line[2:] for line in caught.value.fix.splitlines() if line.startswith("  ")]
    exec("\n".join(["import torch", *lines]), {})
    loaded = read_model(tmp_path / "new.pt")
    assert (loaded.model.temperature, loaded.notes) == (TAU, ())


# What cannot be read.


def without(state: Mapping[str, Any], *beginnings: str) -> dict[str, Any]:
    return {key: value for key, value in state.items() if not key.startswith(beginnings)}


def plus(state: Mapping[str, Any], **tensors: Any) -> dict[str, Any]:
    return official({**state, **{key.replace("__", "."): value for key, value in tensors.items()}})


def sparse(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every second tensor."""
    yield from list(state.items())[::2]


POSITIONS = "visual_encoder__pos_embed"
REFUSED: dict[str, tuple[Content, tuple[str, ...]]] = {
    "several models": (
        lambda state: official({**prefixed(state, "student."), **prefixed(state, "teacher.")}),
        ("several models", "'student.', 'teacher.'"),
    ),
    "a tensor twice": (
        lambda state: official({**state, **prefixed(state, "module.")}),
        ("a tensor twice", "module.cls_head.0.bias"),
    ),
    "several entries": (
        lambda state: {"ema": state, "weights": state},
        ("several sets of weights", "'ema', 'weights'"),
    ),
    "optimizer": (lambda state: {"optimizer": OPTIMIZER, "epoch": 1}, ("an optimizer without the model's weights",)),
    "optimizer alone": (lambda state: OPTIMIZER, ("an optimizer without the model's weights",)),
    "name of the model": (lambda state: {"model": "vit", "epoch": 1}, ("'model' is a str",)),
    "nothing": (lambda state: {}, ("an empty dictionary",)),
    "plain BLIP": (lambda state: official(without(state, "space_dict")), ("a plain BLIP model", "lacks space_dict")),
    "plain CLIP": (
        lambda state: official(
            {"visual.conv1.weight": torch.zeros(64, 3, 16, 16), "token_embedding.weight": torch.zeros(9, 9)}
        ),
        ("a plain CLIP model", "Train it with MADTP"),
    ),
    "LoRA": (
        lambda state: plus(state, visual_encoder__blocks__0__attn__qkv__lora_A__weight=torch.zeros(2, 2)),
        ("LoRA adapters", "merge_and_unload"),
    ),
    "LoRA alone": (
        lambda state: official({"base_model.model.visual_encoder.x.lora_B.weight": torch.zeros(2)}),
        ("LoRA",),
    ),
    "quantised": (
        lambda state: official({key: value.to(torch.int8) for key, value in state.items()}),
        ("97 no floating-point weights: cls_head.0.bias is int8", "and 89 more", "quantised model"),
    ),
    "packed": (lambda state: plus(state, x__qweight=torch.zeros(2)), ("quantised model",)),
    "no values": (
        lambda state: official({key: value.to("meta") for key, value in state.items()}),
        ("meta device", "and 89 more"),
    ),
    "shards": (lambda state: {"module": dict.fromkeys(state, torch.zeros(0))}, ("ZeRO-3", "zero_to_fp32.py")),
    "flattened": (lambda state: official({"_fsdp_wrapped_module._flat_param": torch.zeros(9)}), ("FSDP",)),
    "Hugging Face": (
        lambda state: {"vision_model.embeddings.class_embedding": torch.zeros(2)},
        ("a Hugging Face model",),
    ),
    "image encoder": (lambda state: {"blocks.0.attn.qkv.weight": torch.zeros(2, 2)}, ("an image encoder (ViT) alone",)),
    "text encoder": (lambda state: {"bert.encoder.layer.0.x": torch.zeros(2, 2)}, ("a text encoder (BERT) alone",)),
    "no square": (
        lambda state: plus(state, **{POSITIONS: torch.zeros(1, 7, 64)}),
        ("7 positions are no class token and a square of patches",),
    ),
    "another resolution": (
        lambda state: official(state, config=OFFICIAL | {"image_size": 64, "vit_depth": 3, "vit_mlp": 64}),
        (
            "image_size is 32 by the tensors and 64 in the configuration",
            "vit_depth is 1 by the tensors and 3",
            "vit_mlp is 32 by the tensors and 64",
            "24 missing",
            "and 16 more",
            "4 of the wrong shape",
            "interpolate the position embedding",
        ),
    ),
    "several tensors missing": (
        lambda state: official(without(state, "visual_encoder.blocks", "text_encoder.embeddings.word")),
        ("vit_depth, vit_mlp, text_hidden", "word_embeddings.weight", "visual_encoder.blocks.*"),
    ),
    "another width": (
        lambda state: plus(state, space_dict=torch.zeros(8, 128)),
        ("vit_dim 64, text_hidden 64 and sd_dim 128",),
    ),
    "wrong dimensions": (lambda state: plus(state, space_dict=torch.zeros(8)), ("space_dict is [8]",)),
    "many others": (
        lambda state: official({**state, **{f"extra.{'x' * 300}.{i}": torch.zeros(1) for i in range(500)}}),
        ("500 unexpected: extra.xx", "more"),
    ),
    "a long name": (lambda state: official({**state, "k" * 100_000: torch.zeros(1)}), ("1 unexpected: kkk",)),
    "half, and many others": (
        lambda state: official(
            {
                **dict(sparse(state)),
                **{f"a.{i}.{'y' * 90}": torch.zeros(1) for i in range(99)},
                **dict.fromkeys(list(state)[1:20:2], torch.zeros(3, 3, 3)),
                **{
                    key: value
                    for key, value in state.items()
                    if "embed" in key or "space" in key or "fc1" in key or "intermediate" in key
                },
            }
        ),
        ("missing", "99 unexpected", "of the wrong shape"),
    ),
    "claims terabytes": (
        lambda state: plus(state, space_dict=torch.zeros(1, 1).expand(10**6, 10**6)),
        ("claim more than the file holds", "4 TB", "space_dict, [1000000, 1000000]"),
    ),
    "overlapping views": (
        lambda state: plus(state, **{POSITIONS: torch.zeros(1).as_strided((1, 10**12, 64), (0, 0, 0))}),
        ("claim more than the file holds", "visual_encoder.pos_embed"),
    ),
}


@pytest.mark.parametrize(("content", "parts"), REFUSED.values(), ids=REFUSED)
def test_what_would_be_guessed_is_named_in_few_words(
    content: Content, parts: tuple[str, ...], state: dict[str, Any], tmp_path: Path, run_cli: Callable[..., Ran]
) -> None:
    path = save(tmp_path / "x.pt", content(dict(state)))
    with pytest.raises(MadtpError) as caught:
        madtp.load(path)
    error = caught.value
    assert isinstance(error, CheckpointError)
    assert error.why
    assert error.fix
    assert len(str(error)) < LONGEST, str(error)
    for part in parts:
        assert part in str(error)
    run_cli("check", "--ckpt", path, "--engine", tmp_path / "out.onnx").refused(*parts)
