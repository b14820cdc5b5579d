"""Decoder, generation, VQA and captioning: recorded cases, cache against whole texts, properties of the searches."""

import copy
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from madtp.checkpoint.loading import load_state
from madtp.errors import CheckpointError, InputError
from madtp.models.caption import CaptionModel
from madtp.models.config import CaptionConfig, VqaConfig
from madtp.models.decoder import DecoderSession, Source, TextDecoder, empty_cache
from madtp.models.vqa import VqaModel
from madtp.tasks.answers import start_logits
from madtp.tasks.generation import Limits, _Candidate, _Sample, beam_search, greedy_search
from tests import golden
from tests.helpers import decoding
from tests.helpers.golden_requests import RecordedStep
from tests.helpers.golden_runtimes import LayerTrace
from tests.helpers.paths import RECORDINGS

FOLDERS = [
    folder
    for task in ("vqa", "caption")
    if ((folder := RECORDINGS.parent / task / "tiny") / "weights.safetensors").is_file()
]
SIZES = {"image_size": 32, "patch_size": 8, "vit_dim": 24, "vit_depth": 2, "vit_heads": 2, "vit_mlp": 32}
SIZES |= {"text_hidden": 16, "text_layers": 3, "text_heads": 2, "text_inter": 32, "vocab_size": 40, "max_position": 12}
SIZES |= {"sd_num": 4, "sd_dim": 24, "sep_token_id": 3, "bos_token_id": 38, "enc_token_id": 39}
PAD, END = 0, 1  # of the toy models


