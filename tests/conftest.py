"""Fixtures for tests of the command line: a tiny model's checkpoint, samples that fit it, and outputs to protect.

Fixtures import `export` themselves: the tests for a GPU have to start where what it needs is not installed
(`tests/helpers/bare_machine.py`).
"""

import json
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from madtp import NlvrConfig, NlvrModel
from madtp.checkpoint.loading import MODELS
from madtp.models.config import CONFIGS
from madtp.models.decoder import TextDecoder
from madtp.models.parts import parts_of
from madtp.ops.tf32 import forbid_tf32
from tests.helpers.generate import generated_state

forbid_tf32()

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts background jobs so, and commands under test would inherit it and rightly ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

TINY = {
    "image_size": 32,
    "patch_size": 16,
    "vit_dim": 16,
    "vit_depth": 1,
    "vit_heads": 2,
    "vit_mlp": 32,
    "text_hidden": 16,
    "text_layers": 2,
    "text_heads": 2,
    "text_inter": 32,
    "vocab_size": 300,
    "max_position": 40,
    "sd_num": 8,
    "sd_dim": 16,
    "merge_from": 1,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "bos_token_id": 298,
    "enc_token_id": 299,
}
# The other tasks: one layer an encoder, and 17 image tokens. CLIP has the vocabulary of its tokenizer, or no texts.
BLIP = {name: size for name, size in TINY.items() if name != "merge_from"} | {"patch_size": 8, "text_layers": 1}
TASK_SIZES = {
    "vqa": BLIP,
    "caption": BLIP,
    "retrieval": BLIP | {"embed_dim": 8},
    "clip": {
        "embed_dim": 8,
        "image_size": 32,
        "patch_size": 8,
        "vision_layers": 1,
        "vision_width": 16,
        "vision_heads": 2,
        "context_length": 20,
        "vocab_size": 49408,
        "text_width": 16,
        "text_heads": 2,
        "text_layers": 1,
        "sd_num": 8,
        "sd_dim": 16,
    },
}
TAU = 2.0
WORDS = ("the", "left", "right", "image", "shows", "a", "digit", "same", "both", "images", "show", "one")
MODES = ("RGB", "L", "RGBA", "P", "1", "LA", "CMYK", "RGB")  # of the sample images, all to be converted


