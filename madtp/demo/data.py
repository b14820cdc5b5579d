"""The demonstration's task: statements about pairs of real handwritten digits on cluttered canvases."""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from madtp.data.preprocess import IMAGE_MEAN, IMAGE_STD, Sample
from madtp.demo import demo_extra

CANVAS = 48  # pixels along one side of an image
CELL = 24  # pixels along one side of the square that holds a digit
GRID = 4  # a digit's place is a multiple of this, in pixels
DIGIT_SIZES = (21, 24)  # least and largest height of an upscaled digit
ROTATION = 8.0  # degrees, to either side
VARIANTS = 8  # sizes and rotations prepared of every digit
CLUTTER_LAYERS = 2  # stroke layers behind a digit
CLUTTER_BANK = 256  # stroke layers prepared; each is shifted at random when it is used
HELD_OUT_EVERY = 5  # every fifth scan is kept for evaluation
SPLIT_SEED = 20  # fixes which scans those are
HELD_OUT_SEED = 1_000_003

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]


class Statement(NamedTuple):
    """A sentence, the template that it was made from, and its truth [10, 10] for every left and right digit."""

    sentence: str
    template: int
    truth: NDArray[np.bool_]


@cache
def statements() -> tuple[Statement, ...]:
    """Every statement of the task."""
    left, right = np.mgrid[:10, :10]
    made = []
    for digit, word in enumerate(WORDS):
        name = f"an {word}" if word == "eight" else f"a {word}"
        made.append(Statement(f"the left image shows {name}", 0, left == digit))
        made.append(Statement(f"the right image shows {name}", 1, right == digit))
        made.append(Statement(f"at least one image shows {name}", 2, (left == digit) | (right == digit)))
    made.append(Statement("both images show the same digit", 3, left == right))
    made.append(Statement("the images show different digits", 4, left != right))
    return tuple(made)


def vocabulary() -> list[str]:
    """Pieces of `vocab.txt`: the special ones, then every word of the statements."""
    return [*SPECIAL, *sorted({word for statement in statements() for word in statement.sentence.split()})]


class Digits(NamedTuple):
    """Scans [n, 8, 8] with values 0 to 16, their labels [n], and their position [n] in scikit-learn's data set."""

    scans: NDArray[np.float64]
    labels: Ints
    indices: Ints


def load_split(held_out: bool) -> Digits:
    """The scans to train on, or those to evaluate on; no scan is in both."""
    with demo_extra():
        from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(data.target))
    mine = (np.arange(len(order)) % HELD_OUT_EVERY == 0) == held_out
    chosen = np.sort(order[mine])
    return Digits(data.images[chosen], data.target[chosen].astype(np.int64), chosen)


@dataclass(frozen=True)
class Batch:
    """Pairs with their statements.

    Attributes:
        images: [2, B, CANVAS, CANVAS, 3] uint8, left ones first.
        statements: [B, M], indices into `statements()`.
        labels: [B, M] bool, their truth.
    """

    images: Bytes
    digits: Ints
    statements: Ints
    labels: NDArray[np.bool_]


