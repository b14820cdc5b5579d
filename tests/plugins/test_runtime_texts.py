"""Texts as the C++ runtime reads them: to the ids that Python gives."""

import dataclasses
import json
import random
import unicodedata
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from madtp.data.default_samples import demo_samples
from madtp.data.tokenize import TextProcessor
from madtp.errors import InputError
from madtp.models.config import BlipConfig, ClipConfig
from tests.helpers.golden_tokenizer import AS_THEY_ARE, TASKS, base_config, bert_vocabulary, processor, write_vocabulary
from tests.helpers.paths import CARRIED_TEXTS
from tests.helpers.tasks_probe import ProbeError, Reader

RECORDED = json.loads((CARRIED_TEXTS / "cases.json").read_text())["bert"]
REQUESTS = ("nlvr", "vqa", "retrieval")
HOSTILE = [
    *("", " ", "\t\n", "...", "!", "\0", "\ufeff", "\u200d", "\U0001f468\u200d\U0001f469\u200d\U0001f467 family"),
    *("naïve CAFÉ", "Việt Nam tiếng", "\u0130stanbul ISPARTA \u0131i", "ΟΔΥΣΣΕΥΣ ΣΑΣ Σ", "ΑΣ.ΑΣ'Σ"),
    *("Straße ẞ ﬁ ǅ K Å", "日本語がぎ。東京、です", "한국어 안녕", "देवनागरी ไทย עברית العربية"),
    *("e\u0301\u0323 a\u0345", "\u2126\u212b\u1e9b\u0323", "a\x01b\x7fc\x85d\xade", "a\u2028b\u2029c\u3000d\xa0e\x1cf"),
    *("[SEP] [MASK] [DEC][ENC] [sep] [UNK", "##s ##", "-_+=<>^`|~", "don't can't o'clock ' s", "3.14 1,000 50% $5"),
    *("x" * 100, "x" * 101, "é" * 100 + " é", "I" * 60, "😀" * 5, "\ufffd\U0010ffff"),
    *("\u166d\u1734\u1885\ua9bd\U000111c9\U00011938\u07fd", "  a   b  ", "a\n\nb\n", '(a) #b *c* :d; ~e "f"'),
]


@cache
def reader(task: str) -> Reader:
    config = base_config(task)
    assert isinstance(config, BlipConfig)
    return Reader(bert_vocabulary(), config)


@cache
def python(task: str) -> TextProcessor:
    texts = processor(task)
    assert isinstance(texts, TextProcessor)
    return texts


def assert_same_ids(text: str) -> None:
    for task in REQUESTS:
        assert reader(task).ids(text, cut=True) == python(task).ids(text, cut=True), text
    assert reader("vqa").answer_ids(text) == python("vqa").answer_ids(text), text


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: f"{case['pipeline']}-{case['text'][:20]}")
def test_texts_become_the_recorded_ids(case: dict) -> None:
    texts = reader(TASKS[case["pipeline"]])
    if case["pipeline"] in AS_THEY_ARE:
        ids = texts.answer_ids(case["text"]) if case["pipeline"] == "vqa_answer" else texts.prompt_ids(case["text"])
    else:
        ids = texts.ids(case["text"], cut=True)
    assert ids == case["input_ids"][: len(ids)]
    assert not any(case["input_ids"][len(ids) :])  # padding


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_become_pythons_ids(text: str) -> None:
    assert_same_ids(text)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=40))
def test_any_text_becomes_pythons_ids(text: str) -> None:
    assert_same_ids(text)


def test_texts_of_the_demo_become_pythons_ids() -> None:
    for task in REQUESTS:
        for sample in demo_samples(task, 16):
            assert reader(task).ids(sample.text or "") == python(task).ids(sample.text or "")


@pytest.fixture(scope="module")
def every_character(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path, BlipConfig]:
    """Characters of all kinds of Unicode, and a vocabulary in which each has ids of its own: nothing is unknown."""
    kept = random.Random(0)
    characters = [chr(c) for c in range(0x21, 0x20000) if unicodedata.category(chr(c)) not in ("Cn", "Co", "Cs")]
    rare = [c for c in characters if unicodedata.category(c)[0] not in "LS" or unicodedata.decomposition(c)]
    known = sorted({*rare, *kept.sample(characters, 5000), *(c.lower()[0] for c in characters)})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *known, *(f"##{c}" for c in known)]
    ids = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3}
    ids |= {"bos_token_id": len(pieces), "enc_token_id": len(pieces) + 1, "vocab_size": len(pieces) + 2}
    config = base_config("vqa")
    assert isinstance(config, BlipConfig)
    path = write_vocabulary(pieces, tmp_path_factory.mktemp("texts") / "vocab.txt")
    return known, path, dataclasses.replace(config, **ids)


