"""`python -m export evaluate` through artifacts."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import Session
from export.evaluate.evaluation import EvaluateOptions, Report
from export.evaluate.metrics import recall, vqa_score
from export.evaluate.run import evaluate, part_path
from export.session.products import Judgement
from madtp.data.datasets import Dataset, read_dataset
from madtp.data.images import read_image
from tests.helpers.command_line import Ran
from tests.helpers.datasets import ITEMS, coco_data, nlvr_data, vqa_data
from tests.helpers.evaluations import run, settled


@pytest.fixture
def evaluate_cli(run_cli: Callable[..., Ran], tmp_path: Path) -> Callable[..., tuple[Ran, dict[str, Any]]]:
    """Run the command; what it did, and what it wrote."""

    def run_it(manifest: Path, data: Path, *options: object) -> tuple[Ran, dict[str, Any]]:
        output = tmp_path / "results.json"
        ran = run_cli("evaluate", manifest, "--data", data, "-o", output, "--threads", 1, *options)
        return ran, json.loads(output.read_text()) if output.exists() else {}

    return run_it


Evaluate = Callable[..., tuple[Ran, dict[str, Any]]]


def test_nlvr(evaluate_cli: Evaluate, tiny_artifact: Path, samples_folder: Path, tmp_path: Path) -> None:
    data, vocabulary = nlvr_data(tmp_path / "data"), samples_folder / "vocab.txt"
    ran, results = evaluate_cli(tiny_artifact / "out.json", data, "--vocab", vocabulary, "--batch", 3, "--task", "nlvr")
    assert ran.status == 0, ran
    assert "accuracy" in ran.out
    assert "100 %  answering: 7 of 7" in ran.err
    items = read_dataset("nlvr", data).items
    expected = []
    with Session(tiny_artifact / "out.json", vocabulary=vocabulary, threads=1) as session:
        for batch in (items[:3], items[3:6], items[6:]):
            pairs = [tuple(map(read_image, item.images)) for item in batch]
            expected += session.judge(pairs, [item.sentence for item in batch], batch=3, cut=True)
    assert [(one["answer"], one["probability"]) for one in results["answers"]] == [
        (one.answer, pytest.approx(one.probability, abs=1e-6)) for one in expected
    ]
    for encoder, means in results["mean_tokens"].items():
        assert means == pytest.approx(np.mean([one.tokens[encoder] for one in expected], axis=0), abs=1e-3)
    assert results["texts_cut"] == 0


def test_signals_leave_what_was_done(
    evaluate_cli: Evaluate,
    tiny_artifact: Path,
    samples_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, options = nlvr_data(tmp_path / "data"), ("--vocab", samples_folder / "vocab.txt", "--batch", 2)
    judge, calls = Session.judge, []

    def stopping(self: Session, *arguments: Any, **named: Any) -> list[Judgement]:
        calls.append(1)
        if len(calls) in (1, 3):
            os.kill(os.getpid(), signal.SIGTERM if len(calls) == 1 else signal.SIGINT)
        return judge(self, *arguments, **named)

    monkeypatch.setattr(Session, "judge", stopping)
    ran, results = evaluate_cli(tiny_artifact / "out.json", data, *options)
    ran.refused("interrupted: nothing was done yet")
    ran, results = evaluate_cli(tiny_artifact / "out.json", data, *options)
    ran.refused("interrupted: what was done is in", "results.json.part'; run the same command to go on")
    assert results == {}
    ran, results = evaluate_cli(tiny_artifact / "out.json", data, *options)
    assert ran.status == 0, ran
    assert len(results["answers"]) == ITEMS
    assert len(calls) == 1 + 2 + 3


def test_the_command_refuses(
    evaluate_cli: Evaluate, run_cli: Callable[..., Ran], tiny_artifact: Path, samples_folder: Path, tmp_path: Path
) -> None:
    manifest, data = tiny_artifact / "out.json", nlvr_data(tmp_path / "data")
    vocabulary = ("--vocab", samples_folder / "vocab.txt")
    for options, message in (
        (("--task", "vqa"), "--task is vqa, and the artifact is of nlvr"),
        (("--split", "train"), "no annotation file"),
        (("--threads", 0), "--threads is 0"),
        ((*vocabulary, "--k-test", 3), "--k-test does not apply to nlvr"),
        ((*vocabulary, "--batch", 100), "--batch is 100"),
        ((), "there is no vocabulary"),
    ):
        evaluate_cli(manifest, data, *options)[0].refused(message)
    for path in (manifest, tiny_artifact / "out.onnx", data / "nlvr_test.json"):
        before = path.read_bytes()
        run_cli("evaluate", manifest, "--data", data, "-o", path).refused(f"'{path}'", "Name another file")
        assert path.read_bytes() == before
    evaluate_cli(tmp_path / "nothing.json", data)[0].refused("cannot read the manifest")
    for name in ("1-img0.png", "5-img1.png"):
        (data / "dev" / name).unlink()
    evaluate_cli(manifest, data)[0].refused("2 of the 14 images", "1-img0.png")
    ran, results = evaluate_cli(manifest, data, *vocabulary, "--skip-missing", "--limit", 4)
    assert (ran.status, results["items"], results["partial"], len(results["missing_images"])) == (0, 4, True, 2)
    assert "images missing: " in ran.out


def test_vqa(evaluate_cli: Evaluate, task_artifacts: dict[str, Path], tmp_path: Path) -> None:
    manifest, data = task_artifacts["vqa"] / "out.json", vqa_data(tmp_path / "data")
    items = read_dataset("vqa", data).items
    with Session(manifest, threads=1) as session:
        for options, how in (((), {"candidates": ["yes", "no", "the left digit"]}), (("--generate",), {})):
            ran, results = evaluate_cli(manifest, data, "--batch", 2, *options)
            assert ran.status == 0, ran
            expected = []
            for batch in (items[:2], items[2:4], items[4:]):
                images, questions = [read_image(item.image) for item in batch], [item.question for item in batch]
                expected += [answer.text for answer in session.answer(images, questions, **how)]
            assert results["answers"] == [
                {"question_id": 100 + number, "answer": text} for number, text in enumerate(expected)
            ]
            assert results["metrics"] == vqa_score(expected, [item.answers for item in items])
            assert results["identity"]["options"]["generate"] == bool(options)
            assert results["identity"]["split"] == "val"


def test_caption(evaluate_cli: Evaluate, task_artifacts: dict[str, Path], tmp_path: Path) -> None:
    manifest, data = task_artifacts["caption"] / "out.json", coco_data(tmp_path / "data")
    ran, results = evaluate_cli(manifest, data, "--batch", 4)
    assert ran.status == 0, ran
    images = [read_image(item.image) for item in read_dataset("caption", data).items]
    with Session(manifest, threads=1) as session:
        expected = [caption.text for batch in (images[:4], images[4:]) for caption in session.caption(batch, batch=4)]
    assert results["answers"] == [{"image_id": n, "caption": text} for n, text in enumerate(expected, 1)]
    assert {"bleu_4", "cider"} <= results["metrics"].keys()
    assert results["identity"]["options"]["prompt"] == "a picture of "


@pytest.mark.parametrize("k_test", [3, 50])
def test_retrieval(evaluate_cli: Evaluate, task_artifacts: dict[str, Path], tmp_path: Path, k_test: int) -> None:
    """As `Session.rank` gives it; with 50, more than the artifact takes, all ten texts are matched in two batches."""
    manifest, data = task_artifacts["retrieval"] / "out.json", coco_data(tmp_path / "data")
    ran, results = evaluate_cli(manifest, data, "--batch", 2, "--k-test", k_test)
    assert ran.status == 0, ran
    ranked = rank(manifest, read_dataset("retrieval", data), k_test=k_test)
    assert results["metrics"] == ranked["metrics"]
    for encoder, means in results["mean_tokens"].items():
        assert means == pytest.approx(ranked["tokens"][encoder], abs=1e-3)
    assert results["mean_tokens"].keys() == {"vision", "text", "match"}
    assert results["texts_cut"] == 1
    assert results["identity"]["options"] == {
        "image_batch": 2,
        "text_batch": 8,
        "k_test": min(k_test, 10),
        "match_batch": min(k_test, 8),
    }
    assert ("8 candidates were matched per batch" in ran.out) == (k_test == 50)
    assert [len(entry["texts"]) for entry in results["answers"]["images"]] == [10] * 5
    assert results["answers"]["texts"][0]["images"] == ranked["best_images"]


def rank(manifest: Path, dataset: Dataset, k_test: int | None = None) -> dict[str, Any]:
    """What `Session.rank` makes of a data set, two images a batch."""
    data = dataset.retrieval
    assert data is not None
    with Session(manifest, threads=1) as session:
        images = [read_image(path) for path in data.images]
        ranking = session.rank(images, data.texts, k_test=k_test, batch=8, image_batch=2, cut=True)
    return {
        "metrics": recall(ranking.score_i2t, ranking.score_t2i, data.texts_of_image, k_test),
        "tokens": {name: counts.double().mean(dim=0).tolist() for name, counts in ranking.tokens.items()},
        "best_images": ranking.score_t2i[0].argsort(descending=True, stable=True).tolist(),
    }


def test_matched_rows_are_kept(task_artifacts: dict[str, Path], tmp_path: Path) -> None:
    dataset, output = read_dataset("retrieval", coco_data(tmp_path / "data")), tmp_path / "results.json"
    seen: list[tuple[str, int]] = []

    def stopping_at(stop: tuple[str, int]) -> Report:
        def report(stage: str, done: int, total: int) -> None:
            seen.append((stage, done))
            if seen[-1] == stop:
                raise KeyboardInterrupt

        return report

    # A row is reported before it is written down, so the one that stops the run is matched again.
    stops = ((("matching texts to images", 3), 0, 2), (("matching images to texts", 4), 2, 5 + 3))
    with Session(task_artifacts["retrieval"] / "out.json", threads=1) as session:
        whole = run(session, dataset, tmp_path / "whole.json")
        for stop, earlier, rows in stops:
            seen.clear()
            with pytest.raises(KeyboardInterrupt):
                evaluate(session, dataset, output, EvaluateOptions(batch=2), stopping_at(stop))
            assert len(part_path(output).read_text().splitlines()) == 1 + 1 + rows
            assert len([stage for stage, _ in seen if stage.startswith("matching")]) == rows - earlier + 1
        results = run(session, dataset, output)
    assert settled(results) == settled(whole)


def test_clip(evaluate_cli: Evaluate, task_artifacts: dict[str, Path], tmp_path: Path) -> None:
    manifest, data = task_artifacts["clip"] / "out.json", coco_data(tmp_path / "data")
    ran, results = evaluate_cli(manifest, data, "--batch", 2)
    assert ran.status == 0, ran
    ranked = rank(manifest, read_dataset("clip", data))
    assert results["metrics"] == ranked["metrics"]
    for encoder, means in results["mean_tokens"].items():
        assert means == pytest.approx(ranked["tokens"][encoder], abs=1e-3)
    assert results["answers"]["texts"][0]["images"] == ranked["best_images"]
    evaluate_cli(manifest, data, "--k-test", 3)[0].refused("--k-test does not apply to clip")
    ran, results = evaluate_cli(manifest, data, "--limit", 2)
    assert (ran.status, results["items"], results["partial"], len(results["answers"]["texts"])) == (0, 2, True, 4)
