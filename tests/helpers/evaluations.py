"""Evaluations of a session that is made up."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from export import Session
from export.engine.range import Range
from export.evaluate.evaluation import EvaluateOptions
from export.evaluate.run import evaluate
from export.runtime.buckets import OverflowCount
from export.session.products import Caption, Judgement
from madtp.data.datasets import Dataset

VARYING = ("seconds", "created")  # of two runs that come to the same


class FakeSession:
    """A session whose answers depend on all of a batch; it can be told to be cut short at a batch."""

    def __init__(self, task: str = "nlvr", artifact: str = "ab", batch: Range | None = None) -> None:
        self.task, self.temperature, self.batch = task, 0.5, batch or Range(1, 2, 4)
        self.execution, self.overflows = None, OverflowCount()
        self.processor = SimpleNamespace(
            sha256="cd", is_cut=lambda text: len(text) > 100, ids=lambda text, cut: [*text.split(), "ENC", "SEP"]
        )
        self.text = Range(2, 12, 64)
        self.manifest = SimpleNamespace(
            part_hashes={"out.onnx": artifact},
            precision="fp32",
            checkpoint=SimpleNamespace(sha256="ef"),
            is_packed=False,
            is_sized=False,
            is_batch_invariant=False,
            preprocessing=SimpleNamespace(text=SimpleNamespace(prompt="a picture of ")),
        )
        self.asked: list[list[str]] = []
        self.stop_at: int | None = None
        self.probability = 0.75

    def judge(
        self, images: Sequence[Any], sentences: Sequence[str], *, batch: int, temperature: float, cut: bool
    ) -> list[Judgement]:
        if len(self.asked) == self.stop_at:
            raise KeyboardInterrupt
        assert len(images) == len(sentences) <= batch
        assert cut
        self.asked.append(list(sentences))
        total = sum(map(len, sentences))
        tokens = {"vision": (total, 3), "text": (len(sentences),)}
        return [
            Judgement((total + len(one)) % 2 == 0, self.probability, (0.0, 1.0), tokens, batch) for one in sentences
        ]

    def caption(self, images: Sequence[Any], *, batch: int, temperature: float, **limits: int) -> list[Caption]:
        assert limits == {"beams": 3, "max_length": 20, "min_length": 5}
        self.asked.append([str(image.size) for image in images])
        return [Caption("a digit", [1], {"vision": (5,)}, batch) for _ in images]


def ignored(*_: object) -> None:
    """Progress that nobody looks at."""


def run(session: FakeSession | Session, dataset: Dataset, output: Path, **options: Any) -> dict[str, Any]:
    """Two at a time, unless `options` say otherwise."""
    chosen = EvaluateOptions(**({"batch": 2} | options))
    return evaluate(session, dataset, output, chosen, ignored)  # type: ignore[arg-type]


def settled(results: dict[str, Any]) -> dict[str, Any]:
    """What two runs have to agree in."""
    return {key: value for key, value in results.items() if key not in VARYING}
