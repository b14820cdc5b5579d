"""Retrieval: parity with the official implementation, and what has to hold of the three parts and of ranking."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from madtp.checkpoint.loading import NOT_DEPLOYED, load_state
from madtp.errors import InputError
from madtp.models.config import RetrievalConfig
from madtp.models.parts import parts_of
from madtp.models.retrieval import RetrievalModel
from madtp.ops.recorder import PruningRecorder
from madtp.tasks.ranking import NOT_MATCHED, image_tokens, rank
from madtp.tasks.requests import run_request, torch_runners
from tests import golden
from tests.helpers.checkpoints import TINY
from tests.helpers.generate import generated_images, generated_state
from tests.helpers.golden_runtimes import LayerTrace
from tests.helpers.paths import RECORDINGS

RECORDED = RECORDINGS.parent / "retrieval"
SIZES = {key: value for key, value in TINY.items() if key != "merge_from"} | {"image_size": 96, "embed_dim": 8}
TAU = 2.0
LENGTH = 20

needs_recordings = pytest.mark.skipif(
    not (RECORDED / "tiny" / "cases.json").is_file(), reason="the full recordings are not on this machine"
)


@pytest.fixture(scope="module")
def model() -> RetrievalModel:
    with torch.device("meta"):
        empty = RetrievalModel(RetrievalConfig(**SIZES), TAU)
    load_state(empty, generated_state(empty, 3), "generated")
    return empty.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return generated_images(5, SIZES["image_size"], 7)


@pytest.fixture(scope="module")
def texts() -> tuple[Tensor, Tensor]:
    """Ids [4, L] with [CLS] first, and their mask: 18, 9, 4 and 13 words."""
    lengths = torch.tensor([18, 9, 4, 13])
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    ids = torch.randint(5, SIZES["vocab_size"] - 2, (4, LENGTH), generator=torch.Generator().manual_seed(1)) * mask
    ids[:, 0] = SIZES["cls_token_id"]
    return ids, mask


def with_enc(ids: Tensor) -> Tensor:
    return torch.cat([torch.full_like(ids[:, :1], SIZES["enc_token_id"]), ids[:, 1:]], dim=1)


def ranked(
    model: RetrievalModel, images: Tensor, texts: tuple[Tensor, Tensor], image_batch: int = 2, **options: Any
) -> Any:
    return rank(model, images.split(image_batch), *texts, **{"k_test": 2, **options})


def test_a_request_is_matched_with_enc_in_front(
    model: RetrievalModel, images: Tensor, texts: tuple[Tensor, Tensor]
) -> None:
    inputs = {"image": images[:4], "input_ids": texts[0], "attention_mask": texts[1]}
    outputs = run_request(model.config, torch_runners(parts_of(model)), inputs, TAU)
    image = model.encode_image(images[:4], TAU)
    right = model.match(with_enc(texts[0]), texts[1], image.image_tokens, TAU)
    wrong = model.match(texts[0], texts[1], image.image_tokens, TAU)
    torch.testing.assert_close(outputs["itm_logits"], right.itm_logits)
    assert (outputs["itm_logits"] - wrong.itm_logits).abs().max() > 1e-3
    assert torch.equal(inputs["input_ids"], texts[0]), "the text's own ids stay"
    assert torch.equal(texts[0][:, 0], torch.full((4,), SIZES["cls_token_id"]))


# Recordings.


@needs_recordings
def test_full_size_model_has_exactly_the_official_keys() -> None:
    official = json.loads((RECORDED / "keys.json").read_text())
    values = json.loads((RECORDED / "tiny" / "config.json").read_text())
    full = {"image_size": 384, "vit_dim": 768, "vit_depth": 12, "vit_heads": 12, "vit_mlp": 3072, "text_hidden": 768}
    full |= {"text_layers": 12, "text_heads": 12, "text_inter": 3072, "vocab_size": 30524, "max_position": 512}
    full |= {"sd_num": 100, "sd_dim": 768, "embed_dim": 256, "patch_size": values["patch_size"]}
    with torch.device("meta"):
        shapes = {key: list(x.shape) for key, x in RetrievalModel(RetrievalConfig(**full)).state_dict().items()}
    assert shapes == {key: entry["shape"] for key, entry in official.items() if not NOT_DEPLOYED.search(key)}


@needs_recordings
def test_another_selection_is_noticed() -> None:
    model = golden.load_model(RECORDED / "tiny")
    case = next(case for case in golden.load_cases(RECORDED / "tiny", model.config.image_size) if case.evaluates)
    replay = golden.replay(model.config, golden.TorchRuntime(model), case)
    assert not golden.compare(case, replay).mismatches
    first = replay.towers["text_11"][0]
    assert first.keep is not None
    replay.towers["text_11"][0] = LayerTrace(first.tokens_out, first.keep + 1, first.source_ids)
    assert golden.compare(case, replay).mismatches == ["text_11 layer 0: K = 20, recorded 19"]
    dropped = next(i for i in range(1, 35) if i not in first.source_ids[0])
    first.source_ids[0, 1] = dropped
    assert "text_11 layer 0: kept set differs" in golden.compare(case, replay).mismatches
    del replay.towers["vision_2"]
    assert "encoder calls" in golden.compare(case, replay).mismatches[0]
    other_batches = replace(case, entry={**case.entry, "image_batch": 5, "k_test": 3})
    replay = golden.replay(model.config, golden.TorchRuntime(model), other_batches)
    assert golden.compare(case, replay).mismatches


# The three parts.


def test_parts_have_the_documented_shapes(model: RetrievalModel, images: Tensor, texts: tuple[Tensor, Tensor]) -> None:
    ids, mask = texts
    with torch.no_grad():
        image = model.encode_image(images[:4])
        text = model.encode_text(ids, mask)
        pair = model.match(with_enc(ids), mask, image.image_tokens)
    assert model.task == "retrieval"
    assert image.image_tokens.shape == (4, int(image.vision_token_counts[0, -1]), SIZES["vit_dim"])
    assert image.vision_token_counts.shape == (4, SIZES["vit_depth"])
    assert text.text_token_counts.shape == pair.text_token_counts.shape == (4, SIZES["text_layers"])
    assert pair.itm_logits.shape == (4, 2)
    for embed in (image.image_embed, text.text_embed):
        assert embed.shape == (4, SIZES["embed_dim"])
        torch.testing.assert_close(embed.norm(dim=1), torch.ones(4))
    # All three prune.
    assert image.vision_token_counts[0, -1] < 37
    assert text.text_token_counts[0, -1] < LENGTH
    assert pair.text_token_counts[0, -1] < LENGTH


def test_a_batch_of_copies_is_as_a_batch_of_one(
    model: RetrievalModel, images: Tensor, texts: tuple[Tensor, Tensor]
) -> None:
    ids, mask = (part[:1] for part in texts)
    with torch.no_grad():
        for temperature in (TAU, 0.3, torch.tensor(0.0), 0.0):
            image = model.encode_image(images[:1], temperature)
            alone = (*image, *model.encode_text(ids, mask, temperature))
            alone += (*model.match(with_enc(ids), mask, image.image_tokens, temperature),)
            image = model.encode_image(images[:1].expand(3, -1, -1, -1), temperature)
            copies = (*image, *model.encode_text(ids.expand(3, -1), mask.expand(3, -1), temperature))
            copies += (*model.match(with_enc(ids).expand(3, -1), mask.expand(3, -1), image.image_tokens, temperature),)
            for one, three in zip(alone, copies, strict=True):
                for row in three:
                    torch.testing.assert_close(row, one[0], atol=1e-5, rtol=0)


def test_without_pruning_batch_mates_do_not_matter(
    model: RetrievalModel, images: Tensor, texts: tuple[Tensor, Tensor]
) -> None:
    together = ranked(model, images, texts, image_batch=5, temperature=0.0)
    apart = ranked(model, images, texts, image_batch=1, text_batch=1, temperature=torch.tensor(0.0))
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_dense_model_runs_no_pruning_op_and_equals_the_ops_at_zero(
    model: RetrievalModel, images: Tensor, texts: tuple[Tensor, Tensor]
) -> None:
    with PruningRecorder() as recorder:
        dense = ranked(model, images, texts, temperature=0.0)
    assert not recorder.records
    with PruningRecorder() as recorder:
        zero = ranked(model, images, texts, temperature=torch.tensor(0.0))
    assert recorder.records
    assert not any(record.pruned for record in recorder.records)
    for one, other in zip(dense, zero, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_no_temperature_is_the_models_own(model: RetrievalModel, images: Tensor, texts: tuple[Tensor, Tensor]) -> None:
    own, given = (ranked(model, images, texts, temperature=tau) for tau in (None, TAU))
    assert all(torch.equal(one, other) for one, other in zip(own, given, strict=True))
    assert not torch.equal(own.sim, ranked(model, images, texts, temperature=0.0).sim)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_keep_float_outputs(
    dtype: torch.dtype, model: RetrievalModel, images: Tensor, texts: tuple[Tensor, Tensor]
) -> None:
    with torch.device("meta"):
        other = RetrievalModel(model.config, TAU)
    load_state(other, model.state_dict(), "generated")
    other.to(dtype)
    ids, mask = texts
    with torch.no_grad():
        image = other.encode_image(images[:4], 0.0)
        pair = other.match(with_enc(ids), mask, image.image_tokens, 0.0)
        expected = model.encode_image(images[:4], 0.0).image_embed
    wide = torch.promote_types(dtype, torch.float32)
    assert image.image_tokens.dtype == dtype
    assert image.image_embed.dtype == pair.itm_logits.dtype == wide
    torch.testing.assert_close(image.image_embed.float(), expected, atol=0.1, rtol=0)


# Ranking.


def test_scores_are_logit_plus_similarity_of_the_best_pairs(
    model: RetrievalModel, images: Tensor, texts: tuple[Tensor, Tensor]
) -> None:
    ids, mask = texts
    result = ranked(model, images, texts, image_batch=1, text_batch=1, k_test=1)
    with torch.no_grad():
        encoded = [model.encode_image(image[None]) for image in images]
        embed = torch.cat([model.encode_text(ids[t : t + 1], mask[t : t + 1]).text_embed for t in range(4)])
    sim = torch.cat([output.image_embed for output in encoded]) @ embed.mT
    torch.testing.assert_close(result.sim, sim)
    longest = max(output.image_tokens.shape[1] for output in encoded)
    assert {output.image_tokens.shape[1] for output in encoded} != {longest}

    def score(image: int, text: int) -> Tensor:
        tokens = encoded[image].image_tokens
        class_token = tokens[:, :1].expand(-1, longest - tokens.shape[1], -1)
        with torch.no_grad():
            pair = model.match(
                with_enc(ids[text : text + 1]), mask[text : text + 1], torch.cat([tokens, class_token], 1)
            )
        return pair.itm_logits[0, 1] + sim[image, text]

    for image, row in enumerate(result.score_i2t):
        best = int(sim[image].argmax())
        torch.testing.assert_close(row[best], score(image, best), atol=1e-5, rtol=0)
        assert (row == NOT_MATCHED).sum() == 3
    for text, row in enumerate(result.score_t2i):
        best = int(sim[:, text].argmax())
        torch.testing.assert_close(row[best], score(best, text), atol=1e-5, rtol=0)
        assert (row == NOT_MATCHED).sum() == 4


def test_more_candidates_than_there_are_means_all(
    model: RetrievalModel, images: Tensor, texts: tuple[Tensor, Tensor]
) -> None:
    result = ranked(model, images, texts, k_test=256)
    assert (result.score_i2t != NOT_MATCHED).all()
    assert (result.score_t2i != NOT_MATCHED).all()


def test_ids_given_to_ranking_are_not_changed(
    model: RetrievalModel, images: Tensor, texts: tuple[Tensor, Tensor]
) -> None:
    before = texts[0].clone()
    ranked(model, images, texts)
    assert torch.equal(texts[0], before)


def test_shorter_images_are_filled_with_their_class_token() -> None:
    tokens = [torch.rand(3, 2), torch.rand(5, 2), torch.rand(4, 2)]
    filled = image_tokens(tokens, torch.tensor([2, 0, 2]))
    assert filled.shape == (3, 5, 2)  # as the longest of all, though it is not asked for
    assert torch.equal(filled[0], torch.cat([tokens[2], tokens[2][:1]]))
    assert torch.equal(filled[1], torch.cat([tokens[0], tokens[0][:1], tokens[0][:1]]))
    assert torch.equal(filled[2], filled[0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"k_test": 0}, "k_test is 0"),
        ({"text_batch": -1}, "text_batch is -1"),
        ({"images": []}, "no images"),
        ({"images": [torch.empty(0, 3, 96, 96)]}, "batch 0 of the images is [0, 3, 96, 96]"),
        ({"images": [torch.empty(1, 3, 96, 96), torch.empty(3, 96, 96)]}, "batch 1 of the images is [3, 96, 96]"),
        ({"images": [torch.empty(1, 3, 64, 96)]}, "batch 0 of the images is [1, 3, 64, 96]"),
        ({"input_ids": torch.empty(0, LENGTH, dtype=torch.long)}, "input_ids have the shape [0, 20]"),
        ({"input_ids": torch.full((LENGTH,), 2)}, "input_ids have the shape [20]"),
        ({"attention_mask": torch.ones(4, LENGTH - 1)}, "mask is [4, 19]"),
        ({"input_ids": torch.full((4, LENGTH), SIZES["enc_token_id"])}, "first id of text 0 is not 2"),
    ],
)
def test_bad_input_is_refused(
    change: dict[str, Any], said: str, model: RetrievalModel, images: Tensor, texts: tuple[Tensor, Tensor]
) -> None:
    given = {"images": images.split(2), "input_ids": texts[0], "attention_mask": texts[1], "k_test": 2} | change
    with pytest.raises(InputError) as caught:
        rank(model, **given)
    assert said in str(caught.value)
    assert caught.value.why
