"""How good the retrieval demonstration's model is, measured as it is deployed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from madtp.demo.data import image_batch
from madtp.demo.retrieval.data import HeldOut
from madtp.flops import count_call
from madtp.parts import parts_of
from madtp.ranking import rank
from madtp.retrieval import RetrievalModel
from madtp.tasks import Outputs, run_request, token_counts, torch_runners
from madtp.tokenize import TextProcessor

CANDIDATES = 8  # of each picture and each caption that are matched
LEAST_FOUND = 0.80  # recall@1, both ways
LEAST_PRUNED = 0.30  # of the dense model's GFLOPs
MOST_LOST = 0.03  # recall@1, against the dense model
REQUESTS = 72  # GFLOPs and tokens are the mean over the first so many pairs


@dataclass(frozen=True)
class Evaluation:
    """Results at one temperature.

    Attributes:
        texts_found: share of pictures whose best caption describes them: recall@1 from image to text.
        images_found: share of captions whose best picture is one that they describe: recall@1 from text to image.
        gflops: mean of a request: one picture and one caption, embedded and matched.
        vision_tokens, text_tokens, match_tokens: mean tokens after each layer, class token included.
    """

    texts_found: float
    images_found: float
    gflops: float
    vision_tokens: tuple[float, ...]
    text_tokens: tuple[float, ...]
    match_tokens: tuple[float, ...]


@torch.no_grad()
def evaluate(
    model: RetrievalModel,
    vocab: Path,
    pairs: HeldOut,
    temperature: float,
    progress: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Rank all of `pairs` at a temperature, zero being the dense model; `progress` is called once a pair.

    Pictures and captions are embedded one at a time, and the candidates of one query matched together, as `rank` does.
    """
    images = image_batch(pairs.pictures)
    ids, mask = TextProcessor(vocab, model.config).batch(pairs.captions)
    runners = torch_runners(parts_of(model))
    gflops: list[float] = []
    counts: list[Outputs] = []

    def request(inputs: dict[str, Tensor]) -> None:
        counts.append(token_counts(run_request(model.config, runners, inputs, temperature)))

    for image, row, row_mask in zip(images[:REQUESTS], ids, mask, strict=False):
        inputs = {"image": image[None], "input_ids": row[None], "attention_mask": row_mask[None]}
        gflops.append(count_call(partial(request, inputs)).giga)

    def singles() -> Iterator[Tensor]:
        for image in images:
            yield image[None]
            progress()

    ranking = rank(model, singles(), ids, mask, k_test=CANDIDATES, text_batch=1, temperature=temperature)
    shown = torch.from_numpy(pairs.descriptions)
    return Evaluation(
        _share(shown[ranking.score_i2t.argmax(dim=1)] == shown),
        _share(shown[ranking.score_t2i.argmax(dim=1)] == shown),
        sum(gflops) / len(gflops),
        *(_mean([row[name] for row in counts]) for name in ("vision", "text", "match")),
    )


def _share(right: Tensor) -> float:
    return float(right.float().mean())


def _mean(rows: list[Tensor]) -> tuple[float, ...]:
    return tuple(torch.cat(rows).float().mean(dim=0).tolist())


def results_table(dense: Evaluation, pruned: Evaluation, temperature: float, pairs: int) -> Table:
    """Both evaluations side by side."""
    table = Table(title=f"{pairs} held-out crops and captions, every crop against every caption")
    headings = ("", "recall@1 to text", "to image", "GFLOPs", "pruned", "tokens: image", "text", "matching")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for name, result in (("dense", dense), (f"temperature {temperature:g}", pruned)):
        tokens = (result.vision_tokens, result.text_tokens, result.match_tokens)
        table.add_row(
            name,
            f"{result.texts_found:.1%}",
            f"{result.images_found:.1%}",
            f"{result.gflops:.4f}",
            f"{1 - result.gflops / dense.gflops:.1%}",
            *(" ".join(f"{count:.1f}" for count in layers) for layers in tokens),
        )
    return table


def missed_promises(dense: Evaluation, pruned: Evaluation) -> list[str]:
    """What a full run should reach and these results do not."""
    share = 1 - pruned.gflops / dense.gflops
    problems = []
    for way, before, after in (
        ("image to text", dense.texts_found, pruned.texts_found),
        ("text to image", dense.images_found, pruned.images_found),
    ):
        if before < LEAST_FOUND:
            problems.append(f"recall@1 from {way} dense {before:.1%}, least {LEAST_FOUND:.0%}")
        if before - after > MOST_LOST:
            problems.append(f"{before - after:.1%} of recall@1 from {way} lost by pruning, most {MOST_LOST:.0%}")
    if share < LEAST_PRUNED:
        problems.append(f"{share:.1%} of the GFLOPs pruned, least {LEAST_PRUNED:.0%}")
    return problems
