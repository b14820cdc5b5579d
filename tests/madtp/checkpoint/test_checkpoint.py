"""Checkpoints and configurations: what is read from good ones, and what is said about bad ones."""

import argparse
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import madtp
from madtp import CheckpointError, ConfigError, MadtpError
from tests.helpers.checkpoints import TAU, TINY, state_of
from tests.helpers.command_line import Ran
from tests.helpers.outputs import Outputs
from tests.helpers.paths import ROOT

Write = Callable[..., Path]
Damage = Callable[[Write, Path], Path]

QKV = "visual_encoder.blocks.0.attn.qkv.weight"
DICT = "space_dict"
OFFICIAL = {key: value for key, value in TINY.items() if not key.endswith("_id")} | {
    "vit_dim": 64,
    "vit_heads": 1,
    "text_hidden": 64,
    "text_heads": 1,
    "sd_dim": 64,
    "vocab_size": 30524,
}


# Good ones.


def test_everything_of_the_checkpoint_is_in_the_model(
    tiny_checkpoint: Write, tiny_state: dict[str, torch.Tensor]
) -> None:
    model = madtp.load(tiny_checkpoint())
    assert model.task == "nlvr"
    assert model.temperature == TAU
    assert not model.training
    assert {name: getattr(model.config, name) for name in TINY} == TINY
    loaded = model.state_dict()
    assert loaded.keys() == tiny_state.keys()
    assert all(torch.equal(loaded[key], tiny_state[key]) for key in loaded)


def test_sizes_of_an_official_checkpoint_are_inferred(tiny_checkpoint: Write) -> None:
    path = tiny_checkpoint(model=state_of(OFFICIAL), config=None)
    config = madtp.load(str(path)).config
    assert {name: getattr(config, name) for name in OFFICIAL} == OFFICIAL
    assert (config.enc_token_id, config.sep_token_id) == (30523, 102)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_become_float32(
    dtype: torch.dtype, tiny_checkpoint: Write, tiny_state: dict[str, torch.Tensor]
) -> None:
    path = tiny_checkpoint(model={key: value.to(dtype) for key, value in tiny_state.items()})
    loaded = madtp.load(path).state_dict()
    for key, value in loaded.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, tiny_state[key].to(dtype).float(), rtol=0, atol=0)


def test_a_checkpoint_in_the_old_file_format_loads(tiny_checkpoint: Write) -> None:
    path = tiny_checkpoint()
    torch.save(torch.load(path), path, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)
    assert madtp.load(path).temperature == TAU


def test_tensors_that_only_training_needs_are_ignored(tiny_checkpoint: Write) -> None:
    unused = {
        "visual_encoder_m.cls_token": torch.full((3,), torch.nan),
        "text_encoder_m.embeddings.position_ids": torch.arange(3),
        "text_encoder.embeddings.position_ids": torch.arange(40)[None],
        "image_queue": torch.zeros(2, 2),
        "text_queue": torch.zeros(2, 2),
        "idx_queue": torch.zeros(1, dtype=torch.int64),
        "ptr_queue": torch.zeros(1, dtype=torch.int64),
        "temp": torch.tensor(0.07),
    }
    madtp.load(tiny_checkpoint(state=unused))


def test_notes_on_a_config_are_no_sizes(tiny_checkpoint: Write) -> None:
    notes = {"weight_seed": 1, "source_commit": "fa3cc4e", "tiny_vocab": True}
    assert madtp.load(tiny_checkpoint(config=TINY | notes)).config == madtp.load(tiny_checkpoint()).config


@pytest.mark.parametrize("form", [dict, str, Path])
def test_a_given_config_wins_over_the_recorded_one(form: type, tiny_checkpoint: Write, tmp_path: Path) -> None:
    given: Any = {"vit_heads": 4, "vit_layer_norm_eps": 1e-5}
    if form is not dict:
        file = tmp_path / "config.json"
        file.write_text(json.dumps(given))
        given = form(file)
    config = madtp.load(tiny_checkpoint(config=TINY | {"vit_heads": 8}), given).config
    assert (config.vit_heads, config.vit_layer_norm_eps, config.text_heads) == (4, 1e-5, 2)


