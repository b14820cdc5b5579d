"""Bad options of an export: a clear error, nothing written, nothing lost."""

from collections.abc import Callable
from pathlib import Path

import pytest

import export.engine.backends
from tests.helpers.command_line import Ran
from tests.helpers.outputs import Outputs

Run = Callable[..., Ran]
Write = Callable[..., Path]

OPTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "unknown option": ("--nope", ("No such option '--nope'",)),
    "no engine": ("--engine=", ("--engine '.' ends in ''", "out.plan or out.onnx")),
    "other suffix": ("--engine={folder}/out.trt", ("ends in '.trt'", "out.plan or out.onnx")),
    "no suffix": ("--engine={folder}/out", ("ends in ''",)),
    "suffix of the manifest": ("--engine={folder}/out.json", ("ends in '.json'",)),
    "batch is text": ("--batch=a:b:c", ("--batch is 'a:b:c'", "MIN:OPT:MAX")),
    "two numbers": ("--batch=1:2", ("--batch is '1:2'", "MIN:OPT:MAX")),
    "batch of none": ("--batch=0:1:2", ("--batch: 0:1:2", "1 <= MIN <= OPT <= MAX")),
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
    "io-dtype of another precision": ("--io-dtype=fp16", ("--io-dtype fp16 does not go with --precision fp32",)),
    "negative margin": ("--keep-margin=-0.1", ("--keep-margin is -0.1", "zero or more, less than 1", "Use e.g. 0.05")),
    "margin of all": ("--keep-margin=1", ("--keep-margin is 1.0", "less than 1")),
    "nan margin": ("--keep-margin=nan", ("--keep-margin is nan",)),
    "margin and token statistics": (
        "--engine={folder}/trt.plan --keep-margin=0.1 --tokens=tokens.json",
        ("--tokens and --keep-margin exclude each other", "Omit --tokens"),
    ),
    "unknown precision": ("--precision=fp4", ("--precision 'fp4' is unknown", "Use --precision fp32")),
    "layout": ("--layout=padded", ("--layout 'padded' is unknown", "packed, dynamic")),
    "no plugin library": (
        "--engine={folder}/trt.plan --plugins=nowhere.so",
        ("cannot read the plugin library 'nowhere.so'", "--plugins"),
    ),
    "another file as plugin library": (
        "--engine={folder}/trt.plan --plugins={folder}/out.onnx",
        ("out.onnx' is not a plugin library of this project", "./build.sh plugins"),
    ),
    "plugins for onnx": (
        "--plugins=some.so",
        ("--plugins some.so", ".onnx"),
    ),
    "embedding for onnx": ("--embed-plugins", ("--embed-plugins", "no plugin library")),
    "embedding without plugins": (
        "--engine={folder}/trt.plan --plugins=none --embed-plugins",
        ("no plugin library to embed",),
    ),
    "tokens for onnx": ("--tokens=tokens.json", ("--tokens is given", "nothing is tuned")),
    "no token statistics": (
        "--engine={folder}/trt.plan --tokens=nowhere.json",
        ("cannot read the token statistics 'nowhere.json'", "python -m calibration tokens"),
    ),
    "plan as token statistics": (
        "--engine={folder}/trt.plan --tokens={folder}/out.onnx",
        ("cannot read the token statistics",),
    ),
    "unknown backend": ("--backend=openvino", ("Invalid value for '--backend'", "tensorrt-rtx")),
    "tensorrt writes no onnx": ("--backend=tensorrt", ("--backend tensorrt does not write .onnx",)),
    "onnxruntime writes no plan": (
        "--engine={folder}/trt.plan --backend=onnxruntime",
        ("--backend onnxruntime does not write .plan", "--engine"),
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
        ("--engine '/'", "out.json"),
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
