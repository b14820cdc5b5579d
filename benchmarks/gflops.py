"""Dense GFLOPs of every part of every task at base size, and a recount of the published constants.

    python -m benchmarks.gflops [--json FILE]

A part is counted as an inference forward of one request. The published code prints one constant per task: NLVR's is an
inference forward, the others are training forwards of one image, put together here from the parts. "(fitted)" marks
those with a length or number that only the constant itself tells; README.md here says more. Models are on the meta
device: dense counts need shapes alone.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from rich.table import Table
from torch import Tensor

from madtp.console import command
from madtp.files.outputs import check_outputs, json_kind, write_output
from madtp.models.caption import CaptionModel
from madtp.models.clip import ClipModel
from madtp.models.config import ModelConfig
from madtp.models.decoder import Source, empty_cache
from madtp.models.nlvr import NlvrModel
from madtp.models.retrieval import RetrievalModel
from madtp.models.vqa import VqaModel
from madtp.ops.flops import count_call
from tests.helpers.sizes import BASE, CAPTION, CLIP, RETRIEVAL, VQA

DENSE = 0.0  # temperature
WORDS = 20  # ids of a sentence or question in the rows of the parts
PAST = 9  # ids before the one that a decoder step is counted for
PADDED = 35  # ids to which the published code pads or cuts captions (retrieval) and cuts questions
QUEUE = 57600  # embeddings that contrastive training keeps of earlier batches
NLVR_SENTENCE = 36  # ids of the sentence that the published NLVR script counts with
# Chosen to fit; nothing but the constants tells them.
CAPTION_LENGTH = 15
ANSWERS = 16


@dataclass(frozen=True)
class Row:
    """One count.

    Attributes:
        what: the part of the model, or the published constant.
        conditions: lengths in ids and image tokens, and passes.
        gflops: the count.
        published: the published code's constant, GFLOPs; None for a part.
    """

    task: str
    what: str
    conditions: str
    gflops: float
    published: float | None = None

    @property
    def deviation(self) -> float | None:
        """Percentage by which the count exceeds the published constant."""
        return None if self.published is None else 100 * (self.gflops / self.published - 1)


def nlvr() -> list[Row]:
    """The model is one part; its published constant is an inference forward."""
    with torch.device("meta"):
        model = NlvrModel(BASE).eval()

    def gflops(length: int) -> float:
        picture, sentence = image(BASE), ids(1, length)
        return giga(lambda: model(picture, picture, sentence, sentence, DENSE))

    pair = f"2 images of {BASE.vision_tokens} tokens, sentence of"
    return [
        Row("nlvr", "model", f"{pair} {WORDS}", gflops(WORDS)),
        Row("nlvr", "published", f"{pair} {NLVR_SENTENCE}", gflops(NLVR_SENTENCE), 132.54),
    ]


def vqa() -> list[Row]:
    """Question encoder and decoder; the published constant is a training forward."""
    with torch.device("meta"):
        model = VqaModel(VQA).eval()
    decoder = model.text_decoder

    def encoder(length: int) -> float:
        picture, question = image(VQA), ids(1, length)
        return giga(lambda: model(picture, question, question, DENSE))

    # The published code copies a question's states for each of its answers, and projects every copy.
    question, answer = states(PADDED, VQA.text_hidden), ids(1, 1, PADDED)
    answers = ANSWERS * giga(lambda: decoder(answer, answer, decoder.source_cache(question)))
    return [
        Row("vqa", "encoder", f"image of {VQA.vision_tokens} tokens, question of {WORDS}", encoder(WORDS)),
        *decoder_rows("vqa", model, WORDS, VQA.text_hidden),
        Row(
            "vqa",
            "published",
            f"encoder, question of {PADDED}; decoder, {ANSWERS} answers of {PADDED} (fitted)",
            encoder(PADDED) + answers,
            186.1,
        ),
    ]


def caption() -> list[Row]:
    """Image encoder and decoder; the published constant reads one caption with a teacher."""
    with torch.device("meta"):
        model = CaptionModel(CAPTION).eval()
    decoder, tokens = model.text_decoder, CAPTION.vision_tokens
    picture = image(CAPTION)
    encoder = giga(lambda: model(picture, DENSE))
    source, text = states(tokens, CAPTION.vit_dim), ids(1, 1, CAPTION_LENGTH)
    whole_text = giga(lambda: decoder(text, text, decoder.source_cache(source)))
    return [
        Row("caption", "image", f"{tokens} tokens", encoder),
        *decoder_rows("caption", model, tokens, CAPTION.vit_dim),
        Row(
            "caption",
            "published",
            f"image; decoder, caption of {CAPTION_LENGTH} (fitted)",
            encoder + whole_text,
            65.7,
        ),
    ]


def retrieval() -> list[Row]:
    """Image, text and matching encoder; the published constant is a training forward."""
    with torch.device("meta"):
        model = RetrievalModel(RETRIEVAL).eval()
    picture, words, tokens = image(RETRIEVAL), ids(1, PADDED), states(RETRIEVAL.vision_tokens, RETRIEVAL.vit_dim)
    encode_image = giga(lambda: model.encode_image(picture, DENSE))
    encode_text = giga(lambda: model.encode_text(words, words, DENSE))
    match = giga(lambda: model.match(words, words, tokens, DENSE))
    return [
        Row("retrieval", "image", f"{RETRIEVAL.vision_tokens} tokens", encode_image),
        Row("retrieval", "text", f"caption of {PADDED}", encode_text),
        Row("retrieval", "match", f"caption of {PADDED}, image of {RETRIEVAL.vision_tokens} tokens", match),
        Row(
            "retrieval",
            "published",
            "2 x image, 2 x text (momentum copies), 3 x match (pair, 2 hard negatives), 4 x queue",
            2 * encode_image + 2 * encode_text + 3 * match + 4 * queue_similarity(RETRIEVAL.embed_dim),
            153.2,
        ),
    ]


def clip() -> list[Row]:
    """Image and text encoder; the published constant is a training forward."""
    with torch.device("meta"):
        model = ClipModel(CLIP).eval()
    picture, words = image(CLIP), ids(1, CLIP.context_length)
    encode_image = giga(lambda: model.encode_image(picture, DENSE))
    encode_text = giga(lambda: model.encode_text(words, DENSE))
    return [
        Row("clip", "image", f"{CLIP.vision_tokens} tokens", encode_image),
        Row("clip", "text", f"caption of {CLIP.context_length}", encode_text),
        Row(
            "clip",
            "published",
            "2 x image, 2 x text (momentum copies), 4 x queue",
            2 * encode_image + 2 * encode_text + 4 * queue_similarity(CLIP.embed_dim),
            395.7,
        ),
    ]


def decoder_rows(task: str, model: VqaModel | CaptionModel, length: int, width: int) -> list[Row]:
    """Cost of a request and of an id in the decoder, for one text on `length` states of `width`."""
    decoder, source, newest = model.text_decoder, states(length, width), ids(1, 1, 1)
    itself = torch.zeros(1, 1, dtype=torch.int64, device=source.device)  # the only row
    with torch.no_grad():
        cache = Source(decoder.source_cache(source))
        _, past = decoder.step(ids(1, 1, PAST), itself, empty_cache(cache, texts=1), cache)
    return [
        Row(
            task,
            "decoder, once a request",
            f"keys and values of {length} states",
            giga(lambda: decoder.source_cache(source)),
        ),
        Row(
            task,
            "decoder step",
            f"1 text, 1 new id after {PAST}, {length} states",
            giga(lambda: decoder.step(newest, itself, past, cache)),
        ),
    ]


def queue_similarity(width: int) -> float:
    """Compare one embedding with the queue and itself. Image and text, of model and momentum copy, make four."""
    embedding, queue = torch.zeros(1, width, device="meta"), torch.zeros(width, QUEUE + 1, device="meta")
    return giga(lambda: embedding @ queue)


def giga(call: Callable[[], object]) -> float:
    """GFLOPs of a call."""
    return count_call(call).giga


def image(config: ModelConfig) -> Tensor:
    """One image."""
    return torch.zeros(1, 3, config.image_size, config.image_size, device="meta")


def ids(*shape: int) -> Tensor:
    """Ids without padding; they serve as their own mask."""
    return torch.ones(shape, dtype=torch.int64, device="meta")


def states(length: int, width: int) -> Tensor:
    """Encoder states of one request."""
    return torch.zeros(1, length, width, device="meta")


TASKS = (nlvr, vqa, caption, retrieval, clip)


def count_everything() -> list[Row]:
    """Return all rows, each task's parts before its published constant."""
    return [row for task in TASKS for row in task()]


