"""`evaluate --against`: answers beside those of an earlier result."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.errors import OptionError
from export.evaluate.against import Earlier, decided
from tests.helpers.command_line import Ran
from tests.helpers.datasets import nlvr_data

IDENTITY = {"artifacts": {"a.onnx": "1"}, "split": "test", "temperature": 0.5}
RESULTS = {
    "identity": IDENTITY,
    "precision": "fp32",
    "answers": [{"identifier": number, "answer": number % 2 == 0, "probability": 0.9} for number in range(4)],
    "mean_tokens": {"vision": [20.0, 10.0]},
}


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_answers_count_and_not_their_probabilities(tmp_path: Path) -> None:
    earlier = Earlier.read(written(tmp_path / "fp32.json", RESULTS))
    answers = [entry | {"probability": 0.6} for entry in RESULTS["answers"]]
    answers[1] = answers[1] | {"answer": True}
    earlier.check(IDENTITY | {"artifacts": {"b.onnx": "2"}})
    found = earlier.agreement({"answers": answers, "mean_tokens": {"vision": [20.0, 10.3]}})
    assert (found["equal"], found["answers"], found["precision"]) == (3, 4, "fp32")
    assert found["tokens_percent"] == {"vision": pytest.approx(1.0)}


def test_a_ranking_is_decided_by_its_first() -> None:
    images, texts = [{"image": "a", "texts": [3, 1]}], [{"text": 0, "images": [0, 2]}]
    assert decided({"images": images, "texts": texts}) == [3, 0]


def test_another_data_set_or_setting_is_refused(tmp_path: Path) -> None:
    earlier = Earlier.read(written(tmp_path / "fp32.json", RESULTS))
    with pytest.raises(OptionError, match="does not compare"):
        earlier.check(IDENTITY | {"temperature": 0.4})


@pytest.mark.parametrize("content", [[], {"identity": 1}, {**RESULTS, "identity": []}])
def test_what_is_no_result_is_refused(content: object, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="is no result of evaluate"):
        Earlier.read(written(tmp_path / "x.json", content))


def test_the_command_says_it(
    run_cli: Callable[..., Ran], tiny_artifact: Path, samples_folder: Path, tmp_path: Path
) -> None:
    data, vocabulary = nlvr_data(tmp_path / "data"), samples_folder / "vocab.txt"
    evaluate = ("evaluate", tiny_artifact / "out.json", "--data", data, "--vocab", vocabulary, "--threads", 1)
    assert run_cli(*evaluate, "-o", tmp_path / "first.json").status == 0
    ran = run_cli(*evaluate, "-o", tmp_path / "second.json", "--against", tmp_path / "first.json")
    assert ran.status == 0, ran.err
    assert "7 of 7 answers equal; tokens vision +0.0 %, text +0.0 %" in " ".join(ran.out.split())
    assert json.loads((tmp_path / "second.json").read_text())["against"]["equal"] == 7
    run_cli(*evaluate, "-o", tmp_path / "x.json", "--against", tmp_path / "none.json").refused("cannot read --against")
    run_cli(*evaluate, "-o", tmp_path / "first.json", "--against", tmp_path / "first.json").refused("would overwrite")
