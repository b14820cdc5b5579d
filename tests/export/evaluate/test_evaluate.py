"""Evaluations of whole data sets: scores, what is written, and runs that are cut short and go on."""

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import export.evaluate.items
from export import Session
from export.engine.profile import Range
from export.errors import BackendError, OptionError
from export.evaluate.evaluation import EvaluateOptions, Report
from export.evaluate.journal import Journal
from export.evaluate.metrics import Scores, recall, vqa_score
from export.evaluate.run import evaluate, part_path
from export.session.products import Caption, Judgement
from madtp.data.datasets import Dataset, read_dataset
from madtp.data.images import read_image
from madtp.errors import InputError, OutputError
from tests.helpers.command_line import Ran
from tests.helpers.datasets import ITEMS, coco_data, nlvr_data, vqa_data

VARYING = ("seconds", "created")  # of two runs that come to the same


class FakeSession:
    """A session whose answers depend on all of a batch; it can be told to be cut short at a batch."""

    def __init__(self, task: str = "nlvr", artifact: str = "ab", batch: Range | None = None) -> None:
        self.task, self.temperature, self.batch = task, 0.5, batch or Range(1, 2, 4)
        self.processor = SimpleNamespace(
            sha256="cd", is_cut=lambda text: len(text) > 100, ids=lambda text, cut: [*text.split(), "ENC", "SEP"]
        )
        self.text = Range(2, 12, 64)
        self.manifest = {
            "parts": [{"artifact": "out.onnx", "sha256": artifact}],
            "checkpoint": {"sha256": "ef"},
            "preprocessing": {"text": {"prompt": "a picture of "}},
        }
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


@pytest.fixture(scope="module")
def nlvr(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return read_dataset("nlvr", nlvr_data(tmp_path_factory.mktemp("nlvr")))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "results.json"


def test_a_whole_run(nlvr: Dataset, output: Path) -> None:
    session = FakeSession()
    results = run(session, nlvr, output)
    assert json.loads(output.read_text()) == results
    assert list(output.parent.iterdir()) == [output]
    sentences = [item.sentence for item in nlvr.items]
    assert session.asked == [sentences[:2], sentences[2:4], sentences[4:6], sentences[6:]]
    given = [answer["answer"] for answer in results["answers"]]
    right = sum(answer == (number % 2 == 0) for number, answer in enumerate(given))
    assert results["metrics"] == {"accuracy": pytest.approx(100 * right / ITEMS)}
    assert results["answers"][3]["identifier"] == "test-3"
    assert (results["items"], results["partial"], results["texts_cut"], results["missing_images"]) == (7, False, 1, [])
    totals = [sum(map(len, batch)) for batch in session.asked for _ in batch]
    assert results["mean_tokens"] == {
        "vision": [round(sum(totals) / ITEMS, 3), 3.0],
        "text": [round((6 * 2 + 1) / ITEMS, 3)],
    }
    identity = results["identity"]
    assert identity["artifacts"] == {"out.onnx": "ab"}
    assert identity["data"] == {"nlvr_test.json": nlvr.sha256}
    assert (identity["temperature"], identity["options"]) == (0.5, {"batch": 2})


@pytest.mark.parametrize("tear", ["none", "added", "last"])
@pytest.mark.parametrize("batch", range(4))
def test_a_run_that_was_cut_short_goes_on(nlvr: Dataset, output: Path, batch: int, tear: str) -> None:
    whole = run(FakeSession(), nlvr, output.with_name("whole.json"))
    first, part = FakeSession(), part_path(output)
    first.stop_at = batch
    with pytest.raises(KeyboardInterrupt):
        run(first, nlvr, output)
    assert not output.exists()
    assert part.exists() == (batch > 0)
    done = batch
    if part.exists() and tear == "added":  # killed while it wrote the next line
        part.write_bytes(part.read_bytes() + b'{"step": 9, "answers": [[tr')
    if part.exists() and tear == "last":  # ... or the last one that seemed done
        part.write_bytes(part.read_bytes()[:-1])
        done -= 1
    second = FakeSession()
    results = run(second, nlvr, output)
    assert settled(results) == settled(whole)
    assert first.asked[:done] + second.asked == [*first.asked[:done], *second.asked[-(4 - done) :]]
    assert sum(map(len, [*first.asked[:done], *second.asked])) == ITEMS
    assert not part.exists()


def test_a_file_torn_anywhere_loses_one_step_at_most(tmp_path: Path) -> None:
    path = tmp_path / "a.part"
    with Journal(path, {"a": 1}) as journal:
        journal.append({"n": 0})
        journal.append({"n": 1})
    data = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(data) if byte == ord("\n")]
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        with Journal(path, {"a": 1}) as journal:
            assert journal.entries == [{"n": 0}, {"n": 1}][: max(sum(end <= length for end in ends) - 1, 0)]
            if length == ends[1]:
                journal.append({"n": 1})
                assert path.read_bytes() == data
    path.write_bytes(data[: ends[0]])
    with Journal(path, {"a": 1}):
        pass
    assert not path.exists()  # nothing was done


