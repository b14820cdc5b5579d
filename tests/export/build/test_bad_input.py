"""Bad options, outputs, samples and manifests, and parity that fails: a clear error, nothing written, nothing lost."""

import json
import math
import os
import shutil
import struct
import zlib
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import export.build.pipeline
import export.engine.backends
import export.errors
import madtp
import madtp.files.scratch
from export.artifact.manifest import TensorInfo
from export.artifact.reader import manifest_path, read_manifest
from export.engine.builder import BuildResult
from export.engine.range import Range
from export.runtime.checked import CheckedRunner
from export.runtime.onnx_runner import OnnxRunner
from export.samples.synthetic import synthetic_samples
from export.validate.parity import compare
from madtp.data.images import read_image
from madtp.data.preprocess import image_tensor
from madtp.errors import InputError, MadtpError, OutputError
from madtp.files.inputs import sha256
from madtp.files.staging import Staging
from madtp.models.parts import parts_of
from madtp.tasks.requests import torch_runners
from tests.conftest import MODES, TINY, WORDS, Outputs, Ran, largest_file, write_samples
from tests.helpers.manifests import edit_manifest

Run = Callable[..., Ran]
Write = Callable[..., Path]


def test_every_error_type_says_what_why_and_what_to_do() -> None:
    types = [MadtpError, *MadtpError.__subclasses__()]
    assert {t.__name__ for t in types} >= {"CheckpointError", "ConfigError", "InputError", "OptionError", "OutputError"}
    for error in (kind("what", "why", "fix") for kind in types):
        assert (error.what, error.why, error.fix, str(error)) == ("what", "why", "fix", "what\nwhy\nfix")


# Options. `{folder}` is where the earlier outputs are.

OPTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "unknown option": ("--nope", ("No such option '--nope'",)),
    "no engine": ("--engine=", ("--engine '.' ends in ''", "out.plan or out.onnx")),
    "other suffix": ("--engine={folder}/out.trt", ("ends in '.trt'", "out.plan or out.onnx")),
    "no suffix": ("--engine={folder}/out", ("ends in ''",)),
    "suffix of the manifest": ("--engine={folder}/out.json", ("ends in '.json'",)),
    "batch is text": ("--batch=a:b:c", ("--batch is 'a:b:c'", "MIN:OPT:MAX")),
    "two numbers": ("--batch=1:2", ("--batch is '1:2'", "MIN:OPT:MAX")),
    "batch of none": ("--batch=0:1:2", ("--batch: 0:1:2", "1 <= MIN <= OPT <= MAX", "E.g. --batch")),
    "negative batch": ("--batch=-1", ("--batch: -1:-1:-1",)),
    "descending batch": ("--batch=4:2:8", ("--batch: 4:2:8", "MIN <= OPT <= MAX")),
    "batch too large": ("--batch=1:1:2147483648", ("<= 2147483647",)),
    "more than samples": ("--batch=17:17:18", ("needs 17 samples", "There are 16")),
    "descending text": ("--text=9:8:7", ("--text: 9:8:7",)),
    "text of one token": ("--text=1:8:16", ("allows one token", "first id and [SEP]")),
    "text over the positions": ("--text=2:8:41", ("allows 41 tokens", "40 positions", "at most 40")),
    "text under the samples": ("--text=2:3:4", ("do not fit the text length 2:3:4", "Use --text 2:3:9")),
    "text over the samples": ("--text=20:20:40", ("do not fit the text length 20:20:40", "Use --text 7:20:40")),
    "temperature is text": ("--temperature=warm", ("Invalid value for '--temperature'",)),
    "negative temperature": ("--temperature=-1", ("--temperature is -1.0", "zero or more")),
    "nan temperature": ("--temperature=nan", ("--temperature is nan",)),
    "infinite temperature": ("--temperature=inf", ("--temperature is inf",)),
    "temperature too large": ("--temperature=1e39", ("--temperature is 1e+39",)),
    "fp16": ("--precision=fp16", ("--precision fp16 is not available", "Use --precision fp32")),
    "int8": ("--precision=int8", ("--precision int8 is not available", "nothing was built in another precision")),
    "unknown precision": ("--precision=fp4", ("--precision 'fp4' is unknown", "Use --precision fp32")),
    "packed": ("--layout=packed", ("--layout packed is not available", "Use --layout dynamic")),
    "no plugin library": (
        "--engine={folder}/trt.plan --plugins=nowhere.so",
        ("cannot read the plugin library 'nowhere.so'", "leave --plugins out"),
    ),
    "another file as plugin library": (
        "--engine={folder}/trt.plan --plugins={folder}/out.onnx",
        ("out.onnx' is not a plugin library of this project", "./build.sh plugins"),
    ),
    "plugins for onnx": (
        "--plugins=some.so",
        ("--plugins some.so has no use for an .onnx file", "Leave --plugins out"),
    ),
    "embedding for onnx": ("--embed-plugins", ("no plugin library to embed", "Leave --embed-plugins out")),
    "embedding without plugins": (
        "--engine={folder}/trt.plan --plugins=none --embed-plugins",
        ("no plugin library to embed",),
    ),
    "tokens for onnx": ("--tokens=tokens.json", ("nothing is tuned with it", "Leave --tokens out")),
    "no token statistics": (
        "--engine={folder}/trt.plan --tokens=nowhere.json",
        ("cannot read the token statistics 'nowhere.json'", "python -m calibration tokens"),
    ),
    "plan as token statistics": (
        "--engine={folder}/trt.plan --tokens={folder}/out.onnx",
        ("cannot read the token statistics",),
    ),
    "calib": ("--calib=data", ("--calib is given but nothing is quantised", "Leave --calib out")),
    "unknown backend": ("--backend=openvino", ("Invalid value for '--backend'", "tensorrt-rtx")),
    "tensorrt writes no onnx": ("--backend=tensorrt", ("--backend tensorrt does not write .onnx",)),
    "onnxruntime writes no plan": (
        "--engine={folder}/trt.plan --backend=onnxruntime",
        ("--backend onnxruntime does not write .plan", "Leave --backend out"),
    ),
}


