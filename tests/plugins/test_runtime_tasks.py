"""A C++ program gets the products of `export.Session`: judgements, answers, captions and rankings."""

import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from export import Session
from export.session.products import Answer, Caption, Judgement, Ranking
from madtp.data.default_samples import demo_samples
from madtp.errors import InputError
from tests.helpers.artifacts import TaskArtifacts
from tests.helpers.manifests import edit_manifest
from tests.helpers.samples import IMAGES, TEXTS, write_vocabulary
from tests.helpers.tasks_probe import ProbeError, TaskSession

OTHERS = ("vqa", "caption", "retrieval", "clip")
DEMOS = [sample.images[0] for sample in demo_samples("caption", 6)]
CANDIDATES = ["one", "a digit", "the left image", "same", "both images show a digit", "a image", "right"]
Pair = tuple[Session, TaskSession]
Open = Callable[[str], Pair]


@pytest.fixture(scope="module")
def opened(tiny_artifact: Path, task_artifacts: TaskArtifacts, tmp_path_factory: pytest.TempPathFactory) -> Open:
    """A session in Python and one in C++, by task; opened once."""
    vocabulary = write_vocabulary(tmp_path_factory.mktemp("vocabulary") / "vocab.txt")

    @cache
    def pair(task: str) -> Pair:
        folder, words = (tiny_artifact, vocabulary) if task == "nlvr" else (task_artifacts[task], None)
        theirs = Session(folder / "out.json", threads=1, library="none", vocabulary=words)
        return theirs, TaskSession(folder / "out.json", words or "")

    return pair


def assert_same_tokens(found: dict[str, list[int]], expected: dict[str, tuple[int, ...]]) -> None:
    assert {name: tuple(row) for name, row in found.items()} == expected


def assert_judgements(found: list[dict[str, Any]], expected: list[Judgement]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours["answer"], tuple(ours["logits"]), ours["batch"]) == (theirs.answer, theirs.logits, theirs.batch)
        assert ours["probability"] == pytest.approx(theirs.probability, abs=1e-6)
        assert_same_tokens(ours["tokens"], theirs.tokens)


def assert_answers(found: list[dict[str, Any]], expected: list[Answer], candidates: list[str]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours["text"], ours["ids"], ours["batch"]) == (theirs.text, theirs.ids, theirs.batch)
        assert ours["ranked"] == (theirs.how == "ranked")
        assert [candidates[place] for place, _ in ours["top"]] == [text for text, _ in theirs.top]
        assert [score for _, score in ours["top"]] == pytest.approx([score for _, score in theirs.top], abs=1e-4)
        assert_same_tokens(ours["tokens"], theirs.tokens)


def assert_captions(found: list[dict[str, Any]], expected: list[Caption]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours["text"], ours["ids"], ours["batch"]) == (theirs.text, theirs.ids, theirs.batch)
        assert_same_tokens(ours["tokens"], theirs.tokens)


def assert_ranking(found: dict[str, Any], expected: Ranking) -> None:
    for name in ("sim", "score_i2t", "score_t2i"):
        torch.testing.assert_close(torch.tensor(found[name]), getattr(expected, name), atol=1e-5, rtol=1e-5)
    assert found["tokens"] == {name: rows.tolist() for name, rows in expected.tokens.items()}
    assert [[[place for place, _ in row] for row in way] for way in found["top"]] == [
        [[place for place, _ in row] for row in way] for way in expected.top(2)
    ]
    assert found["batch"] == [expected.batch.images, expected.batch.texts, expected.batch.pairs]


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"temperature": 0.7}, {"batch": 3}], ids=str)
def test_judgements_are_those_of_the_session(opened: Open, options: dict[str, float]) -> None:
    theirs, ours = opened("nlvr")
    left, right = [*IMAGES[:4], *DEMOS], [*IMAGES[4:8], *DEMOS[::-1]]
    texts = [*TEXTS, *TEXTS, *TEXTS[:2]]
    found = ours.ask("judge", [image for pair in zip(left, right, strict=True) for image in pair], texts, **options)
    assert_judgements(found, theirs.judge(list(zip(left, right, strict=True)), texts, **options))


