"""How good the retrieval demonstration's model is, and what ranking with it costs."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from madtp.data.tokenize import TextProcessor
from madtp.demo.data import image_batch
from madtp.demo.retrieval.data import HeldOut
from madtp.models.parts import Part, parts_of
from madtp.models.retrieval import RetrievalModel
from madtp.ops.flops import count_call
from madtp.tasks.ranking import rank
from madtp.tasks.requests import Outputs, RetrievalRunners, TorchRunner, token_counts

CANDIDATES = 8  # of each picture and each caption that are matched
COUNTED_EVERY = 8  # GFLOPs are the mean of every so many calls of a part, because counting takes time
LEAST_FOUND = 0.80  # recall@1, both ways
LEAST_PRUNED = 0.30  # of the dense model's GFLOPs
MOST_LOST = 0.05  # recall@1, against the dense model


@dataclass(frozen=True)
class RetrievalEvaluation:
    """Results at one temperature.

    Attributes:
        texts_found: share of pictures whose best caption describes them: recall@1 from image to text.
        images_found: share of captions whose best picture is one that they describe: recall@1 from text to image.
        gflops: mean of embedding a picture, embedding a caption and matching a pair, summed.
        vision_tokens, text_tokens, match_tokens: mean tokens after each layer, class token included.
    """

    texts_found: float
    images_found: float
    gflops: float
    vision_tokens: tuple[float, ...]
    text_tokens: tuple[float, ...]
    match_tokens: tuple[float, ...]


class _MeasuredRunner:
    """A part in torch, with the tokens and GFLOPs of its calls, of one picture, caption or pair."""

    def __init__(self, part: Part) -> None:
        self._runner = TorchRunner(part)
        self.counts: list[Tensor] = []
        self.gflops: list[float] = []

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        outputs: Outputs = {}
        if len(self.counts) % COUNTED_EVERY == 0:
            total = count_call(lambda: outputs.update(self._runner.run(inputs, temperature))).giga
            self.gflops.append(total / len(next(iter(inputs.values()))))
        else:
            outputs = self._runner.run(inputs, temperature)
        self.counts += token_counts(outputs).values()
        return outputs

    @property
    def mean_gflops(self) -> float:
        return sum(self.gflops) / len(self.gflops)

    @property
    def mean_tokens(self) -> tuple[float, ...]:
        """After each layer."""
        return tuple(torch.cat(self.counts).float().mean(dim=0).tolist())


def evaluate(
    model: RetrievalModel,
    vocab: Path,
    held_out: HeldOut,
    temperature: float,
    progress: Callable[[], None] = lambda: None,
) -> RetrievalEvaluation:
    """Rank all of `held_out` at a temperature, zero being the dense model; `progress` is called once a picture.

    Pictures and captions are embedded one at a time, and the candidates of one query matched together, as published.
    """
    runners = {name: _MeasuredRunner(part) for name, part in parts_of(model).items()}

    def batches() -> Iterator[Tensor]:
        for image in image_batch(held_out.pictures).split(1):
            yield image
            progress()

    ranking = rank(
        RetrievalRunners(model.config, runners, temperature),
        batches(),
        *TextProcessor(vocab, model.config).batch(held_out.captions),
        k_test=CANDIDATES,
        text_batch=1,
    )
    shown, described = torch.from_numpy(held_out.shown), torch.from_numpy(held_out.described)
    return RetrievalEvaluation(
        _share(described[ranking.score_i2t.argmax(dim=1)] == shown),
        _share(shown[ranking.score_t2i.argmax(dim=1)] == described),
        sum(part.mean_gflops for part in runners.values()),
        *(part.mean_tokens for part in runners.values()),
    )


def _share(right: Tensor) -> float:
    return float(right.float().mean())


def results_table(
    dense: RetrievalEvaluation, pruned: RetrievalEvaluation, temperature: float, held_out: HeldOut
) -> Table:
    """Both evaluations side by side."""
    counts = f"{len(held_out.pictures)} held-out crops and {len(held_out.captions)} held-out captions"
    table = Table(title=f"{counts}, every crop against every caption")
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


def missed_promises(dense: RetrievalEvaluation, pruned: RetrievalEvaluation) -> list[str]:
    """What a full run should reach and these results do not."""
    share = 1 - pruned.gflops / dense.gflops
    problems = []
    for way, before, after in (
        ("image to text", dense.texts_found, pruned.texts_found),
        ("text to image", dense.images_found, pruned.images_found),
    ):
        if before < LEAST_FOUND:
            problems.append(f"recall@1 from {way} dense {before:.1%}, minimum {LEAST_FOUND:.0%}")
        if before - after > MOST_LOST:
            problems.append(f"{before - after:.1%} of recall@1 from {way} lost by pruning, maximum {MOST_LOST:.0%}")
    if share < LEAST_PRUNED:
        problems.append(f"{share:.1%} of the GFLOPs pruned, minimum {LEAST_PRUNED:.0%}")
    return problems
