"""What the evaluations of all tasks share: options, steps and their entries, batches, token counts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from export.artifact.manifest import Manifest
from export.errors import OptionError
from export.evaluate.journal import Entry
from export.evaluate.metrics import Scores
from export.session.products import Tokens
from export.session.session import Session
from madtp.data.texts import shown
from madtp.errors import InputError
from madtp.models.config import MAX_TEMPERATURE

Report = Callable[[str, int, int], None]  # stage, done, total
ENDS = 2  # ids of a text that stand for no word, one at each end


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of an evaluation.

    Attributes:
        batch: requests (retrieval, clip: images) per batch; texts and matched pairs run in the batches of the published
            evaluation. None runs every item on its own, so that no answer depends on another item.
        k_test: candidates that retrieval matches for each image and each text; None is 256, or all if there are fewer.
        limit: number of items, from the first; None is all.
    """

    batch: int | None = None
    temperature: float | None = None
    generate: bool = False
    k_test: int | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch", "k_test", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"--{name.replace('_', '-')} is {value}", "", "Use 1 or more.")
        if self.temperature is not None and not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise OptionError(
                f"--temperature is {self.temperature}",
                "It must be a finite number, zero or more.",
                "Use 0 for the dense model.",
            )


@dataclass(frozen=True)
class Scoring:
    """The scores and answers of a data set.

    Attributes:
        metrics: scores in percent; None if nothing could be scored.
        unscored: which scores are missing, and why; None if none is.
        scorable: whether another package would make them available: answers are kept, so that a later run only scores.
    """

    metrics: Mapping[str, float] | None
    answers: Any
    unscored: str | None = None
    scorable: bool = False


def scored(scores: Scores, answers: Any) -> Scoring:
    """Scores, and the reasons why some are missing, in one sentence each."""
    names: dict[str, list[str]] = {}
    for name, reason in scores.unscored.items():
        names.setdefault(reason, []).append(name)
    reasons = "; ".join(f"{', '.join(missing)}: {reason}" for reason, missing in names.items())
    return Scoring(dict(scores) or None, answers, reasons or None)


def check_readable(session: Session, texts: Sequence[tuple[str, str]]) -> None:
    """Refuse texts, each with a name for messages, that the artifact cannot take, and those without a word.

    Raises:
        InputError: naming the first of them.
    """
    for name, text in texts:
        try:
            ids = session.processor.ids(text, cut=True)
        except InputError as error:
            raise InputError(f"{name}: {error.what}", error.why, error.fix) from error
        if len(ids) <= ENDS:
            raise InputError(
                f"{name}: nothing is left of {shown(text)} as the model reads it",
                "Its signs are dropped, as the published reader does, and it has no words.",
                "Correct or remove it in the annotation file.",
            )
        if session.text.max > 1 and not session.text.min <= len(ids) <= session.text.max:
            raise InputError(
                f"{name}: the text {shown(text)} has {len(ids)} tokens",
                f"The artifact was built for {session.text.min} to {session.text.max}.",
                f"Export again with --text {min(len(ids), session.text.min)}:...:{max(len(ids), session.text.max)}.",
            )


class Work(Protocol):
    """An evaluation as steps; each is done or not, and gives an entry: `tokens`, `cut`, and what its score needs."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What was chosen, and the answers depend on."""

    @property
    def steps(self) -> int:
        """How many."""

    def run(self, step: int, report: Report) -> Entry:
        """Do one; those before it are done, by this run or an earlier one."""

    def score(self, entries: Sequence[Entry]) -> Scoring:
        """Score the entries of all."""


def add_tokens(requests: Sequence[Tokens]) -> Entry:
    """Token counts of several requests as an entry keeps them: by encoder the requests, and sums after each layer."""
    names = dict.fromkeys(name for tokens in requests for name in tokens)
    counts = {name: [tokens[name] for tokens in requests if name in tokens] for name in names}
    return {
        name: {"requests": len(rows), "sums": [sum(layer) for layer in zip(*rows, strict=True)]}
        for name, rows in counts.items()
    }


def sum_tokens(counts: Mapping[str, Tensor]) -> Entry:
    """The same of token counts [requests, layers] by encoder."""
    return {name: {"requests": len(rows), "sums": rows.sum(dim=0).tolist()} for name, rows in counts.items()}


def mean_tokens(entries: Sequence[Entry]) -> dict[str, list[float]]:
    """By encoder, the mean number of tokens after each layer."""
    means = {}
    for name in dict.fromkeys(name for entry in entries for name in entry["tokens"]):
        parts = [entry["tokens"][name] for entry in entries if name in entry["tokens"]]
        requests = sum(part["requests"] for part in parts)
        means[name] = [round(sum(sums) / requests, 3) for sums in zip(*(part["sums"] for part in parts), strict=True)]
    return means


def batch_size(session: Session, options: EvaluateOptions) -> int:
    """The number of items per batch.

    Raises:
        OptionError: the artifact was not built for such a batch.
    """
    built = session.batch
    size = options.batch or (built.opt if session.manifest.is_batch_invariant else 1)
    if size > built.max:
        raise OptionError(
            f"--batch is {size}, and the artifact was built for batches of {built.min} to {built.max}",
            "",
            f"Choose another --batch, or export with --batch {built.min}:{size}:{size}.",
        )
    return size


def batching(manifest: Manifest, sizes: Iterable[int]) -> str:
    """The rule that sets the token count of a layer: "per-request", or "reference", one count per batch."""
    return "per-request" if manifest.is_packed or max(sizes) == 1 else "reference"
