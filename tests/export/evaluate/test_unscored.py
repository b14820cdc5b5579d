"""A score that no answer could reach, or that no answer could miss, is left out, with the reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from export.evaluate.evaluation import scored
from export.evaluate.metrics import Scores, caption_scores, recall, vqa_score
from madtp.errors import InputError
from tests.helpers.artifacts import TaskArtifacts
from tests.helpers.command_line import Ran
from tests.helpers.datasets import VAL, question, write

LONG = ["a man rides a big wave", "two dogs run in the grass", "a red bus on a street"]


@pytest.mark.parametrize("people", [1, 2, 3])
def test_too_few_people_cannot_make_an_answer_right(people: int) -> None:
    references = [["yes"] * 10, ["dog"] * people, ["cat"] * people]
    scores = vqa_score(["yes", "dog", "cat"], references, ["a", "07", 9])
    assert dict(scores) == {}
    assert (
        "2 of 3 questions have fewer than 4 reference answers, the first is question '07'"
        in (scores.unscored["accuracy"])
    )
    with pytest.raises(InputError, match=f"(?s)'accuracy'.*{people}"):
        scores["accuracy"]
    assert "question 1 with" in vqa_score(["yes", "dog", "cat"], references).unscored["accuracy"]
    with pytest.raises(KeyError):
        scores["other"]


def test_people_who_disagree_are_scored_as_published() -> None:
    ten = [f"{n} cats" for n in range(10)]
    scores = vqa_score(["1 cats", "dog"], [ten, ["dog"] * 4])
    assert scores == {"accuracy": pytest.approx((30 + 100) / 2)}
    assert scores.unscored == {}


@pytest.mark.parametrize("answer", ["", "the", " . "])
def test_no_answer_equals_an_empty_one(answer: str) -> None:
    assert vqa_score([answer], [[""] * 5 + ["yes"] * 5]) == {"accuracy": 0}


@pytest.mark.parametrize("words", [1, 2, 3])
def test_bleu_needs_a_reference_of_so_many_words(words: int) -> None:
    texts = [" ".join(text.split()[1 : 1 + words]) for text in LONG]
    scores = caption_scores(texts, [[text] for text in texts])
    assert set(scores) == {f"bleu_{n}" for n in range(1, words + 1)}
    assert all(score == pytest.approx(100, abs=1e-4) for score in scores.values())
    assert scores.unscored["bleu_4"] == "no reference caption has 4 words"
    assert "3 of 3 images have reference captions that are too short" in scores.unscored["cider"]


def test_cider_tells_images_apart() -> None:
    alone = caption_scores(LONG[:1], [LONG[:1]], ["val/a.jpg"])
    assert "cider" not in alone
    assert "1 of 1 images" in alone.unscored["cider"]
    assert "the first is image 'val/a.jpg'" in alone.unscored["cider"]
    assert alone["bleu_4"] == pytest.approx(100, abs=1e-4)
    same = caption_scores(LONG[:2], [LONG[:1]] * 2)
    assert "2 of 2 images" in same.unscored["cider"]
    mixed = caption_scores(LONG, [[text] for text in [*LONG[:2], "a bus"]])
    assert "1 of 3 images" in mixed.unscored["cider"]
    assert "image 2" in mixed.unscored["cider"]
    full = caption_scores(LONG, [[text, "a bus"] for text in LONG])
    assert (full.unscored, full["cider"] > 0) == ({}, True)


def pairs(images: int, own: int) -> list[list[int]]:
    return [list(range(image * own, (image + 1) * own)) for image in range(images)]


@pytest.mark.parametrize(
    ("images", "own", "left_out"),
    [
        (1, 5, {"txt_r1", "txt_r5", "txt_r10", "img_r1", "img_r5", "img_r10"}),
        (5, 1, {"txt_r5", "txt_r10", "img_r5", "img_r10"}),
        (5, 2, {"txt_r10", "img_r5", "img_r10"}),
        (6, 2, {"img_r10"}),
        (10, 1, {"txt_r10", "img_r10"}),
        (11, 1, set()),
    ],
)
def test_a_recall_that_cannot_be_missed_is_left_out(images: int, own: int, left_out: set[str]) -> None:
    """Every score is the worst that there is, so that what is left is zero."""
    texts_of_image = pairs(images, own)
    worst = torch.ones(images, images * own)
    for image, texts in enumerate(texts_of_image):
        worst[image, texts] = 0
    scores = recall(worst, worst.mT, texts_of_image)
    means = {f"{name}_r_mean" for name in ("txt", "img") if any(one.startswith(name) for one in left_out)}
    expected = left_out | means | ({"r_mean"} if left_out else set())
    assert set(scores.unscored) == expected
    assert (
        set(scores)
        == {
            *(f"{way}_r{k}" for way in ("txt", "img") for k in (1, 5, 10)),
            "txt_r_mean",
            "img_r_mean",
            "r_mean",
        }
        - expected
    )
    assert all(score == 0 for score in scores.values())


def test_candidates_that_were_not_matched_are_not_recalled() -> None:
    scores = recall(torch.eye(30), torch.eye(30), pairs(30, 1), matched=5)
    assert set(scores) == {"txt_r1", "txt_r5", "img_r1", "img_r5"}
    assert scores.unscored["txt_r10"] == "only 5 texts of each row were matched"
    assert recall(torch.eye(30), torch.eye(30), pairs(30, 1), matched=10).unscored == {}


def test_reasons_are_told_once() -> None:
    outcome = scored(Scores({"a": 1.0}, {"b": "few", "c": "few", "d": "none"}), [])
    assert (outcome.metrics, outcome.unscored) == ({"a": 1.0}, "b, c: few; d: none")
    assert scored(Scores({}, {"b": "few"}), []).metrics is None
    assert scored(Scores({"a": 1.0}), []).unscored is None


@pytest.fixture
def evaluated(
    run_cli: Callable[..., Ran], task_artifacts: TaskArtifacts, tmp_path: Path
) -> Callable[..., tuple[str, dict[str, Any]]]:
    """What `evaluate` prints and writes of a data set."""

    def run(task: str, name: str, entries: list[Any]) -> tuple[str, dict[str, Any]]:
        data = write(tmp_path / "data", name, entries)
        (data / "answer_list.json").write_text('["one", "digit"]')
        output = tmp_path / "results.json"
        ran = run_cli("evaluate", task_artifacts[task] / "out.json", "--data", data, "-o", output)
        assert ran.status == 0, ran
        return ran.out, json.loads(output.read_text())

    return run


Evaluated = Callable[..., tuple[str, dict[str, Any]]]


@pytest.mark.parametrize("people", [1, 2, 3, 4])
def test_an_artifacts_own_answers_as_references(people: int, evaluated: Evaluated) -> None:
    name = "vqa_val.json"
    _, first = evaluated("vqa", name, [question(key) for key in (1, "02")])
    own = [
        question(one["question_id"], answer=[one["answer"]] * (people if number else 10))
        for number, one in enumerate(first["answers"])
    ]
    printed, results = evaluated("vqa", name, own)
    assert results["answers"] == first["answers"]
    if people > 3:
        assert (results["metrics"], results["unscored"]) == ({"accuracy": 100.0}, None)
        return
    assert results["metrics"] is None
    assert results["unscored"].startswith("accuracy: 1 of 2 questions have fewer than 4 reference answers")
    assert "question '02'" in results["unscored"]
    assert "unscored: accuracy: 1 of 2" in printed
    assert "0.00" not in printed


def test_questions_without_answers_are_counted(evaluated: Evaluated) -> None:
    entries = [question(1), {name: value for name, value in question("07").items() if name != "answer"}]
    _, results = evaluated("vqa", "vqa_val.json", entries)
    assert results["metrics"] is None
    assert results["unscored"].endswith("compare with: 1 of 2 have none, the first is '07'")


@pytest.mark.parametrize("task", ["retrieval", "clip"])
def test_a_small_data_set_has_no_recall_at_ten(task: str, evaluated: Evaluated) -> None:
    entries = [{"image": f"{number}-{VAL}", "caption": [f"a digit {number}", "one"]} for number in range(4)]
    printed, results = evaluated(task, "coco_karpathy_test.json", entries)
    assert set(results["metrics"]) == {"txt_r1", "txt_r5", "img_r1"}
    assert "txt_r10: of 8 texts at most 6 are wrong" in results["unscored"]
    assert "img_r5, img_r10: of 4 images at most 3 are wrong" in results["unscored"]
    assert f"unscored: {results['unscored']}" in printed


def test_one_image_has_no_cider(evaluated: Evaluated) -> None:
    _, results = evaluated("caption", "coco_karpathy_test.json", [{"image": VAL, "caption": ["the left image shows"]}])
    assert set(results["metrics"]) == {f"bleu_{n}" for n in range(1, 5)}
    assert results["unscored"].startswith("cider: 1 of 1 images")