def with_weights(model: torch.nn.Module) -> torch.nn.Module:
    """The model with weights that make its outputs vary."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


@pytest.fixture(scope="module")
def vqa() -> VqaModel:
    return with_weights(VqaModel(VqaConfig(**SIZES | {"vit_dim": 16, "sd_dim": 16})))


@pytest.fixture(scope="module")
def caption() -> CaptionModel:
    return with_weights(CaptionModel(CaptionConfig(**SIZES), temperature=0.5))


# Recorded cases


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
def test_differences_from_a_recording_are_noticed(folder: Path) -> None:
    model = golden.load_model(folder)
    case = next(case for case in golden.load_cases(folder, model.config.image_size) if case.name == "b1_prune")
    replay = golden.replay(model.config, golden.TorchRuntime(model), case)
    for name, tensor in replay.outputs.items():
        correct = tensor.clone()
        tensor.view(-1)[-1] += 1 if tensor.dtype == torch.int64 else 2e-4
        (mismatch,) = golden.compare(case, replay).mismatches
        assert mismatch.startswith(name)
        tensor.copy_(correct)
    removed = replay.outputs.popitem()
    assert golden.compare(case, replay).mismatches == [f"{removed[0]} is missing"]
    replay.outputs[removed[0]] = removed[1]
    first = replay.towers["vision"][0]
    replay.towers["vision"][0] = LayerTrace(first.tokens_out, first.keep - 1, first.source_ids)
    assert len(golden.compare(case, replay).mismatches) == 1
    del replay.towers["vision"]
    assert golden.compare(case, replay).mismatches[0].startswith("vision has 0 layers")


FULL = {"image_size": 384, "patch_size": 16, "vit_dim": 768, "vit_depth": 12, "vit_heads": 12, "vit_mlp": 3072}
FULL |= {"text_hidden": 768, "text_layers": 12, "text_heads": 12, "text_inter": 3072, "vocab_size": 30524}
FULL |= {"max_position": 512, "sd_num": 100, "sd_dim": 768}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
def test_full_size_models_have_exactly_the_official_keys(folder: Path) -> None:
    official = json.loads((folder.parent / "keys.json").read_text())
    with torch.device("meta"):
        if folder.parent.name == "vqa":
            model: torch.nn.Module = VqaModel(VqaConfig(**FULL | {"image_size": 480}))
        else:
            model = CaptionModel(CaptionConfig(**FULL))
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    deployed = {name: entry["shape"] for name, entry in official.items() if "_m." not in name}
    expected = {name: shape for name, shape in deployed.items() if not name.endswith(".position_ids")}
    assert shapes == {name: shape for name, shape in expected.items() if not name.endswith("_queue")}


# The decoder


@torch.no_grad()
def test_steps_with_a_cache_give_what_whole_texts_give(vqa: VqaModel) -> None:
    decoder = vqa.text_decoder
    ids = torch.randint(1, 40, (2, 3, 7), generator=torch.Generator().manual_seed(1))
    source = decoder.source_cache(torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2)))
    whole = decoder(ids, torch.ones_like(ids), source)
    assert whole.shape == (2, 3, 7, 40)
    past, rows = empty_cache(Source(source), 3), torch.arange(6).view(2, 3)
    for start, end in ((0, 3), (3, 4), (4, 5), (5, 7)):
        logits, past = decoder.step(ids[:, :, start:end], rows, past, Source(source))
        assert past.shape == (3, 2, 2, 3, 2, end, 8)
        torch.testing.assert_close(logits, whole[:, :, end - 1], rtol=0, atol=1e-5)


@torch.no_grad()
def test_texts_do_not_see_later_words_padding_or_each_other(vqa: VqaModel) -> None:
    decoder = vqa.text_decoder
    ids = torch.randint(1, 40, (2, 3, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, 1, 2] = 0
    source = decoder.source_cache(torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2)))
    before = decoder(ids, mask, source)
    changed = ids.clone()
    changed[0, 1, 2] = 7 if ids[0, 1, 2] != 7 else 8  # masked
    changed[0, 2, 4] = 7 if ids[0, 2, 4] != 7 else 8
    after = decoder(changed, mask, source)
    differs = (before - after).abs().amax(dim=-1) > 1e-6
    expected = torch.zeros(2, 3, 6, dtype=torch.bool)
    expected[0, 1, 2] = True  # its own row, and no other
    expected[0, 2, 4:] = True
    assert torch.equal(differs, expected)
    torch.testing.assert_close(decoder(ids[1:], mask[1:], source[:, :, 1:]), before[1:], rtol=0, atol=1e-5)


@torch.no_grad()
def test_selected_rows_continue_other_texts(vqa: VqaModel) -> None:
    decoder = vqa.text_decoder
    ids = torch.randint(1, 40, (4, 3), generator=torch.Generator().manual_seed(1))
    states = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(2)).expand(2, -1, -1)
    rows = torch.tensor([3, 0, 0, 2])
    source = decoder.source_cache(states)
    session, direct = DecoderSession(decoder.step, Source(source), 2), DecoderSession(decoder.step, Source(source), 2)
    session(ids, None)
    logits = session(ids[:, :1], rows)
    torch.testing.assert_close(logits, direct(torch.cat([ids[rows], ids[:, :1]], dim=1), None), rtol=0, atol=1e-5)


def test_loading_ties_the_copies_and_refuses_different_ones() -> None:
    state = with_weights(CaptionModel(CaptionConfig(**SIZES))).state_dict()
    with torch.device("meta"):
        model = CaptionModel(CaptionConfig(**SIZES))
    load_state(model, {name: tensor.clone() for name, tensor in state.items()}, "checkpoint.pth")
    decoder = model.text_decoder
    for loaded in (decoder, copy.deepcopy(decoder)):
        assert loaded.cls.predictions.decoder.weight is loaded.bert.embeddings.word_embeddings.weight
        assert loaded.cls.predictions.decoder.bias is loaded.cls.predictions.bias
    for copied, original in TextDecoder.TIED:
        wrong = {name: tensor.clone() for name, tensor in state.items()}
        wrong[f"text_decoder.{copied}"][3] += 1
        with pytest.raises(CheckpointError, match=r"differ") as caught:
            load_state(model, wrong, "checkpoint.pth")
        assert f"text_decoder.{original}" in str(caught.value)
        del wrong[f"text_decoder.{copied}"]
        with pytest.raises(CheckpointError, match=r"1 missing"):
            load_state(model, wrong, "checkpoint.pth")


# Models


@torch.no_grad()
def test_own_temperature_is_the_default(caption: CaptionModel) -> None:
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    pruned, given_, dense = caption(image), caption(image, 0.5), caption(image, 0.0)
    assert torch.equal(pruned.image_states, given_.image_states)
    assert dense.vision_token_counts.tolist() == [[17, 17]] * 2
    assert pruned.vision_token_counts.max() < 17


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_run_in_half_precision(vqa: VqaModel, caption: CaptionModel, dtype: torch.dtype) -> None:
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    ids = torch.tensor([[39, 5, 3, 0], [39, 6, 7, 3]])
    answers = torch.tensor([[38, 5, 3], [38, 6, 3]])
    asked = copy.deepcopy(vqa).to(dtype)
    states = asked(image, ids, (ids != 0).long(), 0.5).question_states
    assert states.dtype == dtype
    decoder = asked.text_decoder
    assert start_logits(decoder.step, Source(decoder.source_cache(states)), asked.config).dtype == torch.float32
    ranking = decoding.rank(asked, states, answers, torch.ones_like(answers), 2)
    assert ranking.topk_log_prob_sum.dtype == torch.float32
    assert ranking.topk_log_prob_sum.isfinite().all()
    assert decoding.answer(asked, states).shape[0] == 2
    described = copy.deepcopy(caption).to(dtype)
    states = described(image).image_states
    assert decoding.caption(described, states, torch.full((2, 1), 38), max_length=8, min_length=2).shape[0] == 2


@torch.no_grad()
def test_ranking_is_the_smoothed_likelihood_of_the_whole_answer(vqa: VqaModel) -> None:
    states = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2))
    answers = torch.tensor([[38, 5, 3, 0], [38, 6, 7, 3], [38, 8, 3, 0], [38, 9, 5, 3]])
    ranking = decoding.rank(vqa, states, answers, (answers != 0).long(), 3)
    source = vqa.text_decoder.source_cache(states)
    for row, index in itertools.product(range(2), range(3)):
        words = answers[ranking.topk_index[row, index]]
        words = words[words != 0]
        log_probs = vqa.text_decoder(words[None, None], torch.ones(1, 1, len(words)), source[:, :, row : row + 1])
        log_probs = log_probs[0, 0].log_softmax(dim=-1)
        score = sum(0.9 * log_probs[i, word] + 0.1 * log_probs[i].mean() for i, word in enumerate(words[1:]))
        assert ranking.topk_log_prob_sum[row, index].item() == pytest.approx(float(score), abs=1e-4)
        assert ranking.topk_prob[row, index].item() == pytest.approx(log_probs[0, words[1]].exp().item(), abs=1e-5)
    best = ranking.topk_log_prob_sum.argmax(dim=1)
    assert ranking.answer_index.tolist() == [ranking.topk_index[row, best[row]].item() for row in range(2)]


@pytest.mark.parametrize(
    ("answers", "mask", "k", "message"),
    [
        ([[38]], [[1]], 1, r"shape \[1, 1\]"),
        ([38, 5, 3], [1, 1, 1], 1, r"shape \[3\]"),
        ([[38, 5, 3]], [[1, 1]], 1, r"mask of shape \[1, 2\]"),
        ([[38] * 13], [[1] * 13], 1, "13 ids long"),
        ([[38, 5, 3]], [[1, 1, 1]], 0, "the 0 likeliest of 1"),
        ([[38, 5, 3]], [[1, 1, 1]], 2, "the 2 likeliest of 1"),
        ([[38, 5, 3], [5, 3, 0]], [[1, 1, 1], [1, 1, 0]], 1, r"\[DEC\], id 38"),
    ],
)
def test_impossible_answer_lists_are_refused(vqa: VqaModel, answers: list, mask: list, k: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decoding.rank(vqa, torch.zeros(1, 5, 16), torch.tensor(answers), torch.tensor(mask), k)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (torch.zeros(0, 1, dtype=torch.int64), {}, r"shape \[0, 1\]"),
        (torch.zeros(1, 0, dtype=torch.int64), {}, r"shape \[1, 0\]"),
        (torch.tensor([38]), {}, r"shape \[1\]"),
        (torch.tensor([[38, 0]]), {}, "padding"),
        (torch.tensor([[38, 5]]), {"max_length": 2, "min_length": 1}, "leaves nothing to write"),
        (torch.tensor([[38, 5]]), {"max_length": 4, "min_length": 5}, "larger than max_length"),
        (torch.tensor([[38, 5]]), {"max_length": 13}, "positions for, 12"),
        (torch.tensor([[38, 5]]), {"max_length": 12, "beams": 0}, "0 beams"),
    ],
)
def test_impossible_generation_is_refused(caption: CaptionModel, prompt: Tensor, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decoding.caption(caption, torch.zeros(1, 5, 24), prompt, **{"max_length": 10, "min_length": 2} | options)


# The searches, over toy models


@dataclass
class Toy:
    """A step whose logits are a table's row for the two newest ids and the sample; it keeps the ids as its cache."""

    tables: Tensor  # [B, V, V, V]
    ids: Tensor | None = None

    def __call__(self, input_ids: Tensor, rows: Tensor | None) -> Tensor:
        if self.ids is None:
            self.ids = input_ids
        else:
            self.ids = torch.cat([self.ids if rows is None else self.ids[rows], input_ids], dim=1)
        beams = len(self.ids) // len(self.tables)
        samples = torch.arange(len(self.ids)) // beams
        return self.tables[samples, self.ids[:, -2], self.ids[:, -1]]