@pytest.mark.parametrize("options", [{}, {"batch": 3}, {"beams": 1}, {"beams": 5, "min_length": 7}], ids=str)
def test_written_answers_are_those_of_the_session(opened: Open, options: dict[str, int]) -> None:
    theirs, ours = opened("vqa")
    images, questions = [*IMAGES[:3], *DEMOS[:4]], [*TEXTS, *TEXTS[:3]]
    found = ours.ask("answer", images, questions, max_length=10, **options)
    assert_answers(found, theirs.answer(images, questions, **options), [])


@pytest.mark.parametrize("options", [{}, {"batch": 3}, {"k": 3}, {"temperature": 0, "k": 1}], ids=str)
def test_chosen_answers_are_those_of_the_session(opened: Open, options: dict[str, int]) -> None:
    theirs, ours = opened("vqa")
    images, questions = [*IMAGES[:3], *DEMOS[:4]], [*TEXTS, *TEXTS[:3]]
    found = ours.ask("answer", images, questions, CANDIDATES, **options)
    assert_answers(found, theirs.answer(images, questions, candidates=CANDIDATES, **options), CANDIDATES)


@pytest.mark.parametrize("options", [{}, {"batch": 4}, {"beams": 1}, {"beams": 8, "max_length": 12}], ids=str)
def test_captions_are_those_of_the_session(opened: Open, options: dict[str, int]) -> None:
    theirs, ours = opened("caption")
    images = [*IMAGES[:4], *DEMOS[:3]]
    expected = theirs.caption(images, **options)
    assert_captions(ours.ask("caption", images, **{"max_length": 20, "min_length": 5, **options}), expected)


def test_a_caption_goes_on_from_its_prompt(opened: Open) -> None:
    theirs, ours = opened("caption")
    for prompt in ("the left", ""):
        found = ours.ask("caption", IMAGES[:2], [prompt], max_length=9)
        assert_captions(found, theirs.caption(IMAGES[:2], prompt=prompt, max_length=9, min_length=1))


@pytest.mark.parametrize("options", [{}, {"k_test": 2}, {"batch": 3}, {"match_batch": 4, "k_test": 4}], ids=str)
@pytest.mark.parametrize("task", ["retrieval", "clip"])
def test_rankings_are_those_of_the_session(opened: Open, task: str, options: dict[str, int]) -> None:
    theirs, ours = opened(task)
    texts: list[Any] = TEXTS
    if task == "clip":
        options = {name: value for name, value in options.items() if name == "batch"}
        texts = [theirs.processor.ids(text) for text in TEXTS]
    images = [*IMAGES[:3], *DEMOS[:2]]
    assert_ranking(ours.ask("rank", images, texts, **options), theirs.rank(images, TEXTS, **options))


@pytest.mark.parametrize("task", ["nlvr", "vqa"])
def test_ids_are_taken_in_the_place_of_texts(opened: Open, task: str) -> None:
    theirs, ours = opened(task)
    method, images = ("judge", IMAGES[:2]) if task == "nlvr" else ("answer", IMAGES[:1])
    by_ids = ours.ask(method, images, [theirs.processor.ids(TEXTS[0])], max_length=10)
    assert by_ids == ours.ask(method, images, TEXTS[:1], max_length=10)


def test_without_a_vocabulary_ids_are_answered(
    opened: Open, task_artifacts: TaskArtifacts, tiny_artifact: Path
) -> None:
    ours = TaskSession(tiny_artifact / "out.json")
    with pytest.raises(ProbeError) as refused:
        ours.ask("judge", IMAGES[:2], TEXTS[:1])
    assert "there is no vocabulary beside" in refused.value.what
    ids = opened("nlvr")[0].processor.ids(TEXTS[0])
    assert ours.ask("judge", IMAGES[:2], [ids]) == opened("nlvr")[1].ask("judge", IMAGES[:2], TEXTS[:1])


