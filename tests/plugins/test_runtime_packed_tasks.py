"""Packed artifacts in C++: what says how many states a request has goes along, and the products are the session's."""

from pathlib import Path

import pytest
import torch

import export.build.validation
import madtp.data.samples
from export import Session
from tests.helpers.checkpoints import write_task_checkpoint
from tests.helpers.command_line import run_export
from tests.helpers.samples import IMAGES, TEXTS, write_vocabulary
from tests.helpers.tasks_probe import TaskSession

CANDIDATES = ["one", "a digit", "both images show a digit"]


def opened(task: str, folder: Path) -> tuple[Session, TaskSession]:
    """A session in Python and one in C++, of an artifact whose usual batch is two."""
    write_vocabulary(folder / "vocab.txt")
    checkpoint = write_task_checkpoint(task, folder / "tiny.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.build.validation, "LATENCY_SECONDS", 0.0)
        patch.setattr(madtp.data.samples, "MIN_SAMPLES", 2)
        options = ("--layout", "packed", "--batch", "1:2:4")
        assert run_export(patch, "--ckpt", checkpoint, "--engine", folder / "out.onnx", *options) == 0
    manifest = folder / "out.json"
    return Session(manifest, threads=1, library="none"), TaskSession(manifest)


def test_answers_are_those_of_the_session(tmp_path: Path) -> None:
    theirs, ours = opened("vqa", tmp_path)
    images, questions = IMAGES[:5], [*TEXTS, "the same digit"]
    written = ours.ask("answer", images, questions, max_length=10)
    for found, expected in zip(written, theirs.answer(images, questions), strict=True):
        assert (found["text"], found["ids"], found["batch"]) == (expected.text, expected.ids, expected.batch)
        assert {name: tuple(row) for name, row in found["tokens"].items()} == expected.tokens
    chosen = ours.ask("answer", images, questions, CANDIDATES)
    for found, expected in zip(chosen, theirs.answer(images, questions, candidates=CANDIDATES), strict=True):
        assert [CANDIDATES[place] for place, _ in found["top"]] == [text for text, _ in expected.top]
        assert [score for _, score in found["top"]] == pytest.approx([score for _, score in expected.top], abs=1e-4)


def test_rankings_are_those_of_the_session(tmp_path: Path) -> None:
    theirs, ours = opened("retrieval", tmp_path)
    for options in ({}, {"k_test": 3, "match_batch": 3}):
        found = ours.ask("rank", IMAGES[:5], TEXTS, **options)
        expected = theirs.rank(IMAGES[:5], TEXTS, **options)
        for name in ("sim", "score_i2t", "score_t2i"):
            torch.testing.assert_close(torch.tensor(found[name]), getattr(expected, name), atol=1e-5, rtol=1e-5)
        assert found["tokens"] == {name: rows.tolist() for name, rows in expected.tokens.items()}