def toy_tables(seed: int, batch: int, vocabulary: int, end_bias: float = 0.0) -> Tensor:
    tables = torch.randn(batch, *[vocabulary] * 3, generator=torch.Generator().manual_seed(seed)) * 2
    tables[..., END] += end_bias
    return tables


def toy_prompt(batch: int) -> Tensor:
    return torch.tensor([[2, 3]]).expand(batch, -1)


SEEDS = st.integers(0, 2**31 - 1)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, length=st.integers(3, 5))
def test_enough_beams_find_the_best_text(seed: int, length: int) -> None:
    tables = toy_tables(seed, 1, 4)
    tables[..., END] = -1e4  # nothing ends, so the best text is the likeliest of all
    found = beam_search(Toy(tables), toy_prompt(1), Limits(length, 0, END, PAD), 4 ** (length - 2))
    log_probs = tables[0].log_softmax(dim=-1)

    def total(words: tuple[int, ...]) -> float:
        text = (2, 3, *words)
        return sum(log_probs[text[i], text[i + 1], text[i + 2]].item() for i in range(len(words)))

    best = max(itertools.product(range(4), repeat=length - 2), key=total)
    assert total(tuple(found[0, 2:].tolist())) == pytest.approx(total(best), abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, batch=st.integers(1, 3), minimum=st.integers(0, 9), bias=st.sampled_from([-2.0, 0.0, 3.0]))