def test_all_of_unicode_is_cleaned_as_in_python(every_character: tuple[list[str], Path, BlipConfig]) -> None:
    characters, path, config = every_character
    ours, theirs = Reader(path, config), TextProcessor(path, config)
    begins = range(0, len(characters), 8)
    for text in ("a".join(characters[begin : begin + 8]) for begin in begins):
        assert ours.prompt_ids(text) == theirs.prompt_ids(text), ascii(text)
        assert ours.ids(text, cut=True) == theirs.ids(text, cut=True), ascii(text)
    mixed = random.Random(1)
    marks = [c for c in characters if unicodedata.combining(c)]
    for _ in range(1000):  # marks in any order, whose canonical order decides
        text = "".join(mixed.choice(marks if mixed.random() < 0.7 else characters) for _ in range(9))
        assert ours.prompt_ids(text) == theirs.prompt_ids(text), ascii(text)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 30523), max_size=12))
def test_ids_become_pythons_text(ids: list[int]) -> None:
    joined = [1005, 1055, 2102, 1012, 1029, 999, 1010, 1050]  # ' s t . ? ! , n
    for row in (ids, [joined[i % 8] if i % 3 else i for i in ids]):
        assert reader("caption").decode(row) == python("caption").decode(row)


LIMITS = {
    "nlvr": ("dog " * 41, "has 41 words; the limit is 40"),
    "vqa": ("dog " * 51, "has 51 words; the limit is 50"),
    "vqa ids": ("dog " * 34, "has 36 tokens; the limit is 35"),
    "retrieval": ("dog " * 31, "has 31 words; the limit is 30"),
    "retrieval ids": ("dog, " * 17, "has 36 tokens; the limit is 35"),
}


@pytest.mark.parametrize(("case", "values"), LIMITS.items(), ids=LIMITS)
def test_a_text_over_the_limit_is_refused_as_in_python(case: str, values: tuple[str, str]) -> None:
    task, (text, message) = case.split()[0], values
    with pytest.raises(ProbeError, match=message) as refused:
        reader(task).ids(text)
    assert refused.value.fix == "Shorten the text, or ask for it to be cut."
    with pytest.raises(InputError, match=message):
        python(task).ids(text)


def test_a_text_over_the_models_positions_is_refused_even_where_cut() -> None:
    config = base_config("nlvr")
    assert not isinstance(config, ClipConfig)
    texts = Reader(bert_vocabulary(), dataclasses.replace(config, max_position=20))
    with pytest.raises(ProbeError, match="20 positions"):
        texts.ids("dog " * 19, cut=True)


@pytest.mark.parametrize("data", [b"a \xff dog", b"\xed\xa0\xbd", b"caf\xe9", b"\xc0\x80", b"\xf0\x9f\x98"])
def test_what_is_not_utf8_is_refused(data: bytes) -> None:
    with pytest.raises(ProbeError) as refused:
        reader("nlvr").ids(data)
    assert refused.value.what == "the text is not Unicode"


def test_captions_have_a_prompt_and_no_text() -> None:
    assert reader("caption").prompt_ids("a picture of ") == python("caption").prompt_ids("a picture of ")
    with pytest.raises(ProbeError, match="a captioning request has no text"):
        reader("caption").ids("a dog")


def test_line_ends_and_marks_of_other_systems_do_not_matter(tmp_path: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "dog", "a\u2028b"]
    ids = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 6, "enc_token_id": 7}
    config = base_config("nlvr")
    assert isinstance(config, BlipConfig)
    tiny = dataclasses.replace(config, vocab_size=8, **ids)
    path = tmp_path / "vocab.txt"
    for data in ("\n".join(pieces), "\ufeff" + "\r\n".join(pieces) + "\r\n", "\n".join(pieces) + "\n"):
        path.write_bytes(data.encode())
        assert Reader(path, tiny).ids("a dog") == TextProcessor(path, tiny).ids("a dog") == [7, 1, 4, 3]


OTHER_VOCABULARIES = {
    "no special token": (["[PAD]", "[UNK]", "[CLS]", "dog"], "It lacks [SEP]."),
    "another size": (["[PAD]", "[UNK]", "[CLS]", "[SEP]", "dog", "cat"], "It has 6 pieces; the model has 7"),
    "another order": (["[UNK]", "[PAD]", "[CLS]", "[SEP]", "dog"], "Its [PAD] is not entry 0"),
}


@pytest.mark.parametrize(("pieces", "why"), OTHER_VOCABULARIES.values(), ids=OTHER_VOCABULARIES)
def test_another_models_vocabulary_is_refused(pieces: list[str], why: str, tmp_path: Path) -> None:
    ids = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 5, "enc_token_id": 6}
    config = base_config("vqa")
    assert isinstance(config, BlipConfig)
    with pytest.raises(ProbeError) as refused:
        Reader(write_vocabulary(pieces, tmp_path / "vocab.txt"), dataclasses.replace(config, vocab_size=7, **ids))
    assert refused.value.what == f"the vocabulary '{tmp_path / 'vocab.txt'}' does not belong to this model"
    assert refused.value.why.startswith(why)