def test_what_is_of_another_run_is_refused(nlvr: Dataset, output: Path, tmp_path: Path) -> None:
    session = FakeSession()
    session.stop_at = 2
    with pytest.raises(KeyboardInterrupt):
        run(session, nlvr, output)
    kept = part_path(output).read_bytes()
    changed = read_dataset("nlvr", nlvr_data(tmp_path / "other", label="True"))
    cases: list[tuple[FakeSession, Dataset, dict[str, Any], str]] = [
        (FakeSession(artifact="xy"), nlvr, {}, r'artifacts\.out\.onnx: "ab", now "xy"'),
        (FakeSession(), changed, {}, r"data\.nlvr_test\.json: "),
        (FakeSession(), nlvr, {"temperature": 0}, r"temperature: 0\.5, now 0"),
        (FakeSession(), nlvr, {"batch": 3}, r"options\.batch: 2, now 3"),
        (FakeSession(), nlvr, {"limit": 5}, r"items: 7, now 5\nitems_sha256: "),
    ]
    for other, data, options, message in cases:
        with pytest.raises(InputError, match=f"What differs:\n.*{message}"):
            run(other, data, output, **options)
        assert other.asked == []
        assert part_path(output).read_bytes() == kept


def test_two_runs_do_not_share_a_file(nlvr: Dataset, output: Path) -> None:
    with Journal(part_path(output), {}), pytest.raises(InputError, match="another run is writing"):
        run(FakeSession(), nlvr, output)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("text\n", "line 1 of .* is broken"),
        ("[]\n", "line 1 of .* is broken"),
        ('{"schema": 1}\n', "line 1 of .* is broken"),
        ('{"schema": 1, "identity": {}}\n{\n', "line 2 of .* is broken"),
        ('{"schema": 1, "identity": {}}\n{"step": 0}\n{"step": 0}\n', "line 3 of .* is broken\nIt should be step 1"),
        ('{"schema": 1, "identity": {}}\n{"step": 1}\n', "line 2 of .* is broken"),
    ],
)
def test_a_broken_file_is_refused(lines: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.part"
    path.write_text(lines)
    with pytest.raises(InputError, match=message):
        Journal(path, {})
    assert path.read_text() == lines


def test_a_file_that_cannot_be_written(nlvr: Dataset, output: Path) -> None:
    part_path(output).mkdir()
    with pytest.raises(OutputError, match=r"results\.json\.part"):
        run(FakeSession(), nlvr, output)
    with pytest.raises(OutputError, match="nowhere"):
        run(FakeSession(), nlvr, output.parent / "nowhere/results.json")


def test_numbers_that_are_not_finite_are_no_result(nlvr: Dataset, output: Path) -> None:
    session = FakeSession()
    session.probability = float("nan")
    with pytest.raises(InputError, match="not finite"):
        run(session, nlvr, output)
    assert list(output.parent.iterdir()) == []


def test_limits_and_batches(nlvr: Dataset, output: Path) -> None:
    session = FakeSession()
    results = run(session, nlvr, output, limit=3, batch=4)
    assert (results["items"], results["partial"], list(map(len, session.asked))) == (3, True, [3])
    for options, message in (({"batch": 5}, "batches of 1 to 4"), ({"generate": True}, "--generate does not apply")):
        with pytest.raises(OptionError, match=message):
            run(session, nlvr, output, **options)
    for options in ({"batch": 0}, {"limit": 0}, {"k_test": -1}, {"temperature": -0.1}, {"temperature": float("nan")}):
        with pytest.raises(OptionError):
            EvaluateOptions(**options)
    alone = FakeSession(batch=Range(2, 3, 4))  # whatever the artifact was built for
    assert run(alone, nlvr, output, batch=None)["batching"] == "per-request"
    assert list(map(len, alone.asked)) == [1] * ITEMS
    together = FakeSession()
    assert run(together, nlvr, output, batch=3)["batching"] == "reference"
    assert list(map(len, together.asked)) == [3, 3, 1]


def test_sentences_without_labels_are_answered_and_not_scored(output: Path, tmp_path: Path) -> None:
    results = run(FakeSession(), read_dataset("nlvr", nlvr_data(tmp_path / "data", label=None)), output)
    assert results["metrics"] is None
    assert results["unscored"] == "not every sentence has a label: 7 of 7 have none, the first is 'test-0'"
    assert len(results["answers"]) == ITEMS


def test_captions_are_kept_where_they_cannot_be_scored(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = read_dataset("caption", coco_data(tmp_path / "data"))

    def missing(*_: object) -> Scores:
        raise BackendError("captions cannot be scored", fix="Run: pip install it.")

    monkeypatch.setattr(export.evaluate.items, "caption_scores", missing)
    results = run(FakeSession("caption"), dataset, output)
    assert results["metrics"] is None
    assert "pip install it. Then run the same command again" in results["unscored"]
    assert results["answers"][0] == {"image_id": 1, "caption": "a digit"}
    monkeypatch.setattr(export.evaluate.items, "caption_scores", lambda *_: Scores({"bleu_4": 12.0}))
    again = FakeSession("caption")
    results = run(again, dataset, output)
    assert (results["metrics"], results["unscored"], again.asked) == ({"bleu_4": 12.0}, None, [])
    assert not part_path(output).exists()


def test_vqa_needs_answers_to_choose_from(output: Path, tmp_path: Path) -> None:
    data = vqa_data(tmp_path / "data")
    (data / "answer_list.json").unlink()
    with pytest.raises(InputError, match=r"no answer_list\.json"):
        run(FakeSession("vqa"), read_dataset("vqa", data), output)


def test_a_broken_image_is_named_and_the_run_goes_on_once_it_is_mended(output: Path, tmp_path: Path) -> None:
    data = nlvr_data(tmp_path / "data")
    broken = data / "dev/4-img1.png"
    good = broken.read_bytes()
    broken.write_bytes(good[:50])
    dataset = read_dataset("nlvr", data)
    first, second = FakeSession(), FakeSession()
    with pytest.raises(InputError, match=str(broken)):
        run(first, dataset, output)
    broken.write_bytes(good)
    run(second, dataset, output)
    assert (len(first.asked), len(second.asked)) == (2, 2)


# Through real artifacts.


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
    assert "their images are missing" in ran.out


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