class Scenes:
    """Draws pairs of canvases from a set of scans. Everything drawn follows from the generator that is passed in."""

    def __init__(self, digits: Digits, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.digits = digits
        order = np.argsort(digits.labels, kind="stable")
        self._cells = np.stack([[_cell(scan, rng) for _ in range(VARIANTS)] for scan in digits.scans[order]])
        self._scans = np.bincount(digits.labels, minlength=10)  # of each digit; `_cells` has them end to end
        self._first_scan = self._scans.cumsum() - self._scans
        self._clutter = np.stack([_strokes(rng) for _ in range(CLUTTER_BANK)])
        table = statements()
        self._truth = np.stack([statement.truth for statement in table], axis=-1)  # [10, 10, S]
        templates = np.array([statement.template for statement in table])
        self._same_template = (templates[:, None] == templates).astype(np.float64)  # [S, S]

    def batch(self, rng: np.random.Generator, count: int, questions: int = 1) -> Batch:
        """`count` pairs, half of them of one digit, with `questions` statements each, half of which are true."""
        left = rng.integers(10, size=count)
        right = np.where(np.arange(count) % 2 == 0, left, (left + rng.integers(1, 10, size=count)) % 10)
        wanted = (np.arange(count)[:, None] // 2 + np.arange(questions)) % 2 == 0
        fitting = self._truth[left, right][:, None, :] == wanted[:, :, None]  # [B, M, S]
        rivals = np.maximum(fitting @ self._same_template, 1)
        total = (fitting / rivals).cumsum(axis=-1)  # every template equally often, else the sentence tells the answer
        chosen = (total < rng.random((count, questions, 1)) * total[..., -1:]).sum(axis=-1)
        shown = np.stack([left, right])
        images = self.render(rng, shown.reshape(-1)).reshape(2, count, CANVAS, CANVAS, 3)
        return Batch(images, shown, chosen, wanted)

    def render(self, rng: np.random.Generator, shown: Ints) -> Bytes:
        """[n, CANVAS, CANVAS, 3]: clutter, and in front of it a random scan of every digit in `shown` [n]."""
        count = len(shown)
        canvas = _backgrounds(rng, count)
        for _ in range(CLUTTER_LAYERS):
            layer = self._clutter[rng.integers(len(self._clutter), size=count)]
            shift = rng.integers(CANVAS, size=(2, count, 1))
            rows, columns = (np.arange(CANVAS) + shift) % CANVAS
            shifted = layer[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
            _blend(canvas, shifted, rng.uniform(20, 150, size=(count, 3)))
        scans = self._first_scan[shown] + rng.integers(self._scans[shown])
        cells = self._cells[scans, rng.integers(VARIANTS, size=count)]
        origin = GRID * rng.integers((CANVAS - CELL) // GRID + 1, size=(2, count, 1))
        rows, columns = np.arange(CELL) + origin
        placed = np.zeros((count, CANVAS, CANVAS), dtype=np.uint8)
        placed[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]] = cells
        _blend(canvas, placed, rng.uniform(170, 255, size=(count, 3)))
        return canvas.clip(0, 255).astype(np.uint8)


def _cell(scan: NDArray[np.float64], rng: np.random.Generator) -> Bytes:
    """[CELL, CELL] opacity of one scan, upscaled and rotated at random."""
    size = int(rng.integers(DIGIT_SIZES[0], DIGIT_SIZES[1] + 1))
    image = Image.fromarray((scan * (255 / 16)).astype(np.uint8))
    cell = Image.new("L", (CELL, CELL))
    cell.paste(image.resize((size, size), Image.Resampling.BICUBIC), ((CELL - size) // 2, (CELL - size) // 2))
    return np.asarray(cell.rotate(rng.uniform(-ROTATION, ROTATION), Image.Resampling.BILINEAR))


def _strokes(rng: np.random.Generator) -> Bytes:
    """[CANVAS, CANVAS] opacity of a few lines, arcs and blobs."""
    layer = Image.new("L", (CANVAS, CANVAS))
    draw = ImageDraw.Draw(layer)
    for _ in range(rng.integers(2, 6)):
        x, y = rng.uniform(0, CANVAS, size=2)
        width, height = rng.uniform(4, 30, size=2)
        opacity = int(rng.integers(100, 256))
        kind = rng.integers(3)
        if kind == 0:
            draw.line((x, y, x + width * rng.choice((-1, 1)), y + height), fill=opacity, width=int(rng.integers(1, 4)))
        elif kind == 1:
            start = rng.uniform(0, 360)
            draw.arc((x, y, x + width, y + height), start, start + rng.uniform(60, 300), fill=opacity, width=2)
        else:
            draw.ellipse((x, y, x + width / 4, y + height / 4), fill=opacity)
    return np.asarray(layer)


def _backgrounds(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """[count, CANVAS, CANVAS, 3]: smooth colour changes with grain."""
    knots = 5
    position = np.linspace(0, knots - 1, CANVAS)[:, None] - np.arange(knots)
    interpolate = np.maximum(0, 1 - np.abs(position)).astype(np.float32)  # [CANVAS, knots], linear
    coarse = rng.uniform(10, 110, size=(count, knots, knots * 3)).astype(np.float32)
    rows = (interpolate @ coarse).reshape(count, CANVAS, knots, 3)
    smooth = interpolate @ rows
    grain = rng.standard_normal((count, CANVAS, CANVAS, 1), dtype=np.float32)
    return smooth + 8 * grain


def _blend(canvas: NDArray[np.float32], opacity: Bytes, colour: NDArray[np.float64]) -> None:
    """Paint `colour` [n, 3] over `canvas` [n, S, S, 3] in place, where `opacity` [n, S, S] says so."""
    share = opacity[..., None].astype(np.float32) / 255
    canvas += share * (colour[:, None, None, :].astype(np.float32) - canvas)


def image_batch(images: Bytes) -> Tensor:
    """[n, 3, S, S] float32 of [n, S, S, 3] pixels: what `madtp.data.preprocess.image_tensor` gives at their own
    size."""
    mean, std = np.array(IMAGE_MEAN, dtype=np.float32), np.array(IMAGE_STD, dtype=np.float32)
    normalized = (images.astype(np.float32) / 255 - mean) / std
    return torch.from_numpy(normalized.transpose(0, 3, 1, 2).copy())


def held_out_samples(count: int, seed: int = HELD_OUT_SEED) -> list[Sample]:
    """`count` labelled requests over scans that were never trained on; the same ones for the same arguments."""
    return scene_samples(_held_out_scenes(), np.random.default_rng(seed), count)


def scene_samples(scenes: Scenes, rng: np.random.Generator, count: int) -> list[Sample]:
    """`count` labelled requests, a statement each."""
    batch = scenes.batch(rng, count)
    return [
        Sample(
            (Image.fromarray(batch.images[0, index]), Image.fromarray(batch.images[1, index])),
            statements()[batch.statements[index, 0]].sentence,
            bool(batch.labels[index, 0]),
        )
        for index in range(count)
    ]


@cache
def _held_out_scenes() -> Scenes:
    return Scenes(load_split(held_out=True), seed=1)