def test_one_beam_is_greedy_search(seed: int, batch: int, minimum: int, bias: float) -> None:
    tables, limits = toy_tables(seed, batch, 9, bias), Limits(9, minimum, END, PAD)
    found = beam_search(Toy(tables), toy_prompt(batch), limits, 1)
    assert torch.equal(found, greedy_search(Toy(tables), toy_prompt(batch), limits))


@settings(max_examples=40, deadline=None)
@given(
    seed=SEEDS,
    beams=st.integers(1, 4),
    minimum=st.integers(0, 10),
    bias=st.sampled_from([-2.0, 0.0, 3.0, 6.0]),
)
def test_texts_keep_their_limits_and_do_not_depend_on_the_batch(
    seed: int, beams: int, minimum: int, bias: float
) -> None:
    tables, limits = toy_tables(seed, 3, 9, bias), Limits(10, minimum, END, PAD)
    tables[..., PAD] = -1e4
    found = beam_search(Toy(tables), toy_prompt(3), limits, beams)
    assert found.shape[1] <= 10
    for number, row in enumerate(found.tolist()):
        assert row[:2] == [2, 3]
        ended = row.index(END) if END in row else len(row)
        assert ended >= min(minimum, 10)
        assert PAD not in row[:ended]
        assert all(token == PAD for token in row[ended + 1 :])
        assert END in row or len(row) == 10
        alone = beam_search(Toy(tables[number : number + 1]), toy_prompt(1), limits, beams)[0].tolist()
        assert alone == row[: len(alone)]
        assert all(token == PAD for token in row[len(alone) :])


def test_rows_of_a_finished_sample_go_on_with_padding_from_row_0() -> None:
    tables = toy_tables(0, 2, 9, -1e4)
    tables[1, ..., END] = 50.0
    step = RecordedStep(Toy(tables))
    found = beam_search(step, toy_prompt(2), Limits(8, 0, END, PAD), 2)
    assert found[1].tolist() == [2, 3, END, PAD, PAD, PAD, PAD, PAD]
    for before, after in itertools.pairwise(step.ids[2:]):
        assert after[2:].tolist() == [[*before[0].tolist(), PAD]] * 2


@pytest.mark.parametrize("minimum", [3, 4, 7])
def test_a_text_may_end_at_the_minimum(minimum: int) -> None:
    tables, limits = toy_tables(0, 2, 9, 50.0), Limits(8, minimum, END, PAD)
    for found in (
        beam_search(Toy(tables), toy_prompt(2), limits, 2),
        greedy_search(Toy(tables), toy_prompt(2), limits),
    ):
        assert found.shape == (2, minimum + 1)
        assert (found[:, -1] == END).all()


def test_an_end_that_ranks_behind_as_many_candidates_as_there_are_beams_is_ignored() -> None:
    sample, ids = _Sample(2), torch.tensor([[2, 3, 4], [2, 3, 5]])
    candidates = [_Candidate(-1.0, 0, END), _Candidate(-2.0, 0, 6), _Candidate(-3.0, 1, END), _Candidate(-4.0, 1, 7)]
    assert sample.advance(candidates, ids, Limits(9, 0, END, PAD)) == [candidates[1], candidates[3]]
    assert [(score, text.tolist()) for score, text in sample.finished] == [(-1 / 3, [2, 3, 4])]
    assert not sample.done


def test_finished_texts_are_compared_by_their_mean() -> None:
    """[2, 3, END] is likelier in sum, [2, 3, 4, 4, END] in the mean over the ids before [SEP]."""
    tables = torch.full((1, 5, 5, 5), -1e4)
    tables[0, 2, 3, END], tables[0, 2, 3, 4] = torch.tensor(0.45).log(), torch.tensor(0.55).log()
    tables[0, 3, 4, 4] = tables[0, 4, 4, END] = 0.0
    tables[0, 3, 4, END] = torch.tensor(1e-3).log()
    found = beam_search(Toy(tables), toy_prompt(1), Limits(9, 0, END, PAD), 2)
    assert found.tolist() == [[2, 3, 4, 4, END]]