@pytest.mark.parametrize(
    ("entry", "expected"), [(0, 0.0), (1, 1.0), (torch.tensor(0.5), 0.5), (torch.tensor([0.25]), 0.25), (None, 0.0)]
)
def test_temperature_is_a_number_or_a_tensor_and_zero_where_it_is_missing(
    entry: Any, expected: float, tiny_checkpoint: Write
) -> None:
    temperature = madtp.load(tiny_checkpoint(temperature=entry)).temperature
    assert temperature == expected
    assert isinstance(temperature, float)


# Bad files. `Damage` makes one, given the writer of good ones and a path to write at.


def raw(content: bytes) -> Damage:
    def damage(write: Write, path: Path) -> Path:
        path.write_bytes(content)
        return path

    return damage


def cut(share: float, *, old_format: bool = False) -> Damage:
    def damage(write: Write, path: Path) -> Path:
        torch.save(torch.load(write()), path, _use_new_zipfile_serialization=not old_format)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        return path

    return damage


def folder(write: Write, path: Path) -> Path:
    path.mkdir()
    return path


def other_zip(write: Write, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "not a checkpoint")
    return path


def saved(content: Any, **options: Any) -> Damage:
    def damage(write: Write, path: Path) -> Path:
        torch.save(content, path, **options)
        return path

    return damage


def entries(**changes: Any) -> Damage:
    return lambda write, path: write(**changes)


def state(**changes: Any) -> Damage:
    """Dots of keys are written as double underscores; None removes a key."""
    return lambda write, path: write(state={key.replace("__", "."): value for key, value in changes.items()})


def without_config(*removed: str) -> Damage:
    """Tensors whose names start with one of `removed` are missing, and so are the sizes that they would tell."""
    kept = {key: value for key, value in state_of(OFFICIAL).items() if not key.startswith(removed)}
    return entries(model=kept, config=None)


def architecture(*keys: str) -> Damage:
    return entries(model=dict.fromkeys(keys, torch.zeros(2, 2)), config=None)


def spoiled(key: str, value: float) -> Damage:
    def damage(write: Write, path: Path) -> Path:
        tensor = torch.load(write())["model"][key].clone()
        tensor.view(-1)[-1] = value
        return write(state={key: tensor})

    return damage


def infinite_in_float32(write: Write, path: Path) -> Path:
    return write(state={DICT: torch.full((8, 16), 1e300, dtype=torch.float64)})