@pytest.mark.parametrize("command", [(), ("check",)], ids=["export", "check"])
@pytest.mark.parametrize(("options", "parts"), OPTIONS.values(), ids=OPTIONS)
def test_bad_option(
    options: str,
    parts: tuple[str, ...],
    command: tuple[str, ...],
    tiny_checkpoint: Write,
    outputs: Outputs,
    run_cli: Run,
) -> None:
    given = options.format(folder=outputs.folder).split()
    run_cli(*command, "--ckpt", tiny_checkpoint(), "--engine", outputs / "out.onnx", *given).refused(*parts)
    outputs.untouched()


USAGE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "nothing": ((), ("Missing option '--ckpt'",)),
    "no engine": (("--ckpt", "x.pt"), ("Missing option '--engine'",)),
    "unknown command": (("build",), ("No such command 'build'",)),
    "options before the command": (
        ("--ckpt", "x.pt", "check", "--engine", "x.onnx"),
        ("options go after the command",),
    ),
    "validate without checkpoint": (("validate", "--engine", "x.onnx"), ("Missing option '--ckpt'",)),
    "validate on a folder and a data set": (
        ("validate", "--engine", "x.onnx", "--ckpt", "x.pt", "--samples", "x", "--data", "x"),
        ("--samples and --data exclude each other",),
    ),
    "validate on both": (
        ("validate", "--engine", "x.onnx", "--ckpt", "x.pt", "--samples", "x", "--synthetic"),
        ("--samples and --synthetic exclude each other",),
    ),
    "validate a folder": (
        ("validate", "--engine", "/", "--ckpt", "x.pt"),
        ("--engine '/' is no artifact and no manifest", "out.json"),
    ),
}


@pytest.mark.parametrize(("arguments", "parts"), USAGE.values(), ids=USAGE)
def test_bad_usage(arguments: tuple[str, ...], parts: tuple[str, ...], run_cli: Run) -> None:
    run_cli(*arguments).refused(*parts)


