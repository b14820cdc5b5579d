"""Bad samples: a clear error, nothing written, nothing lost."""

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from madtp.data.images import read_image
from madtp.data.preprocess import image_tensor
from tests.helpers.command_line import Ran
from tests.helpers.outputs import Outputs
from tests.helpers.samples import MODES

Run = Callable[..., Ran]
Write = Callable[..., Path]


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