BERT = "text_encoder.encoder.layer.0.crossattention"
FILES: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "missing": (lambda write, path: path, ("no checkpoint at", "does not exist", "--ckpt")),
    "folder": (folder, ("no checkpoint at", "folder of that name")),
    "device": (lambda write, path: Path("/dev/null"), ("'/dev/null'", "a device; only regular files")),
    "name too long": (lambda write, path: path.with_name("x" * 300), ("cannot read", "File name too long")),
    "empty": (raw(b""), ("cannot read", "is empty")),
    "text": (raw(b"hello world, this is text\n"), ("cannot read", "not written by torch.save")),
    "other zip": (other_zip, ("zip archive", "not written by torch.save")),
    "cut in half": (cut(0.5), ("cannot read", "truncated", "compare its size")),
    "cut at the end": (cut(0.999), ("cannot read", "truncated")),
    "old format, cut": (cut(0.5, old_format=True), ("cannot read", "truncated")),
    "pickled object": (saved({"model": {}, "args": argparse.Namespace()}), ("argparse.Namespace", "run code")),
    "pickled module": (saved(torch.nn.Linear(2, 2)), ("torch.nn.modules.linear.Linear", "state_dict()")),
    "numpy number": (saved({"model": {}, "loss": np.float64(1)}), ("holds more than tensors", "numpy")),
    "plain pickle": (raw(pickle.dumps({"model": {}}, protocol=4)), ("plain Python pickle", "Nothing of it was run")),
}
CONTENTS: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "list": (saved([1, 2]), ("no 'model' entry", "a list", "'temperature'")),
    "tensor": (saved(torch.zeros(2)), ("no 'model' entry", "a Tensor")),
    "no model": (entries(model=None), ("no 'model' entry", "config, epoch, temperature")),
    "model is a list": (entries(model=[1]), ("no 'model' entry",)),
    "empty model": (entries(model={}), ("no known task",)),
    "keys are numbers": (entries(model={0: torch.zeros(1)}), ("keys that are not strings",)),
    "retrieval": (
        architecture(
            "itm_head.weight", "text_encoder.encoder.layer.0.crossattention.self.key.bias", "visual_encoder_m.x"
        ),
        ("a retrieval checkpoint", "missing or empty"),
    ),
    "vqa": (architecture("text_encoder.a", "text_decoder.bert.b", DICT), ("a vqa checkpoint", "missing or empty")),
    "caption": (architecture("visual_encoder.a", "text_decoder.bert.b"), ("a caption checkpoint",)),
    "clip": (architecture("visual.conv1.weight", "token_embedding.weight"), ("a clip checkpoint",)),
    "another model": (architecture("conv1.weight", "layer1.0.bn1.weight"), ("no known task", "layer1.0.bn1.weight")),
    "task says otherwise": (entries(config=TINY | {"task": "vqa"}), ("a nlvr checkpoint", "'vqa'")),
    "missing keys": (state(space_dict=None, cls_head__2__bias=None), ("2 missing: cls_head.2.bias, space_dict",)),
    "unexpected keys": (
        state(head__weight=torch.zeros(1), head__bias=torch.zeros(1)),
        ("2 unexpected: head.bias, head.weight",),
    ),
    "many missing keys": (
        entries(model={f"{BERT}.self0.key.bias": torch.zeros(16)}),
        ("96 missing: cls_head.0.bias", "and 88 more"),
    ),
    "misshaped key": (
        state(visual_encoder__blocks__0__attn__qkv__weight=torch.zeros(48, 15)),
        ("1 of the wrong shape", f"{QKV} is [48, 15] and should be [48, 16]"),
    ),
    "key of no elements": (state(visual_encoder__pos_embed=torch.zeros(1, 0, 16)), ("is [1, 0, 16]", "be [1, 5, 16]")),
    "not a tensor": (state(space_dict="x"), ("space_dict is of type str",)),
    "whole numbers": (state(space_dict=torch.zeros(8, 16, dtype=torch.int8)), ("space_dict is int8",)),
    "complex numbers": (state(space_dict=torch.zeros(8, 16, dtype=torch.complex64)), ("space_dict is complex64",)),
    "float8": (state(space_dict=torch.zeros(8, 16).to(torch.float8_e4m3fn)), ("space_dict is float8_e4m3fn",)),
    "sparse": (state(space_dict=torch.zeros(8, 16).to_sparse()), ("space_dict is sparse_coo float32",)),
    "no values": (state(space_dict=torch.zeros(8, 16, device="meta")), ("space_dict is meta",)),
    "nan": (spoiled(QKV, torch.nan), ("NaN or infinite weights", QKV)),
    "infinity": (spoiled(DICT, -torch.inf), ("NaN or infinite weights", f"In {DICT}.")),
    "infinite in float32": (infinite_in_float32, ("NaN or infinite weights", f"In {DICT}.")),
    "negative temperature": (entries(temperature=-0.5), ("temperature in", "-0.5", "finite number")),
    "nan temperature": (entries(temperature=float("nan")), ("temperature in", "nan")),
    "temperature too large": (entries(temperature=1e39), ("temperature in", "1e+39")),
    "temperature far too large": (entries(temperature=10**400), ("temperature in", "finite number")),
    "temperature is text": (entries(temperature="0.5"), ("temperature in", "'0.5'")),
    "temperature is true": (entries(temperature=True), ("temperature in", "True")),
    "temperatures": (entries(temperature=torch.zeros(2)), ("temperature in", "tensor")),
    "heads unknown": (entries(config=None), ("vit_heads, text_heads", "64", '--config, e.g. {"vit_heads": 12')),
    "size unknown": (without_config(DICT), ("sd_num, sd_dim", "missing or empty: space_dict.")),
    "sizes unknown": (
        without_config("visual_encoder.blocks", "visual_encoder.pos_embed"),
        ("image_size, vit_depth, vit_mlp", "visual_encoder.blocks.*", "visual_encoder.pos_embed"),
    ),
    "config with a typo": (entries(config=TINY | {"vit_head": 2}), ("unknown fields: vit_head", "vit_heads")),
}