def gflops_table(rows: list[Row]) -> Table:
    """A table with one row per count and one section per task."""
    table = Table(title="dense GFLOPs at base size, one request (lengths in ids)")
    for name in ("task", "what", "conditions"):
        table.add_column(name)
    for name in ("GFLOPs", "published", "deviation"):
        table.add_column(name, justify="right")
    for row in rows:
        published = "" if row.published is None else f"{row.published:g}"
        deviation = "" if row.deviation is None else f"{row.deviation:+.2f} %"
        table.add_row(row.task, row.what, row.conditions, f"{row.gflops:.2f}", published, deviation)
        if row.published is not None:
            table.add_section()
    return table


COUNTS = json_kind("a result of this count", "gflops", "deviation_percent")


@click.command()
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the counts there too.")
def main(target: Path | None) -> None:
    """Count the dense GFLOPs of every part, and recount the published constants."""
    check_outputs([(target, COUNTS)], ())
    rows = count_everything()
    command.output_console().print(gflops_table(rows))
    if target is not None:
        data = [{**asdict(row), "deviation_percent": row.deviation} for row in rows]
        write_output(target, json.dumps(data, indent=1) + "\n", COUNTS)


if __name__ == "__main__":
    sys.exit(command.run(main, "interrupted; nothing was written"))