def state_of(config: Mapping[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Generated weights of the model that `config` describes."""
    with torch.device("meta"):
        model = NlvrModel(NlvrConfig(**config))
    return generated_state(model, seed)


def save_checkpoint(path: Path, state: Mapping[str, Any], **entries: Any) -> Path:
    """A checkpoint of the tiny model; tensors and entries that are None are left out."""
    tensors = {key: value for key, value in state.items() if value is not None}
    content = {"model": tensors, "epoch": 3, "temperature": TAU, "config": TINY, **entries}
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    return path


@pytest.fixture(scope="session")
def tiny_state() -> dict[str, torch.Tensor]:
    """Weights of the tiny model; copy the dictionary before changing it."""
    return state_of(TINY)


@pytest.fixture
def tiny_checkpoint(tmp_path: Path, tiny_state: dict[str, torch.Tensor]) -> Callable[..., Path]:
    """Write the tiny checkpoint; `state` changes or (value None) removes tensors, other keywords change entries."""

    def write(name: str = "tiny.pt", state: Mapping[str, Any] | None = None, **entries: Any) -> Path:
        return save_checkpoint(tmp_path / name, {**tiny_state, **(state or {})}, **entries)

    return write


def write_samples(folder: Path, modes: tuple[str, ...] = MODES) -> Path:
    """A folder of samples for the tiny model: pictures of all `modes`, samples.json and vocab.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, words = np.random.default_rng(0), random.Random(0)
    entries = []
    for index, mode in enumerate(modes):
        names = [f"{index}-{side}.{'jpg' if mode == 'CMYK' else 'png'}" for side in ("left", "right")]
        for name in names:
            pixels = rng.integers(0, 256, (20 + index, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / name)
        sentence = " ".join(words.choices(WORDS, k=3 + index))
        entries.append({"sentence": sentence, "images": names, "label": "True" if index % 2 else "False"})
    (folder / "samples.json").write_text(json.dumps(entries))
    write_vocabulary(folder / "vocab.txt")
    return folder


def write_vocabulary(path: Path) -> Path:
    """The vocabulary of the tiny models: special tokens, WORDS, and entries that no text has."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    pieces += [f"[unused{index}]" for index in range(TINY["vocab_size"] - 2 - len(pieces))]
    path.write_text("\n".join(pieces) + "\n")
    return path


@pytest.fixture(scope="session")
def samples_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples of the tiny model; not to be changed."""
    return write_samples(tmp_path_factory.mktemp("data") / "samples")


def run_export(patch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit status of `python -m export ARGUMENTS`, run in this process."""
    from export.cli import main as cli

    patch.setattr(sys, "argv", ["export", *map(str, arguments)])
    return cli.main()


@dataclass(frozen=True)
class Ran:
    """What a command line did."""

    status: int
    out: str
    err: str

    def refused(self, *parts: str) -> None:
        """Assert that it ended as bad input has to, with a message that has all `parts`."""
        assert self.status == 2, self
        assert "Traceback" not in self.err
        for part in parts:
            assert part in self.err, f"{part!r} is not in: {self.err}"


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Ran]]:
    """Run the command line in this process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        status = run_export(monkeypatch, *arguments)
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@dataclass(frozen=True)
class Outputs:
    """A folder with outputs of earlier exports."""

    folder: Path
    earlier: dict[str, bytes]

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def untouched(self) -> None:
        """Assert that every file is as it was, and that there is nothing new, hidden or not."""
        assert {path.name: path.read_bytes() for path in self.folder.iterdir()} == self.earlier


@pytest.fixture
def outputs(tmp_path: Path) -> Outputs:
    """Earlier artifacts out.onnx and trt.plan, with their manifests, to write over."""
    folder = tmp_path / "outputs"
    folder.mkdir()
    earlier = {name: f"earlier {name}".encode() for name in ("out.onnx", "trt.plan")}
    for name in list(earlier):
        manifest = {"schema": 1, "artifact": name, "parts": [{"artifact": name}]}
        earlier[f"{Path(name).stem}.json"] = json.dumps(manifest).encode()
    for name, content in earlier.items():
        (folder / name).write_bytes(content)
    return Outputs(folder, earlier)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writing more than `size` bytes to a file fails, in this process and its children, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="session")
def tiny_program(tiny_state: dict[str, torch.Tensor]) -> torch.onnx.ONNXProgram:
    """The tiny model, traced once."""
    from export.graph.trace import trace_part

    model = NlvrModel(NlvrConfig(**TINY))
    model.load_state_dict(tiny_state)
    return trace_part(parts_of(model.eval())["model"])


@contextmanager
def quick_exports(program: torch.onnx.ONNXProgram) -> Iterator[pytest.MonkeyPatch]:
    """Take the tiny model's trace as given, and measure latency briefly."""
    import export.build.validation
    import export.graph.trace

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.build.validation, "LATENCY_SECONDS", 0.0)
        patch.setattr(export.graph.trace, "trace_part", lambda part: program)
        yield patch


@pytest.fixture
def quick(tiny_program: torch.onnx.ONNXProgram) -> Iterator[pytest.MonkeyPatch]:
    """Exports of the tiny checkpoint take its trace from the session and measure latency briefly."""
    with quick_exports(tiny_program) as patch:
        yield patch


@pytest.fixture(scope="session")
def tiny_artifact(tmp_path_factory: pytest.TempPathFactory, tiny_program: torch.onnx.ONNXProgram) -> Path:
    """A folder with a checkpoint and what was exported from it; not to be changed."""
    folder = tmp_path_factory.mktemp("artifact")
    checkpoint = save_checkpoint(folder / "tiny.pt", state_of(TINY))
    with quick_exports(tiny_program) as patch:
        assert run_export(patch, "--ckpt", checkpoint, "--engine", folder / "out.onnx") == 0
    return folder


@pytest.fixture
def exported(tiny_artifact: Path, tmp_path: Path) -> tuple[Path, Path]:
    """An artifact with its manifest, and the checkpoint that it was made from; copies, to be damaged."""
    folder = shutil.copytree(tiny_artifact, tmp_path / "exported")
    return folder / "out.onnx", folder / "tiny.pt"


class TaskArtifacts(dict[str, Path]):
    """By task (all but nlvr) a folder with tiny.pt, vocab.txt and what was exported from it, once it is asked for.

    Tracing takes most of a minute in all, so the workers of a test run share the folders.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root

    def __missing__(self, task: str) -> Path:
        folder = self._root / f"artifact-{task}"
        with FileLock(f"{folder}.lock"):
            if not (folder / "out.json").is_file():
                _export_task(task, folder)
        self[task] = folder
        return folder


def _export_task(task: str, folder: Path) -> None:
    import export.build.validation
    import madtp.data.samples

    folder.mkdir()
    write_vocabulary(folder / "vocab.txt")
    checkpoint = write_task_checkpoint(task, folder / "tiny.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.build.validation, "LATENCY_SECONDS", 0.0)
        patch.setattr(madtp.data.samples, "MIN_SAMPLES", 2)  # tracing takes long enough
        assert run_export(patch, "--ckpt", checkpoint, "--engine", folder / "out.onnx") == 0


@pytest.fixture(scope="session")
def task_artifacts(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> TaskArtifacts:
    """Artifacts of the other tasks; not to be changed."""
    base = tmp_path_factory.getbasetemp()
    return TaskArtifacts(base if worker_id == "master" else base.parent)


def write_task_checkpoint(task: str, path: Path, seed: int = 0) -> Path:
    """A tiny checkpoint of a task, with generated weights."""
    with torch.device("meta"):
        model = MODELS[task](CONFIGS[task](**TASK_SIZES[task]))
    state = generated_state(model, seed)
    for copy, original in TextDecoder.TIED:
        if f"text_decoder.{copy}" in state:
            state[f"text_decoder.{copy}"] = state[f"text_decoder.{original}"]
    torch.save({"model": state, "epoch": 3, "temperature": TAU, "config": TASK_SIZES[task]}, path)
    return path
