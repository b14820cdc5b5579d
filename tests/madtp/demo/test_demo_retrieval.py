"""The retrieval demonstration: its data, its committed model, its loss, and its command."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import madtp
from madtp.data.samples import read_samples
from madtp.data.tokenize import TextProcessor
from madtp.demo import __main__ as command
from madtp.demo import retrieval
from madtp.demo.retrieval.data import (
    PHOTOGRAPHS,
    SIZE,
    captions,
    draw_crop,
    held_out,
    held_out_samples,
    photographs,
    picture,
    vocabulary,
)
from madtp.demo.retrieval.evaluate import RetrievalEvaluation, evaluate, missed_promises
from madtp.demo.retrieval.train import RetrievalRecipe, config, draw_batch, train, without_padding
from madtp.errors import InputError
from madtp.models.retrieval import RetrievalModel
from madtp.tasks.ranking import image_tokens
from madtp.training.objective import RetrievalBatch, initialize, retrieval_loss

MEGABYTES = 2.5
SHORT = RetrievalRecipe(steps=4, pairs=6, images_at_once=3)
TAU = torch.tensor(0.3)


@pytest.fixture(scope="module")
def batch() -> RetrievalBatch:
    text = TextProcessor(retrieval.vocab_path(), config())
    return draw_batch(np.random.default_rng(0), SHORT, text)


def fresh_model() -> RetrievalModel:
    model = RetrievalModel(config())
    initialize(model, torch.Generator().manual_seed(0))
    return model


def test_no_crop_is_both_trained_and_evaluated_on() -> None:
    rng = np.random.default_rng(0)
    centres: dict[bool, set[tuple[int, int]]] = {}
    for kept in (False, True):
        crops = [draw_crop(rng, (220, 180), kept) for _ in range(300)]
        assert all(0 <= crop.left <= 220 - crop.side and 0 <= crop.top <= 180 - crop.side for crop in crops)
        centres[kept] = {(int(crop.left + crop.side / 2), int(crop.top + crop.side / 2)) for crop in crops}
    cells = {kept: {(x // 20, y // 20) for x, y in found} for kept, found in centres.items()}
    assert len(cells[True]) >= 4
    assert not cells[True] & cells[False]


def test_every_photograph_has_crops_of_both_kinds() -> None:
    rng = np.random.default_rng(0)
    assert len(photographs()) == len(PHOTOGRAPHS) == 18
    for photograph in photographs():
        assert draw_crop(rng, photograph.size, True).held_out
        assert not draw_crop(rng, photograph.size, False).held_out


def test_no_caption_is_both_trained_and_evaluated_on() -> None:
    trained = [set(captions(photograph, False)) for photograph in range(len(PHOTOGRAPHS))]
    kept = [set(captions(photograph, True)) for photograph in range(len(PHOTOGRAPHS))]
    everything = [text for texts in [*trained, *kept] for text in texts]
    assert len(everything) == len(set(everything)) == 24 * len(PHOTOGRAPHS)
    assert {len(texts) for texts in kept} == {6}
    for photograph, texts in zip(PHOTOGRAPHS, kept, strict=True):
        assert all(any(words in text for words in photograph.words) for text in texts)


def test_pictures_follow_from_the_generator() -> None:
    first, again, other = (picture(np.random.default_rng(seed), 9, False) for seed in (1, 1, 2))
    assert first.shape == (SIZE, SIZE, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_vocabulary() -> None:
    assert retrieval.vocab_path().read_text(encoding="utf-8").splitlines() == vocabulary()
    assert vocabulary()[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    text = TextProcessor(retrieval.vocab_path(), madtp.load(retrieval.checkpoint_path()).config)
    ids, mask = text.batch([caption for p in range(len(PHOTOGRAPHS)) for caption in captions(p, True)])
    assert ids.shape[1] == mask.shape[1] == 35
    assert not (ids == vocabulary().index("[UNK]")).any()


def test_held_out() -> None:
    kept, again = held_out(2), held_out(2)
    assert np.array_equal(kept.pictures, again.pictures)
    assert kept.pictures.shape == (36, SIZE, SIZE, 3)
    assert np.bincount(kept.shown).tolist() == [2] * len(PHOTOGRAPHS)
    assert len(set(kept.captions)) == len(kept.captions) == 6 * len(PHOTOGRAPHS)
    assert all(text in captions(int(p), True) for text, p in zip(kept.captions, kept.described, strict=True))
    samples = held_out_samples(20)
    assert [sample.text for sample in samples] == list(kept.captions[:20])
    assert samples[19].images[0].tobytes() == kept.pictures[19].tobytes()
    assert kept.shown[19] == kept.described[19] == 1


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    photographs.cache_clear()
    with pytest.raises(InputError, match=r"madtp-deploy\[demo\]"):
        photographs()


def test_loss_is_that_of_the_model_s_parts(batch: RetrievalBatch) -> None:
    model, generator = fresh_model(), torch.Generator().manual_seed(0)
    similarity = (
        model.encode_image(batch.image, 0.0).image_embed
        @ model.encode_text(batch.input_ids, batch.attention_mask, 0.0).text_embed.mT
    ) / 0.1
    same = batch.groups[:, None] == batch.groups
    targets = same / same.sum(dim=1, keepdim=True)
    contrast = (F.cross_entropy(similarity, targets) + F.cross_entropy(similarity.mT, targets)) / 2
    matching = retrieval_loss(model, batch, None, generator) - contrast
    assert 0.3 < matching < 2.0
    with torch.no_grad():  # a head that calls every pair a match is wrong twice in three pairs
        model.itm_head.weight.zero_()
        model.itm_head.bias.copy_(torch.tensor([0.0, 9.0]))
    torch.testing.assert_close(
        retrieval_loss(model, batch, None, generator) - contrast, torch.tensor(6.0), atol=1e-3, rtol=0
    )


def test_padding_does_not_matter_without_pruning(batch: RetrievalBatch) -> None:
    short = without_padding(batch)
    assert short.input_ids.shape[1] < batch.input_ids.shape[1] == 35
    losses = [retrieval_loss(fresh_model(), each, None, torch.Generator().manual_seed(0)) for each in (batch, short)]
    torch.testing.assert_close(*losses)


def test_few_images_at_once_are_encoded_and_filled_up_as_in_ranking(batch: RetrievalBatch) -> None:
    """The loss, put together from the parts that `rank` calls with batches of two images."""
    model = fresh_model()
    encoded = [model.encode_image(images, TAU) for images in batch.image.split(2)]
    tokens = [image for output in encoded for image in output.image_tokens]
    assert len({len(image) for image in tokens}) > 1
    texts = model.encode_text(batch.input_ids, batch.attention_mask, TAU)
    similarity = torch.cat([output.image_embed for output in encoded]) @ texts.text_embed.mT / 0.1
    same = batch.groups[:, None] == batch.groups
    targets = same / same.sum(dim=1, keepdim=True)
    contrast = (F.cross_entropy(similarity, targets) + F.cross_entropy(similarity.mT, targets)) / 2
    generator = torch.Generator().manual_seed(0)
    other_text, other_image = (
        torch.multinomial(scores.masked_fill(same, -torch.inf).softmax(dim=1), 1, generator=generator)[:, 0]
        for scores in (similarity, similarity.mT)
    )
    own = torch.arange(len(same))
    shown, words = torch.cat([own, own, other_image]), torch.cat([own, other_text, own])
    ids = batch.input_ids.clone()
    ids[:, 0] = model.config.enc_token_id
    logits = model.match(ids[words], batch.attention_mask[words], image_tokens(tokens, shown), TAU).itm_logits
    expected = contrast + F.cross_entropy(logits, (torch.arange(len(shown)) < len(own)).long())
    loss = retrieval_loss(model, batch, TAU, torch.Generator().manual_seed(0), 0.0, images_at_once=2)
    torch.testing.assert_close(loss, expected)


def test_every_parameter_learns(batch: RetrievalBatch) -> None:
    model = fresh_model()
    retrieval_loss(model, batch, TAU, torch.Generator().manual_seed(0)).backward()
    assert not [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]


def test_alignment_is_part_of_the_loss_when_pruning(batch: RetrievalBatch) -> None:
    without, full = (
        retrieval_loss(fresh_model(), batch, TAU, torch.Generator().manual_seed(0), weight) for weight in (0.0, 0.1)
    )
    assert 0 < full - without <= 0.2


def test_training_again_gives_the_same_weights() -> None:
    said: list[str] = []
    first, again = train(SHORT, said.append).state_dict(), train(SHORT).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    other = train(replace(SHORT, seed=1)).state_dict()
    assert not torch.equal(first["space_dict"], other["space_dict"])
    assert len(said) == SHORT.steps
    assert "temperature 0.00" in said[0]
    assert f"temperature {SHORT.temperature:.2f}" in said[-1]


def test_committed_model_keeps_its_promises() -> None:
    assert retrieval.checkpoint_path().stat().st_size <= MEGABYTES * 1e6
    model = madtp.load(retrieval.checkpoint_path())
    assert isinstance(model, RetrievalModel)
    assert model.config == config()
    assert model.temperature == RetrievalRecipe().deployed_temperature
    kept = held_out(retrieval.EVALUATED)
    dense, pruned = (evaluate(model, retrieval.vocab_path(), kept, tau) for tau in (0.0, model.temperature))
    assert missed_promises(dense, pruned) == []
    assert dense.vision_tokens == (model.config.vision_tokens,) * model.config.vit_depth
    assert dense.text_tokens == dense.match_tokens == (35,) * model.config.text_layers
    for layers in (pruned.vision_tokens, pruned.text_tokens, pruned.match_tokens):
        assert list(layers) == sorted(layers, reverse=True)


def test_missed_promises() -> None:
    def result(texts: float, images: float, gflops: float) -> RetrievalEvaluation:
        return RetrievalEvaluation(texts, images, gflops, (), (), ())

    assert missed_promises(result(0.9, 0.9, 1.0), result(0.89, 0.9, 0.5)) == []
    (less_found,) = missed_promises(result(0.9, 0.5, 1.0), result(0.9, 0.5, 0.5))
    (more_lost,) = missed_promises(result(0.95, 0.9, 1.0), result(0.89, 0.9, 0.5))
    (less_pruned,) = missed_promises(result(0.9, 0.9, 1.0), result(0.9, 0.9, 0.9))
    assert "text to image dense 50.0%" in less_found
    assert "6.0% of recall@1 from image to text" in more_lost
    assert "10.0% of the GFLOPs" in less_pruned


def test_command_writes_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "THREADS", torch.get_num_threads())  # other tests keep theirs
    monkeypatch.setattr(sys, "argv", ["madtp.demo", "--task", "retrieval", "--out", str(tmp_path), "--steps", "2"])
    assert command.main() == 0
    shown = capsys.readouterr()
    assert "recall@1" in shown.out
    assert "100 %" in shown.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["retrieval-photos.pt", "samples", "vocab.txt"]
    model = madtp.load(tmp_path / "retrieval-photos.pt")
    assert model.temperature == RetrievalRecipe().deployed_temperature
    wanted = held_out_samples(command.SAMPLES)
    written = read_samples(tmp_path / "samples", "retrieval")
    assert [sample.text for sample in written] == [sample.text for sample in wanted]
    assert all(a.images[0].tobytes() == b.images[0].tobytes() for a, b in zip(written, wanted, strict=True))
    entries = json.loads((tmp_path / "samples" / "samples.json").read_text(encoding="utf-8"))
    assert set(entries[0]) == {"caption", "image"}
