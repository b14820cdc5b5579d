"""The demonstration's pictures and captions: crops of photographs that packages ship, and sentences about them.

Crops of one photograph differ in place, size, brightness and direction, its captions in their words.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from madtp.data.default_samples import FOLDER
from madtp.data.preprocess import Sample
from madtp.demo import demo_extra
from madtp.demo.data import SPECIAL, Bytes, Ints

SIZE = 96  # pixels along one side of a picture
SHORT_SIDE = 160  # pixels of a photograph's shorter side before it is cut
CROP = (0.5, 0.9)  # least and largest side of a crop, as a share of the shorter side
BRIGHTNESS = (0.75, 1.15)
CELLS = 8  # of the shorter side; a cell of crop centres is either trained or held out
HELD_OUT_EVERY = 4  # every fourth cell, and every fourth combination of template and words
HELD_OUT_SEED = 1_000_003

TEMPLATES = (
    "a photo of {}",
    "{} from near",
    "the picture shows {}",
    "here is {}",
    "one can see {}",
    "{} in a photograph",
    "this is a part of a picture of {}",
    "somebody took a photo of {}",
)


class Photograph(NamedTuple):
    """A photograph's name in its package, and words for what it shows. A name with a suffix is a file of FOLDER."""

    name: str
    words: tuple[str, str, str]


PHOTOGRAPHS = (
    Photograph("astronaut", ("an astronaut", "a woman in an orange suit", "a smiling woman with a helmet")),
    Photograph("brick", ("a brick wall", "rows of long bricks", "a wall of grey bricks")),
    Photograph("camera", ("a man with a camera", "a photographer in a coat", "a man behind a tripod")),
    Photograph("chelsea", ("a cat", "the face of a cat", "a tabby with green eyes")),
    Photograph("coffee", ("a cup of coffee", "an espresso on a saucer", "a red cup with a spoon")),
    Photograph("coins", ("old coins", "rows of round coins", "ancient money")),
    Photograph("grass", ("grass", "a dry lawn", "blades of grass")),
    Photograph("gravel", ("gravel", "many small stones", "a path of pebbles")),
    Photograph("hubble_deep_field", ("galaxies", "stars in a black sky", "deep space")),
    Photograph("immunohistochemistry", ("stained tissue", "cells under a microscope", "brown and blue tissue")),
    Photograph("moon", ("the moon", "craters on the moon", "the dusty ground of the moon")),
    Photograph("page", ("a printed page", "a page of a book", "lines of print")),
    Photograph("retina", ("a retina", "the back of an eye", "blood vessels of an eye")),
    Photograph("rocket", ("a rocket", "a rocket between towers", "a launch pad at night")),
    Photograph("text", ("handwriting", "written formulas", "ink on squared paper")),
    Photograph("stereo_motorcycle", ("a motorcycle", "a red motorcycle in a garage", "a bike before shelves")),
    Photograph("china.jpg", ("a pagoda", "a chinese temple above a lake", "a tower with curved roofs")),
    Photograph("flower.jpg", ("a flower", "an orange dahlia", "round petals before dark leaves")),
)


@cache
def captions(photograph: int, held_out: bool) -> tuple[str, ...]:
    """Captions of a photograph: those to train on, or those to evaluate on; none is both."""
    return tuple(
        template.format(words)
        for t, template in enumerate(TEMPLATES)
        for w, words in enumerate(PHOTOGRAPHS[photograph].words)
        if ((t + w + photograph) % HELD_OUT_EVERY == 0) == held_out
    )


def vocabulary() -> list[str]:
    """Pieces of `vocab.txt`: the special ones, then every word of the captions."""
    every = (text for p in range(len(PHOTOGRAPHS)) for held_out in (False, True) for text in captions(p, held_out))
    return [*SPECIAL, *sorted({word for text in every for word in text.split()})]


@cache
def photographs() -> tuple[Image.Image, ...]:
    """The photographs in the order of PHOTOGRAPHS, in colour, their shorter side SHORT_SIDE pixels.

    Raises:
        InputError: the extra `demo` is not installed.
    """
    return tuple(_scaled(_pixels(photograph.name)) for photograph in PHOTOGRAPHS)


def _pixels(name: str) -> Bytes:
    """The photograph as its package ships it; nothing is downloaded."""
    if "." in name:
        return np.asarray(Image.open(FOLDER / name))
    with demo_extra():
        from skimage import data

    loaded: Any = getattr(data, name)()
    return np.asarray(loaded[0] if isinstance(loaded, tuple) else loaded)  # a stereo pair comes with its depth


def _scaled(pixels: Bytes) -> Image.Image:
    image = Image.fromarray(pixels).convert("RGB")
    scale = SHORT_SIDE / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


class Crop(NamedTuple):
    """A square of a scaled photograph, in pixels."""

    left: float
    top: float
    side: float

    @property
    def held_out(self) -> bool:
        """Whether its centre lies in a cell that is kept for evaluation."""
        row, column = (int((edge + self.side / 2) * CELLS / SHORT_SIDE) for edge in (self.top, self.left))
        return (2 * row + column) % HELD_OUT_EVERY == 0


def draw_crop(rng: np.random.Generator, size: tuple[int, int], held_out: bool) -> Crop:
    """A random crop, trained or held out, of a photograph of `size` (width, height)."""
    while True:
        side = rng.uniform(*CROP) * SHORT_SIDE
        crop = Crop(rng.uniform(0, size[0] - side), rng.uniform(0, size[1] - side), side)
        if crop.held_out == held_out:
            return crop


def picture(rng: np.random.Generator, photograph: int, held_out: bool) -> Bytes:
    """[SIZE, SIZE, 3]: a random crop of a photograph, brighter or darker, every second one mirrored."""
    whole = photographs()[photograph]
    crop = draw_crop(rng, whole.size, held_out)
    box = (crop.left, crop.top, crop.left + crop.side, crop.top + crop.side)
    pixels = np.asarray(whole.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box), dtype=np.float32)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    return (pixels * np.float32(rng.uniform(*BRIGHTNESS))).clip(0, 255).astype(np.uint8)


class HeldOut(NamedTuple):
    """Crops and captions that were never trained on.

    Attributes:
        pictures: [n, SIZE, SIZE, 3] uint8.
        shown: [n], the photograph of each.
        captions: m texts.
        described: [m], the photograph that each is about.
    """

    pictures: Bytes
    shown: Ints
    captions: tuple[str, ...]
    described: Ints


def held_out(crops: int, seed: int = HELD_OUT_SEED) -> HeldOut:
    """`crops` crops of every photograph, all photographs in turn, and all of the held-out captions likewise."""
    rng = np.random.default_rng(seed)
    shown = np.tile(np.arange(len(PHOTOGRAPHS)), crops)
    pictures = np.stack([picture(rng, int(photograph), held_out=True) for photograph in shown])
    texts = [captions(photograph, True) for photograph in range(len(PHOTOGRAPHS))]
    in_turn = tuple(text for row in zip(*texts, strict=True) for text in row)
    return HeldOut(pictures, shown, in_turn, np.arange(len(in_turn)) % len(PHOTOGRAPHS))


def held_out_samples(count: int) -> list[Sample]:
    """`count` held-out crops with a caption that fits, one of every photograph first, for the exporter."""
    pairs = held_out(-(-count // len(PHOTOGRAPHS)))
    return [Sample((Image.fromarray(pairs.pictures[i]),), pairs.captions[i]) for i in range(count)]