@pytest.mark.parametrize("installed", [True, False])
def test_tensorrt_without_a_gpu(
    installed: bool, tiny_checkpoint: Write, outputs: Outputs, run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = export.engine.backends.Gpu("some GPU", (9, 0), "1")
    monkeypatch.setattr(export.engine.backends, "find_gpus", lambda: [] if installed else [gpu])
    monkeypatch.setattr(export.engine.backends, "_installed", lambda module: installed)
    ran = run_cli("--ckpt", tiny_checkpoint(), "--engine", outputs / "trt.plan", "--backend", "tensorrt")
    ran.refused(*(("no CUDA device", "--backend tensorrt-rtx") if installed else ("pip install tensorrt",)))
    outputs.untouched()


# Outputs.


def test_outputs_that_cannot_be_written(tiny_checkpoint: Write, outputs: Outputs, tmp_path: Path, run_cli: Run) -> None:
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "other.json").mkdir()
    for engine, parts in {
        tmp_path / "missing" / "out.onnx": ("cannot write into", "does not exist", "mkdir -p"),
        outputs / "out.json" / "out.onnx": ("cannot write into", "It is a file"),
        tmp_path / "folder.onnx": ("cannot write", "It is a folder"),
        tmp_path / "other.onnx": ("cannot write", "other.json", "It is a folder"),
        tmp_path / f"{'x' * 300}.onnx": ("cannot write", "File name too long"),
        Path("/proc/out.onnx"): ("'/proc'",),
    }.items():
        run_cli("--ckpt", tiny_checkpoint(), "--engine", engine).refused(*parts)
    outputs.untouched()
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("early", [True, False])
def test_no_permission_to_write(
    early: bool, tiny_checkpoint: Write, outputs: Outputs, run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The superuser, whom tests may run as, is never refused by the file system."""

    def refuse(**_: object) -> str:
        raise PermissionError(13, "Permission denied")

    if early:
        allowed = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and allowed(path, mode))
    else:  # e.g. a file system that is mounted read-only
        monkeypatch.setattr(madtp.files.scratch.tempfile, "mkdtemp", refuse)
    ran = run_cli("--ckpt", tiny_checkpoint(), "--engine", outputs / "out.onnx")
    ran.refused("cannot write", "ermission", "Name a folder that you can write to")
    outputs.untouched()


@pytest.mark.parametrize("name", ["out.json", "out.onnx", "samples.json", "link.json"])
def test_an_input_is_not_overwritten(name: str, tiny_checkpoint: Write, tmp_path: Path, run_cli: Run) -> None:
    """The manifest of model.onnx is model.json, which is a natural name for its configuration too."""
    folder = write_samples(tmp_path / "samples")
    checkpoint = tiny_checkpoint("samples/out.onnx")
    (folder / "out.json").write_text(json.dumps(TINY))
    (folder / "link.json").symlink_to("samples.json")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    ran = run_cli(
        *("--ckpt", checkpoint, "--engine", (folder / name).with_suffix(".onnx")),
        *(("--config", folder / "out.json") if name == "out.json" else ()),
        *("--samples", folder),
    )
    ran.refused("would overwrite", "This run reads it", "Name another file")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_too_little_room_is_noticed_before_anything_is_built(
    tiny_checkpoint: Write, outputs: Outputs, run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 100, 200_000))
    checkpoint = tiny_checkpoint()  # 117 kB of weights
    assert run_cli("check", "--ckpt", checkpoint, "--engine", outputs / "out.onnx").status == 0
    for command in ((), ("check",)):
        ran = run_cli(*command, "--ckpt", checkpoint, "--engine", outputs / "trt.plan")
        ran.refused("not enough room", "MB are free", "Free some space")
        assert "tracing" not in ran.err
    outputs.untouched()


@pytest.mark.parametrize(("name", "room"), [("out.onnx", 100_000), ("trt.plan", 100_000), ("trt.plan", 1_000_000)])
def test_disk_full_while_writing(
    name: str, room: int, tiny_checkpoint: Write, outputs: Outputs, run_cli: Run, quick: pytest.MonkeyPatch
) -> None:
    """The ONNX file has 0.2 MB; the plan, which the builder's own process writes, many."""
    backend = () if name == "out.onnx" else ("--backend", "tensorrt-rtx")
    checkpoint = tiny_checkpoint()
    with largest_file(room):
        ran = run_cli("--ckpt", checkpoint, "--engine", outputs / name, *backend)
    ran.refused("the disk is full", f"cannot write '{outputs / name}'", "Free some space")
    assert ("building the engine" in ran.err) == (name == "trt.plan")
    outputs.untouched()


def test_builder_that_fails_or_dies(
    tiny_checkpoint: Write, outputs: Outputs, run_cli: Run, quick: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = tmp_path / "builder"
    for text, parts in {
        "import sys; sys.exit('unsupported node: Foo')": ("did not build the engine", "unsupported node: Foo"),
        "import os; os.kill(os.getpid(), 9)": ("did not build the engine", "status -9"),
    }.items():
        module.with_suffix(".py").write_text(text)
        quick.setenv("PYTHONPATH", str(tmp_path))
        quick.setattr(export.engine.builder, "WORKER", module.name)
        run_cli("--ckpt", tiny_checkpoint(), "--engine", outputs / "trt.plan").refused(*parts, "--engine out.onnx")
    outputs.untouched()


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_outputs_are_replaced_all_or_none(failing: int, outputs: Outputs, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["trt.timing", "trt.plan", "trt.json"]  # the first is new, the others replace earlier ones
    replace, calls = os.replace, iter(range(100))

    def fail_once(source: Path, target: Path) -> None:
        if next(calls) == failing:
            raise PermissionError(1, "Operation not permitted")
        replace(source, target)

    with Staging(outputs / "trt.plan") as staging:
        for name in names:
            (staging.folder / name).write_text("new")
        monkeypatch.setattr(os, "replace", fail_once)
        with pytest.raises(OutputError, match="not permitted"):
            staging.commit(names)
    outputs.untouched()


# Samples.


def entry(**changes: Any) -> dict[str, Any]:
    good = {"sentence": "both images show one", "images": ["0-left.png", "0-right.png"], "label": "True"}
    return {key: value for key, value in {**good, **changes}.items() if value is not None}


def png(width: int, height: int) -> bytes:
    """A picture that its header says is large, without the pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def image_of(content: bytes | Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "1-left.png"
        path.write_bytes(content(path.read_bytes()) if callable(content) else content)

    return change


def index_of(content: Any) -> Callable[[Path], object]:
    text = content if isinstance(content, str) else json.dumps(content)
    return lambda folder: (folder / "samples.json").write_text(text)


def vocabulary_of(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / "vocab.txt").write_bytes(change((folder / "vocab.txt").read_bytes()))


def pipe(name: str) -> Callable[[Path], object]:
    def replace(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return replace


def deep_image(folder: Path) -> None:
    Image.fromarray(np.full((9, 9), 40_000, dtype=np.uint16)).save(folder / "1-left.png")


SAMPLES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no folder": (shutil.rmtree, ("there is no folder", "samples.json", "vocab.txt")),
    "no list": (lambda folder: (folder / "samples.json").unlink(), ("cannot read", "samples.json", "No such file")),
    "list is no json": (index_of("sentence,left,right"), ("cannot read", "samples.json", "JSON list")),
    "list is no text": (lambda folder: (folder / "samples.json").write_bytes(b"\xff"), ("cannot read", "samples.json")),
    "list is nested too deep": (index_of("[" * 100_000), ("cannot read", "samples.json")),
    "list is an object": (index_of({}), ("lists no samples", "at least 8")),
    "too few": (index_of([entry()] * 7), ("lists 7 samples", "at least 8")),
    "entry is text": (index_of([entry()] * 8 + ["x"]), ("entry 8 of", "has no sentence")),
    "no sentence": (index_of([entry()] * 8 + [entry(sentence=None)]), ("entry 8 of", "has no sentence")),
    "sentence is a number": (index_of([entry(sentence=1)] * 8), ("entry 0 of", "has no sentence")),
    "no images": (index_of([entry(images=None)] * 8), ("entry 0 of", "does not name two images")),
    "one image": (index_of([entry(images=["0-left.png"])] * 8), ("entry 0 of", "does not name two images")),
    "image is a number": (index_of([entry(images=[1, 2])] * 8), ("entry 0 of", "does not name two images")),
    "image name is no name": (index_of([entry(images=["\0", "\0"])] * 8), ("cannot read the image",)),
    "image is missing": (lambda folder: (folder / "1-left.png").unlink(), ("cannot read the image", "1-left.png")),
    "image is a folder": (index_of([entry(images=[".", "."])] * 8), ("cannot read the image", "directory")),
    "image is empty": (image_of(b""), ("cannot read the image", "1-left.png", "cannot identify")),
    "image is text": (image_of(b"not a picture"), ("cannot read the image", "1-left.png", "cannot identify")),
    "image is cut off": (
        image_of(lambda content: content[: len(content) // 2]),
        ("cannot read the image", "truncated"),
    ),
    "image is large": (image_of(png(9000, 9000)), ("9000 x 9000 pixels", "Scale it down")),
    "image is enormous": (image_of(png(100_000, 100_000)), ("cannot read the image", "10000000000 pixels")),
    "image of a size that Pillow warns of": (image_of(png(10_000, 10_000)), ("10000 x 10000 pixels", "Scale it down")),
    "image is a pipe": (pipe("1-left.png"), ("cannot read the image", "1-left.png", "It is a pipe")),
    "list is a pipe": (pipe("samples.json"), ("cannot read", "samples.json", "It is a pipe")),
    "label is neither": (
        index_of([entry(label="maybe")] * 8),
        ("entry 0 of", "has the label 'maybe'", "True or False"),
    ),
    "label is an object": (index_of([entry(label={})] * 8), ("entry 0 of", "has the label {}")),
    "image is deep": (deep_image, ("more than 8 bits a channel", "I;16", "Convert it to 8 bits")),
    "sentence over the positions": (
        index_of([entry(sentence="image " * 39)] * 8),
        ("sample 0: the text 'image image", "has 41 tokens", "40 positions", "Shorten the text"),
    ),
    "no vocabulary": (lambda folder: (folder / "vocab.txt").unlink(), ("no vocab.txt in", "or beside", "Copy it to")),
    "vocabulary too small": (
        vocabulary_of(lambda content: content[: content.rindex(b"[unused")]),
        ("does not belong to this checkpoint", "297 pieces; the model has 300"),
    ),
    "vocabulary too large": (vocabulary_of(lambda content: content + b"more\n"), ("299 pieces; the model has 300",)),
    "vocabulary of another kind": (vocabulary_of(lambda content: content.replace(b"[SEP]", b"</s>")), ("lacks [SEP]",)),
    "vocabulary is no text": (vocabulary_of(lambda content: b"\xff" + content), ("cannot read the vocabulary",)),
}


@pytest.mark.parametrize(("damage", "parts"), SAMPLES.values(), ids=SAMPLES)
def test_bad_samples(
    damage: Callable[[Path], object],
    parts: tuple[str, ...],
    samples_folder: Path,
    tiny_checkpoint: Write,
    tmp_path: Path,
    outputs: Outputs,
    run_cli: Run,
) -> None:
    folder = shutil.copytree(samples_folder, tmp_path / "samples")
    damage(folder)
    arguments = ("--ckpt", tiny_checkpoint(), "--samples", folder)
    run_cli(*arguments, "--engine", outputs / "out.onnx").refused(*parts)
    outputs.untouched()


def test_samples_outside_the_text_and_batch_sizes(
    samples_folder: Path, tiny_checkpoint: Write, outputs: Outputs, run_cli: Run
) -> None:
    arguments = ("--ckpt", tiny_checkpoint(), "--engine", outputs / "out.onnx", "--samples", samples_folder)
    run_cli(*arguments, "--text", "2:4:8").refused("sentences of 5 to 12 tokens", "Use --text 2:4:12")
    run_cli(*arguments, "--batch", "9").refused("--batch 9:9:9 needs 9 samples", "There are 8", str(samples_folder))
    outputs.untouched()


def test_images_of_every_mode_are_accepted(samples_folder: Path, tiny_checkpoint: Write, run_cli: Run) -> None:
    ran = run_cli(
        *("check", "--ckpt", tiny_checkpoint(), "--engine", samples_folder / "out.onnx", "--samples", samples_folder)
    )
    assert ran.status == 0
    seen = set()
    for path in sorted(samples_folder.glob("*-left.*")):
        image = read_image(path)
        seen.add(image.mode)
        rgb = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC), np.float32) / 255
        tensor = image_tensor(image, 32)
        assert tensor.shape == (3, 32, 32)
        mean, std = (
            np.float32(value) for value in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
        )
        np.testing.assert_allclose(tensor.numpy().transpose(1, 2, 0), (rgb - mean) / std, atol=1e-6)
    assert seen == set(MODES)


def test_a_vocabulary_of_another_model_beside_the_checkpoint_is_not_used(
    tiny_checkpoint: Write, tmp_path: Path, run_cli: Run
) -> None:
    checkpoint = tiny_checkpoint()
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    ran = run_cli("check", "--ckpt", checkpoint, "--engine", tmp_path / "out.onnx")
    assert ran.status == 0
    assert "no vocab.txt fits" in ran.out


def test_paths_may_hold_brackets(tiny_checkpoint: Write, tmp_path: Path, run_cli: Run) -> None:
    folder = tmp_path / "[red]" / "[" / "b]"
    folder.mkdir(parents=True)
    checkpoint = tiny_checkpoint("[red]/[/b]/x.pt")
    ran = run_cli("check", "--ckpt", checkpoint, "--engine", folder / "out.onnx")
    assert ran.status == 0
    assert "[red]" in ran.out


# Requests to an artifact.

PROFILE = {
    "image0": [[2, 3, 32, 32], [2, 3, 32, 32], [4, 3, 32, 32]],
    "image1": [[2, 3, 32, 32], [2, 3, 32, 32], [4, 3, 32, 32]],
    "input_ids": [[2, 3], [2, 8], [4, 16]],
    "attention_mask": [[2, 3], [2, 8], [4, 16]],
}
INPUTS = [
    *(TensorInfo(name, "float32", ("batch", 3, 32, 32)) for name in ("image0", "image1")),
    *(TensorInfo(name, "int64", ("batch", "text")) for name in ("input_ids", "attention_mask")),
    TensorInfo("temperature", "float32", ()),
]


def request_of(batch: int = 2, length: int = 8) -> dict[str, torch.Tensor]:
    images = {name: torch.zeros(batch, 3, 32, 32) for name in ("image0", "image1")}
    return images | {name: torch.ones(batch, length, dtype=torch.int64) for name in ("input_ids", "attention_mask")}


REQUESTS: dict[str, tuple[dict[str, torch.Tensor], tuple[str, ...]]] = {
    "image of another size": (request_of() | {"image1": torch.zeros(2, 3, 48, 32)}, ("'image1'", "[2, 3, 48, 32]")),
    "grey image": (request_of() | {"image0": torch.zeros(2, 1, 32, 32)}, ("'image0'", "[2, 1, 32, 32]")),
    "image without a batch": (request_of() | {"image0": torch.zeros(3, 32, 32)}, ("'image0'", "[3, 32, 32]")),
    "image of bytes": (
        request_of() | {"image0": torch.zeros(2, 3, 32, 32, dtype=torch.uint8)},
        ("'image0' is uint8", "float32"),
    ),
    "ids of 32 bits": (
        request_of() | {"input_ids": torch.ones(2, 8, dtype=torch.int32)},
        ("'input_ids' is int32", "int64"),
    ),
    "batch too small": (request_of(batch=1), ("[1, 3, 32, 32]", "another --batch or --text")),
    "batch too large": (request_of(batch=5), ("[5, 3, 32, 32]", "another --batch or --text")),
    "text too short": (request_of(length=2), ("'input_ids'", "[2, 2]", "[2, 3] to [4, 16]")),
    "text too long": (request_of(length=17), ("'input_ids'", "[2, 17]", "[2, 3] to [4, 16]")),
    "input missing": (
        {"image0": torch.zeros(2, 3, 32, 32)},
        ("the inputs are image0", "attention_mask, image0, image1"),
    ),
    "input unknown": (request_of() | {"image": torch.zeros(1)}, ("attention_mask, image, image0",)),
}


@pytest.mark.parametrize(("request_", "parts"), REQUESTS.values(), ids=REQUESTS)
def test_bad_request(request_: dict[str, torch.Tensor], parts: tuple[str, ...]) -> None:
    ran = []

    class Recorder:
        def run(self, inputs: object, temperature: float) -> dict[str, torch.Tensor]:
            ran.append(inputs)
            return {}

    runner = CheckedRunner(Recorder(), INPUTS, [], PROFILE)
    for batch, length in ((2, 3), (4, 16)):
        runner.run(request_of(batch, length), 1.0)
    with pytest.raises(InputError) as caught:
        runner.run(request_, 1.0)
    assert len(ran) == 2
    for part in parts:
        assert part in str(caught.value)


# Validation of an artifact that is there.


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    return lambda artifact: edit_manifest(manifest_path(artifact), change)


def resize(name: str, index: int, shape: list[int]) -> Callable[[Path], object]:
    return edited(lambda manifest: manifest["parts"][0]["profile"][name].__setitem__(index, shape))


def append(name: str) -> Callable[[Path], object]:
    return lambda artifact: artifact.with_name(name).open("ab").write(b"\0")


def unusable(artifact: Path) -> None:
    """A damaged artifact whose manifest agrees."""
    artifact.write_bytes(artifact.read_bytes()[:1000])
    edit_manifest(manifest_path(artifact), lambda manifest: manifest["parts"][0].update(sha256=sha256(artifact)))


MANIFESTS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no manifest": (
        lambda artifact: manifest_path(artifact).unlink(),
        ("cannot read the manifest", "Keep artifact and manifest together"),
    ),
    "no json": (lambda artifact: manifest_path(artifact).write_text("{"), ("cannot read the manifest",)),
    "no text": (lambda artifact: manifest_path(artifact).write_bytes(b"\xff"), ("cannot read the manifest",)),
    "list": (lambda artifact: manifest_path(artifact).write_text("[1]"), ("is of schema None", "reads schema 4")),
    "later schema": (edited(lambda manifest: manifest.update(schema=5)), ("is of schema 5", "reads schema 4")),
    "field missing": (
        edited(lambda manifest: manifest.pop("temperature")),
        ("malformed", "'temperature' is a required"),
    ),
    "field of another type": (
        edited(lambda manifest: manifest.update(temperature="warm")),
        ("$.temperature", "'warm'"),
    ),
    "temperature below zero": (edited(lambda manifest: manifest.update(temperature=-1)), ("$.temperature", "minimum")),
    "temperature too large": (
        edited(lambda manifest: manifest.update(temperature=10**39)),
        ("$.temperature", "maximum"),
    ),
    "not a number": (edited(lambda manifest: manifest.update(temperature=math.nan)), ("cannot read", "not JSON")),
    "infinite": (edited(lambda manifest: manifest["config"].update(extra=math.inf)), ("cannot read", "not JSON")),
    "half a character": (edited(lambda manifest: manifest.update(created="\ud800")), ("cannot read", "surrogates")),
    "unknown field": (edited(lambda manifest: manifest.update(extra=1)), ("malformed", "extra")),
    "no parts": (edited(lambda manifest: manifest.update(parts=[])), ("malformed", "$.parts")),
    "profile missing": (
        edited(lambda manifest: manifest["parts"][0]["profile"].pop("input_ids")),
        ("malformed", "profile and inputs differ"),
    ),
    "profile of another rank": (resize("input_ids", 0, [1]), ("malformed", "profile and inputs differ")),
    "profile descends": (resize("image0", 0, [9, 3, 32, 32]), ("9:1:8",)),
    "artifact changed": (append("out.onnx"), ("out.onnx' is not the file", "sha256 is another", "export again")),
    "checkpoint changed": (append("tiny.pt"), ("tiny.pt' is not the file", "sha256 is another")),
    "artifact missing": (Path.unlink, ("there is no artifact", "missing or was renamed")),
    "artifact of another name": (
        edited(lambda manifest: manifest["parts"][0].update(artifact="other.onnx")),
        ("other.onnx' is not the file", "No such file"),
    ),
    "manifest of another name": (
        edited(lambda manifest: manifest.update(artifact="other.onnx")),
        ("is the manifest of 'other.onnx', not of 'out.onnx'", "Keep artifact and manifest together"),
    ),
    "part missing": (
        edited(lambda manifest: manifest["parts"][0].update(name="encoder")),
        ("lists the parts encoder", "A nlvr model has model"),
    ),
    "part of another checkpoint": (
        edited(lambda manifest: manifest["parts"][0].update(checkpoint_sha256="0" * 64)),
        ("the part 'model' was made from another checkpoint",),
    ),
    "weights missing": (
        edited(lambda manifest: manifest["parts"][0].update(external_data={"file": "w.data", "sha256": "0" * 64})),
        ("w.data' is not the file", "No such file"),
    ),
    "artifact unusable": (unusable, ("onnxruntime", "cannot load", "a tool changed it so; export again")),
    "text over the artifact's": (
        lambda artifact: (resize("input_ids", 1, [1, 4])(artifact), resize("input_ids", 2, [8, 5])(artifact)),
        ("sentences of 7 to 9 tokens do not fit the text length 2:4:5",),
    ),
    "fewer samples than the artifact's batch": (
        edited(lambda manifest: manifest["parts"][0]["profile"].update(image0=[[20, 3, 32, 32]] * 3)),
        ("needs 20 samples at once", "There are 16"),
    ),
}


@pytest.mark.parametrize(("damage", "parts"), MANIFESTS.values(), ids=MANIFESTS)
def test_validate_refuses(
    damage: Callable[[Path], object], parts: tuple[str, ...], exported: tuple[Path, Path], run_cli: Run
) -> None:
    artifact, checkpoint = exported
    damage(artifact)
    before = {path: path.read_bytes() for path in artifact.parent.iterdir()}
    run_cli("validate", "--engine", artifact, "--ckpt", checkpoint).refused(*parts)
    assert {path: path.read_bytes() for path in artifact.parent.iterdir()} == before


def test_validate_refuses_another_checkpoint_and_config(
    exported: tuple[Path, Path], tiny_checkpoint: Write, tmp_path: Path, run_cli: Run
) -> None:
    artifact, checkpoint = exported
    other = tiny_checkpoint("other.pt", temperature=0.5)
    for given in (other, tmp_path / "missing.pt"):
        run_cli("validate", "--engine", artifact, "--ckpt", given).refused(
            f"'{given}' is not the file", "of one export"
        )
    config = tmp_path / "config.json"
    config.write_text('{"vit_heads": 3}')
    run_cli("validate", "--engine", artifact, "--ckpt", checkpoint, "--config", config).refused("cannot be split")
    ran = run_cli("validate", "--engine", artifact, "--ckpt", checkpoint, "--samples", tmp_path / "missing")
    ran.refused("there is no folder")


def test_validate_on_synthetic_samples_keeps_to_the_artifact_s_sizes(
    exported: tuple[Path, Path], run_cli: Run, quick: pytest.MonkeyPatch
) -> None:
    artifact, checkpoint = exported

    def narrow(manifest: dict[str, Any]) -> None:
        profile = manifest["parts"][0]["profile"]
        profile["input_ids"] = profile["attention_mask"] = [[9, 3], [9, 4], [10, 5]]
        profile["image0"] = profile["image1"] = [[size, 3, 32, 32] for size in (9, 9, 10)]

    edit_manifest(manifest_path(artifact), narrow)
    ran = run_cli("validate", "--engine", artifact, "--ckpt", checkpoint, "--synthetic")
    assert ran.status == 0, ran
    assert "9 synthetic samples" in ran.out


def test_validate_a_plan_where_its_runtime_is_missing(
    exported: tuple[Path, Path], run_cli: Run, quick: pytest.MonkeyPatch
) -> None:
    """A plan of TensorRT on a machine without a GPU: the ONNX traced from the checkpoint is compared, and said so."""
    quick.setattr(export.engine.backends, "find_gpus", list)
    artifact, checkpoint = exported
    plan = artifact.rename(artifact.with_suffix(".plan"))

    def as_plan(manifest: dict[str, Any]) -> None:
        manifest["backend"]["name"] = "tensorrt"
        manifest["artifact"] = manifest["parts"][0]["artifact"] = plan.name

    edit_manifest(manifest_path(plan), as_plan)
    ran = run_cli("validate", "--engine", plan, "--ckpt", checkpoint)
    assert ran.status == 0, ran
    assert "the plan was not run" in ran.out


# Parity.


def shifted(name: str, difference: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda answer: answer.update({name: answer[name] + torch.tensor(difference, dtype=answer[name].dtype)})


def swapped(answer: dict[str, torch.Tensor]) -> None:
    answer["logits"] = answer["logits"].flip(1)


DIFFERENCES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], tuple[str, ...]]] = {
    "logits": (shifted("logits", 1.0), ("logits differ by 1.00e+00",)),
    "logits, slightly": (shifted("logits", 1e-3), ("logits differ by 1.0", "allowed")),
    "nan": (shifted("logits", np.nan), ("logits differ by nan",)),
    "infinity": (shifted("logits", np.inf), ("logits differ by inf",)),
    "decisions": (swapped, ("decisions differ",)),
    "vision tokens": (shifted("vision_token_counts", 1), ("token counts differ first at vision layer 0",)),
    "text tokens": (shifted("text_token_counts", -1), ("token counts differ first at text layer 0",)),
}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[dict[str, torch.Tensor]], object]], None]:
    """Make artifacts give other answers than they do."""

    def change(alter: Callable[[dict[str, torch.Tensor]], object]) -> None:
        run = OnnxRunner.run

        def altered(self: OnnxRunner, inputs: Any, temperature: float) -> dict[str, torch.Tensor]:
            answer = run(self, inputs, temperature)
            alter(answer)
            return answer

        monkeypatch.setattr(OnnxRunner, "run", altered)

    return change


@pytest.mark.parametrize(("alter", "parts"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_an_artifact_that_answers_otherwise_is_not_written(
    alter: Callable[[dict[str, torch.Tensor]], object],
    parts: tuple[str, ...],
    answers: Callable[..., None],
    tiny_checkpoint: Write,
    outputs: Outputs,
    run_cli: Run,
    quick: pytest.MonkeyPatch,
) -> None:
    answers(alter)
    ran = run_cli("--ckpt", tiny_checkpoint(), "--engine", outputs / "out.onnx")
    assert ran.status == 1, ran
    assert "FAILED" in ran.out
    assert "parity FAILED, nothing was written" in ran.out
    assert "wrote" not in ran.out
    for part in parts:
        assert part in ran.out
    outputs.untouched()


def test_a_plan_whose_onnx_answers_otherwise_is_not_written(
    answers: Callable[..., None], tiny_checkpoint: Write, outputs: Outputs, run_cli: Run, quick: pytest.MonkeyPatch
) -> None:
    def build(backend: object, source: Path, plan: Path, cache: Path, *_: object) -> BuildResult:
        plan.write_text("plan")
        cache.write_text("cache")
        return BuildResult(1, {}, timing_cache_reused=False, shown=[])

    quick.setattr(export.build.pipeline, "build_plan", build)
    quick.setattr(export.engine.backends, "find_gpus", list)
    answers(shifted("logits", 1.0))
    ran = run_cli("--ckpt", tiny_checkpoint(), "--engine", outputs / "trt.plan", "--backend", "tensorrt-rtx")
    assert ran.status == 1, ran
    assert "parity FAILED, nothing was written" in ran.out
    outputs.untouched()


def test_a_model_that_answers_nan_fails(tiny_checkpoint: Write) -> None:
    """Finite weights whose products overflow: the artifact agrees with torch, but on nothing."""
    last = torch.tensor([[3e38], [-3e38]]).repeat(1, 16)
    model = madtp.load(
        tiny_checkpoint(state={"cls_head.0.weight": torch.full((16, 16), 3e38), "cls_head.2.weight": last})
    )
    samples = synthetic_samples(model.config, Range(1, 1, 2), Range(2, 8, 16))
    result = compare(model.config, parts_of(model), torch_runners(parts_of(model)), samples, 1.0, Range(1, 1, 2))
    assert not result.passed
    assert "logits differ by nan" in result.failures[0]


def test_validate_finds_an_artifact_with_other_weights(
    exported: tuple[Path, Path], run_cli: Run, quick: pytest.MonkeyPatch
) -> None:
    artifact, checkpoint = exported
    model = onnx.load(str(artifact))
    for tensor in model.graph.initializer:
        if tensor.name == "cls_head.2.bias":
            values = onnx.numpy_helper.to_array(tensor) + np.float32(0.01)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, str(artifact))
    run_cli("validate", "--engine", artifact, "--ckpt", checkpoint).refused("sha256 is another")
    edit_manifest(manifest_path(artifact), lambda manifest: manifest["parts"][0].update(sha256=sha256(artifact)))
    ran = run_cli("validate", "--engine", artifact, "--ckpt", checkpoint)
    assert ran.status == 1, ran
    assert "FAILED" in ran.out
    assert "logits differ by 1.00e-02" in ran.out


def test_a_good_export_replaces_earlier_outputs(
    samples_folder: Path, tiny_checkpoint: Write, outputs: Outputs, run_cli: Run, quick: pytest.MonkeyPatch
) -> None:
    """The counterpart of all of the above: the same fixtures, nothing wrong."""
    ran = run_cli("--ckpt", tiny_checkpoint(), "--engine", outputs / "out.onnx", "--samples", samples_folder)
    assert ran.status == 0, ran
    assert f"wrote {outputs / 'out.onnx'}" in ran.out
    assert sorted(path.name for path in outputs.folder.iterdir()) == [
        "out.json",
        "out.onnx",
        "out.vocab.txt",
        "trt.json",
        "trt.plan",
    ]
    assert (outputs / "trt.plan").read_bytes() == outputs.earlier["trt.plan"]
    manifest = read_manifest(outputs / "out.json")
    assert manifest["parts"][0]["sha256"] == sha256(outputs / "out.onnx")
    assert manifest["preprocessing"]["text"]["vocabulary"]["sha256"] == sha256(samples_folder / "vocab.txt")
    assert set(WORDS) <= set((samples_folder / "vocab.txt").read_text().split())
