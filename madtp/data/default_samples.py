"""The samples that stand in where the user gives none: handwritten digits for nlvr, photographs for the other tasks."""

import json
from pathlib import Path

from PIL import Image

from madtp.data.preprocess import Sample

FOLDER = Path(__file__).parent / "defaults"
DIGITS, STATEMENTS = FOLDER / "digits.png", FOLDER / "digits.json"  # written by `python -m madtp.demo.default_samples`
DIGIT_SIZE = 48  # pixels along one side of an image; left ones are the upper row of the file
PHOTOGRAPHS = FOLDER / "photographs.json"
PHOTOGRAPH_SIZE = 224  # pixels along one side of a crop


def demo_samples(task: str, count: int) -> list[Sample]:
    """`count` samples for a task; after the last they begin anew."""
    samples = _digits() if task == "nlvr" else _photographs("question" if task == "vqa" else "caption")
    return [samples[index % len(samples)] for index in range(count)]


def _digits() -> list[Sample]:
    with Image.open(DIGITS) as rows:
        images = rows.convert("RGB")
    samples = []
    for number, entry in enumerate(json.loads(STATEMENTS.read_text(encoding="utf-8"))):
        left, right = (_crop(images, DIGIT_SIZE * number, DIGIT_SIZE * row, DIGIT_SIZE) for row in range(2))
        samples.append(Sample((left, right), entry["sentence"], entry["label"]))
    return samples


def _photographs(text: str) -> list[Sample]:
    entries = json.loads(PHOTOGRAPHS.read_text(encoding="utf-8"))
    photographs = {file: Image.open(FOLDER / file) for file in sorted({entry["file"] for entry in entries})}
    return [
        Sample((_crop(photographs[entry["file"]], entry["left"], entry["top"], PHOTOGRAPH_SIZE),), entry[text])
        for entry in entries
    ]


def _crop(image: Image.Image, left: int, top: int, size: int) -> Image.Image:
    return image.crop((left, top, left + size, top + size))
