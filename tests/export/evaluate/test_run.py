"""Runs over a data set by a session that is made up: what is written, how a cut run goes on, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

import export.evaluate.items
from export.engine.range import Range
from export.errors import BackendError, OptionError
from export.evaluate.evaluation import EvaluateOptions
from export.evaluate.journal import Journal
from export.evaluate.metrics import Scores
from export.evaluate.run import part_path
from madtp.data.datasets import Dataset, read_dataset
from madtp.errors import InputError, OutputError
from tests.helpers.datasets import ITEMS, coco_data, nlvr_data, vqa_data
from tests.helpers.evaluations import FakeSession, run, settled


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
    assert identity["data"] == {"nlvr_test.json": nlvr.sources[0].sha256}
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