@pytest.mark.parametrize(("damage", "parts"), [*FILES.values(), *CONTENTS.values()], ids=[*FILES, *CONTENTS])
def test_bad_checkpoint_is_refused_and_nothing_written(
    damage: Damage,
    parts: tuple[str, ...],
    tiny_checkpoint: Write,
    tmp_path: Path,
    outputs: Outputs,
    run_cli: Callable[..., Ran],
) -> None:
    path = damage(tiny_checkpoint, tmp_path / "bad.pt")
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        madtp.load(path)
    assert str(path) in caught.value.what
    assert caught.value.why
    run_cli("--ckpt", path, "--engine", outputs / "out.onnx").refused(*parts)
    outputs.untouched()


class Payload:
    """Unpickling it runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["zip", "old format", "pickle", "old pickle"])
def test_code_in_a_checkpoint_is_not_run(
    form: str, tmp_path: Path, outputs: Outputs, run_cli: Callable[..., Ran]
) -> None:
    trace, path = tmp_path / "ran", tmp_path / "evil.pt"
    payload = Payload(f"touch '{trace}'")
    if "pickle" in form:
        path.write_bytes(pickle.dumps(payload, protocol=2 if form == "old pickle" else None))
    else:
        torch.save({"model": payload}, path, _use_new_zipfile_serialization=form == "zip")
    arguments = ("--ckpt", path, "--engine", outputs / "out.onnx")
    if form == "zip":  # once in a process of its own, where an uncaught error would show
        command = [sys.executable, "-m", "export", *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        ran = Ran(done.returncode, done.stdout, done.stderr)
    else:
        ran = run_cli(*arguments)
    ran.refused("holds more than tensors", "could run code", "Nothing of it was run", "state_dict()")
    assert not trace.exists()
    outputs.untouched()
    torch.load(path, weights_only=False) if "pickle" not in form else pickle.loads(path.read_bytes())
    assert trace.exists(), "the payload would have worked"


def test_damaged_bytes_give_a_typed_error_or_a_model(tiny_checkpoint: Write, tmp_path: Path) -> None:
    """Bytes changed at random in the parts of a file that are not weights never end in another exception."""
    path = tiny_checkpoint()
    old = io.BytesIO()
    torch.save(torch.load(path), old, _use_new_zipfile_serialization=False)
    rng = np.random.default_rng(0)
    refused = 0
    for content, stop in ((path.read_bytes(), 12_000), (old.getvalue(), 8_000)):
        for _ in range(80):
            damaged = bytearray(content)
            damaged[int(rng.integers(stop))] = int(rng.integers(256))
            path.write_bytes(damaged)
            try:
                madtp.load(path)
            except MadtpError:
                refused += 1
    assert refused > 40


# Bad configurations.

CONFIGS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "missing": (None, ("cannot read the configuration", "No such file", "--config")),
    "no json": ("vit_heads: 2", ("is not valid JSON", "line 1")),
    "cut off": ('{"vit_heads": 2', ("is not valid JSON",)),
    "nested too deep": ("[" * 100_000, ("is not valid JSON",)),
    "number too long": ('{"vit_dim": ' + "9" * 5000 + "}", ("is not valid JSON",)),
    "no object": ("[12]", ("is a list", "mapping")),
    "unknown field": ('{"vit_head": 2}', ("unknown fields: vit_head", "fields are:", "vit_heads")),
    "text for a size": ('{"vit_heads": "2"}', ("'vit_heads' is '2'", "type int")),
    "fraction for a size": ('{"vit_heads": 2.5}', ("'vit_heads' is 2.5", "type int")),
    "truth for a size": ('{"vit_heads": true}', ("'vit_heads' is True", "type int")),
    "null for a size": ('{"vit_heads": null}', ("'vit_heads' is None", "type int")),
    "zero": ('{"vit_heads": 0}', ("'vit_heads' is 0", "1 to")),
    "negative": ('{"sep_token_id": -1}', ("'sep_token_id' is -1", "0 to")),
    "too large": ('{"vocab_size": 1000000000000000000}', ("'vocab_size'", "1 to 1000000")),
    "too many layers": ('{"vit_depth": 100000}', ("'vit_depth' is 100000", "1 to 1000")),
    "nan": ('{"vit_layer_norm_eps": NaN}', ("is not valid JSON",)),
    "large": ('{"vit_layer_norm_eps": 1}', ("'vit_layer_norm_eps' is 1", "small positive")),
    "heads do not divide": ('{"vit_heads": 3}', ("vit_dim = 16 cannot be split into vit_heads = 3",)),
    "patches do not fit": ('{"image_size": 33}', ("image_size 33 is not a multiple of patch_size 16",)),
    "widths differ": ('{"sd_dim": 32}', ("vit_dim 16, text_hidden 16 and sd_dim 32 differ",)),
    "id outside the vocabulary": ('{"enc_token_id": 300}', ("enc_token_id is 300", "vocabulary has 300")),
    "other task": ('{"task": "vqa"}', ("a nlvr checkpoint", "'vqa'")),
    "other size": (
        '{"vit_mlp": 64}',
        ("of the wrong shape", "is [32, 16] and should be [64, 16]"),
    ),
    "other image size": ('{"image_size": 64}', ("pos_embed is [1, 5, 16] and should be [1, 17, 16]",)),
    "more layers": ('{"text_layers": 3}', ("missing: text_encoder.encoder.layer.2",)),
    "fewer layers": ('{"text_layers": 1}', ("unexpected: text_encoder.encoder.layer.1",)),
    "other merging": ('{"merge_from": 0}', ("2 missing", "layer.0.crossattention.output.merge_layer.weight")),
}


@pytest.mark.parametrize(("text", "parts"), CONFIGS.values(), ids=CONFIGS)
def test_bad_config_is_refused_and_nothing_written(
    text: str | None,
    parts: tuple[str, ...],
    tiny_checkpoint: Write,
    tmp_path: Path,
    outputs: Outputs,
    run_cli: Callable[..., Ran],
) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    checkpoint = tiny_checkpoint()
    run_cli("--ckpt", checkpoint, "--engine", outputs / "trt.plan", "--config", path).refused(*parts)
    outputs.untouched()


def test_unreadable_config_files(tiny_checkpoint: Write, tmp_path: Path, run_cli: Callable[..., Ran]) -> None:
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe{}")
    for path in (binary, tmp_path, tmp_path / ("x" * 300)):
        ran = run_cli("check", "--ckpt", tiny_checkpoint(), "--engine", tmp_path / "out.onnx", "--config", path)
        ran.refused("cannot read the configuration", str(path), "readable JSON file")


@pytest.mark.parametrize("config", [[1], [("vit_heads", 2)], 5])
def test_a_config_that_is_no_mapping(config: Any, tiny_checkpoint: Write) -> None:
    with pytest.raises(ConfigError, match="config is a"):
        madtp.load(tiny_checkpoint(), config)
