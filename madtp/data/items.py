"""Items of a data set as a model takes them."""

from collections.abc import Sequence
from typing import TypeVar

from madtp.data.datasets import Item, NlvrItem, VqaItem
from madtp.data.images import read_image
from madtp.data.preprocess import image_tensor
from madtp.data.samples import CAPTION_PROMPT, Config, Processor, Request
from madtp.data.texts import shown
from madtp.data.tokenize import TextProcessor
from madtp.errors import InputError

T = TypeVar("T")


def prepare_item(item: Item, processor: Processor, config: Config) -> Request:
    """An item as the model takes it; texts are cut where the published evaluation cuts them."""
    paths = item.images if isinstance(item, NlvrItem) else (item.image,)
    label = item.label if isinstance(item, NlvrItem) else None
    if config.task == "caption" and isinstance(processor, TextProcessor):
        ids = processor.prompt_ids(CAPTION_PROMPT)
    else:
        try:
            ids = processor.ids(_text(item), cut=True)
        except InputError as error:
            raise InputError(f"the item {shown(item.key)}: {error.what}", error.why, error.fix) from error
    images = tuple(image_tensor(read_image(path), config.image_size) for path in paths)
    return Request(images, ids, None if label is None else int(label))


def _text(item: Item) -> str:
    if isinstance(item, NlvrItem):
        return item.sentence
    return item.question if isinstance(item, VqaItem) else next(iter(item.captions), "")


def spread(items: Sequence[T], limit: int) -> list[T]:
    """At most `limit` of the items, evenly spaced, beginning with the first."""
    count = min(limit, len(items))
    return [items[index * len(items) // count] for index in range(count)]