def test_another_vocabulary_than_the_manifests_is_refused(task_artifacts: TaskArtifacts, tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocab.txt"
    shutil.copy(task_artifacts["vqa"] / "vocab.txt", vocabulary)
    vocabulary.write_text(vocabulary.read_text().replace("[unused9]", "[unused-9]"))
    with pytest.raises(ProbeError) as refused:
        TaskSession(task_artifacts["vqa"] / "out.json", vocabulary)
    assert refused.value.what == f"the vocabulary '{vocabulary}' is not the one that the artifact was exported with"


def with_output(part: int, name: str, **fields: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        (found,) = (output for output in manifest["parts"][part]["outputs"] if output["name"] == name)
        found.update(fields)

    return change


@pytest.mark.parametrize(
    ("task", "change", "words"),
    [
        ("caption", lambda m: m["config"].update(sep_token_id=-1), "a sep_token_id of -1.000000"),
        ("caption", lambda m: m["config"].update(sep_token_id=1e30), "a sep_token_id of"),
        ("vqa", lambda m: m["config"].update(vocab_size=10), "a (sep|bos)_token_id of|the output 'logits'"),
        ("vqa", lambda m: m["config"].pop("pad_token_id"), "config has no pad_token_id"),
        ("retrieval", lambda m: m["config"].update(enc_token_id=0.5), "a enc_token_id of 0.5"),
        ("retrieval", with_output(2, "itm_logits", shape=["batch", 1]), "the output 'itm_logits' of part 'match'"),
        ("clip", with_output(0, "image_embed", shape=["batch", 99]), "the output 'text_embed' of part 'text'"),
        ("caption", with_output(0, "vision_token_counts", shape=["batch"]), "no count for each layer"),
        ("clip", lambda m: m["preprocessing"]["image"].update(mode="L"), "in a way that this library does not know"),
    ],
)
def test_manifests_that_no_export_writes_are_refused(
    task_artifacts: TaskArtifacts, tmp_path: Path, task: str, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    folder = tmp_path / task
    shutil.copytree(task_artifacts[task], folder)
    edit_manifest(folder / "out.json", change)
    with pytest.raises(ProbeError) as refused:
        TaskSession(folder / "out.json")
    assert re.search(words, refused.value.what)


LARGE = Image.new("RGB", (1, 1))
REFUSED: dict[str, tuple[str, str, list[Any], list[Any], dict[str, int], str]] = {
    "another task": ("vqa", "judge", IMAGES[:2], ["a"], {}, "this session is of a vqa model, which cannot judge"),
    "no requests": ("nlvr", "judge", [], [], {}, "there are 0 requests"),
    "a batch beyond": ("nlvr", "judge", IMAGES[:2], ["a"], {"batch": 9}, "batch is 9"),
    "a long text": ("nlvr", "judge", IMAGES[:2], ["a " * 41], {}, "sentence 0: the text 'a a"),
    "no Unicode": ("nlvr", "judge", IMAGES[:2], ["a"], {"temperature": float("inf")}, "the temperature is"),
    "an id beyond": ("nlvr", "judge", IMAGES[:2], [[299, 300]], {}, "an id of sentence 0 is 300"),
    "no ids": ("nlvr", "judge", IMAGES[:2], [[]], {}, "there are no ids of sentence 0"),
    "many beams": ("vqa", "answer", IMAGES[:1], ["a"], {"beams": 129, "max_length": 10}, "129 beams were asked for"),
    "a long answer": ("vqa", "answer", IMAGES[:1], ["a"], {"max_length": 99}, "99 ids of a text were asked for"),
    "nothing to write": ("vqa", "answer", IMAGES[:1], ["a"], {"max_length": 1}, "max_length 1 leaves nothing to write"),
    "short and long": (
        "vqa",
        "answer",
        IMAGES[:1],
        ["a"],
        {"max_length": 5, "min_length": 6},
        "min_length 6 is larger",
    ),
    "k alone": ("vqa", "answer", IMAGES[:1], ["a"], {"max_length": 5, "k": 2}, "k does not apply without candidates"),
    "no k": ("retrieval", "rank", IMAGES[:1], ["a"], {"k_test": 0}, "k_test is 0"),
    "no images": ("retrieval", "rank", [], ["a"], {}, "there are 0 images"),
    "no texts": ("retrieval", "rank", IMAGES[:1], [], {}, "there are 0 texts"),
    "CLIP's words": ("clip", "rank", IMAGES[:1], ["a"], {}, "text 0: texts of this artifact cannot be read here"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_a_bad_request_is_refused_and_the_next_one_answered(opened: Open, case: tuple[Any, ...]) -> None:
    task, method, images, texts, numbers, what = case
    theirs, ours = opened(task)
    with pytest.raises(ProbeError) as refused:
        ours.ask(method, images, texts, **numbers)
    assert refused.value.what.startswith(what)
    assert refused.value.fix or refused.value.why
    if task == "nlvr":
        assert_judgements(ours.ask("judge", IMAGES[:2], TEXTS[:1]), theirs.judge([(IMAGES[0], IMAGES[1])], TEXTS[:1]))


BAD_CANDIDATES = {
    "twice": (["one", "a", "one"], "the candidates are not different"),
    "no words": (["one", " "], "candidate 1 has no words"),
    "long": (["one", "a " * 40], "42 ids of a text were asked for, by candidate 1"),
    "an id beyond": ([[298, 5, 3], [298, -1, 3]], "an id of candidate 1 is -1"),
}


@pytest.mark.parametrize(("candidates", "what"), BAD_CANDIDATES.values(), ids=BAD_CANDIDATES)
def test_candidates_that_cannot_be_read_are_refused(opened: Open, candidates: list[Any], what: str) -> None:
    with pytest.raises(ProbeError) as refused:
        opened("vqa")[1].ask("answer", IMAGES[:1], ["a"], candidates)
    assert refused.value.what.startswith(what)
    if isinstance(candidates[0], str):
        with pytest.raises(InputError):
            opened("vqa")[0].answer(IMAGES[:1], ["a"], candidates=candidates)


@pytest.mark.parametrize("task", ["nlvr", *OTHERS])
def test_every_sample_of_the_demo_is_answered_as_by_the_session(opened: Open, task: str) -> None:
    theirs, ours = opened(task)
    samples = demo_samples(task, 24 if task == "nlvr" else 16)
    images, texts = [sample.images[0] for sample in samples], [sample.text or "" for sample in samples]
    if task == "nlvr":
        found = ours.ask("judge", [image for sample in samples for image in sample.images], texts)
        assert_judgements(found, theirs.judge([sample.images[:2] for sample in samples], texts))
    elif task == "vqa":
        assert_answers(ours.ask("answer", images, texts, max_length=10), theirs.answer(images, texts), [])
    elif task == "caption":
        assert_captions(ours.ask("caption", images, max_length=20, min_length=5), theirs.caption(images))
    else:
        given: list[Any] = [theirs.processor.ids(text) for text in texts] if task == "clip" else texts
        assert_ranking(ours.ask("rank", images, given), theirs.rank(images, texts))


def test_sessions_of_several_threads_share_an_engine(opened: Open, task_artifacts: TaskArtifacts) -> None:
    first = opened("caption")[1]
    sessions = [TaskSession(task_artifacts["caption"], beside=first) for _ in range(4)]
    expected = first.ask("caption", DEMOS, max_length=12)

    def ask(session: TaskSession) -> list[Any]:
        return [session.ask("caption", DEMOS, max_length=12) for _ in range(3)]

    with ThreadPoolExecutor(len(sessions)) as pool:
        assert list(pool.map(ask, sessions)) == [[expected] * 3] * len(sessions)
