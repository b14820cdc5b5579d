"""What was pruned where in one sample: its images with patches marked, its words struck out, layer by layer."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from export.artifact.manifest import ImagePreprocessing
from export.report.answers import Answer
from export.report.token_flow import LayerTokens, follow_tokens, patch_runs

KEPT, FRESH, GONE = "kept", "fresh", "gone"  # states of a token after a layer; classes of the page's style too
MAX_SIDE = 384  # pixels of a picture in the page
NAMED = 8  # tokens of a merge that are named; of more it says how many


@dataclass(frozen=True)
class Tile:
    """An image after one layer; `fresh` and `gone` are SVG paths, in patches, over what merged now and what before."""

    caption: str
    alt: str
    fresh: str
    gone: str


@dataclass(frozen=True)
class Picture:
    """One image of a sample: `uri` as the model saw it, a tile for every layer that pruned, and what merged there."""

    name: str
    uri: str
    grid: int
    tiles: list[Tile]
    unchanged: list[int]
    merges: list[str]


@dataclass(frozen=True)
class TextLayer:
    """A text after one layer: the state of every word, and what merged there."""

    caption: str
    words: list[tuple[str, str]]
    merge: str


@dataclass(frozen=True)
class TextView:
    """A text through an encoder, in every layer that pruned; `padding` ids are not shown."""

    encoder: str
    layers: list[TextLayer]
    unchanged: list[int]
    padding: int


@dataclass(frozen=True)
class Example:
    """One sample: what the model answers, its tokens summed over layers and encoders, and how many are dense."""

    title: str
    text: str
    answers: Sequence[Answer]
    tokens: int
    dense: int
    pictures: list[Picture]
    texts: list[TextView]


def choose(totals: Sequence[int]) -> dict[str, int]:
    """The samples to show, by title: with the fewest, the median and the most tokens; none of them twice."""
    if len(totals) == 1:
        return {"the only sample": 0}
    order = sorted(range(len(totals)), key=lambda index: totals[index])
    places = {"easy: fewest tokens": 0, "middle: median": (len(order) - 1) // 2, "hard: most tokens": len(order) - 1}
    chosen: dict[str, int] = {}
    for title, place in places.items():
        if order[place] not in chosen.values():
            chosen[title] = order[place]
    return chosen


def picture(name: str, image: Tensor, ids: Sequence[Sequence[int]], grid: int, settings: ImagePreprocessing) -> Picture:
    """A normalised image [3, S, S] of grid x grid patches through the vision encoder, by its source ids per layer."""
    flow = follow_tokens(ids, grid * grid + 1)
    tiles, merges = [], []
    for layer, after in _pruned(flow):
        kept = f"{len(after.kept - {0})} of {grid * grid} patches kept, {len(after.fresh)} merged in this layer"
        tiles.append(
            Tile(
                f"layer {layer + 1}: {len(after.kept - {0})}",
                f"{name} after layer {layer + 1}: {kept}",
                patch_path(after.fresh, grid),
                patch_path(frozenset(range(grid * grid + 1)) - after.kept - after.fresh, grid),
            )
        )
        merges.append(merge_text(layer, after, lambda position: _place(position, grid), "patches"))
    return Picture(name, image_uri(image, settings), grid, tiles, _unchanged(flow), merges)


def text_view(encoder: str, names: Sequence[str], length: int, ids: Sequence[Sequence[int]]) -> TextView:
    """A text through an encoder, by its source ids per layer.

    `names` are those of the text's ids, special ones included; `length` counts padding, too.
    """
    flow = follow_tokens(ids, length)
    layers = []
    for layer, after in _pruned(flow):
        words = [(name, state(position, after)) for position, name in enumerate(names)]
        kept = sum(position < len(names) for position in after.kept)
        named = [*names, *[None] * (length - len(names))]
        merge = merge_text(layer, after, named.__getitem__, "words")
        layers.append(TextLayer(f"layer {layer + 1}: {kept} kept", words, merge))
    return TextView(encoder, layers, _unchanged(flow), length - len(names))


def state(position: int, after: LayerTokens) -> str:
    """KEPT, FRESH (merged in this layer) or GONE (merged before it)."""
    if position in after.kept:
        return KEPT
    return FRESH if position in after.fresh else GONE


def merge_text(layer: int, after: LayerTokens, name: Callable[[int], str | None], plural: str) -> str:
    """A description of the tokens merged in a layer (from 0; the text counts from 1).

    `name` gives the name of an input token by its position, None for padding; `plural` is a noun for such tokens.
    """
    named = [found for found in map(name, sorted(after.fresh)) if found is not None]
    taken = [", ".join(named) if len(named) <= NAMED else f"{len(named)} {plural}"] if named else []
    padding = len(after.fresh) - len(named)
    if padding:
        taken.append(f"{padding} of padding")
    taken += [f"the merged token of layer {-token}" for token in after.swallowed if token < 0]
    stands = len(after.merged[layer])
    total = f"; it stands for {stands} tokens of the input" if stands > len(after.fresh) else ""
    return f"layer {layer + 1} merged {' and '.join(taken)}{total}"


def patch_path(patches: frozenset[int], grid: int) -> str:
    """An SVG path over patches, one unit each; empty for none."""
    return "".join(f"M{column} {row}h{length}v1h-{length}z" for column, row, length in patch_runs(patches, grid))


def image_uri(image: Tensor, settings: ImagePreprocessing) -> str:
    """A data URI of a normalised image [3, S, S] as the model saw it, at most MAX_SIDE pixels wide."""
    mean, deviation = (np.asarray(values, np.float32) for values in (settings.mean, settings.std))
    pixels = image.numpy().transpose(1, 2, 0) * deviation + mean
    shown = Image.fromarray((pixels * 255).round().clip(0, 255).astype(np.uint8))
    shown.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=88)
    return data_uri("image/jpeg", buffer.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    """A data URI of that media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _pruned(flow: Sequence[LayerTokens]) -> list[tuple[int, LayerTokens]]:
    return [(layer, after) for layer, after in enumerate(flow) if after.swallowed]


def _unchanged(flow: Sequence[LayerTokens]) -> list[int]:
    return [layer + 1 for layer, after in enumerate(flow) if not after.swallowed]


def _place(position: int, grid: int) -> str:
    row, column = divmod(position - 1, grid)
    return f"row {row + 1} column {column + 1}"
