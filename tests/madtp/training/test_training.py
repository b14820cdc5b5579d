"""Training: the gradients of both ops against plain definitions, the losses, and initial weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from madtp import NlvrConfig, NlvrModel
from madtp.training.objective import NlvrBatch, initialize, nlvr_loss, similarity_loss
from tests.helpers.checkpoints import TINY

ATTEND = torch.ops.madtp.aligned_attention
COMPACT = torch.ops.madtp.token_compact
OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
TAU = torch.tensor(0.7)
ONE = torch.tensor(1)


def plain_attention(qkv: Tensor, key_mask: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """What aligned_attention returns, in the precision of its input, for autograd to differentiate."""
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    probability = (query @ key.mT / math.sqrt(query.shape[-1]) + key_mask[:, None, None]).softmax(-1)
    context = probability @ value
    norm = context.norm(dim=-1)[:, :, 1:]
    column = probability.max(dim=1).values[:, 1:, 1:].sum(dim=1)
    class_score = (probability[:, :, 0, 1:] * norm / (norm.sum(dim=1, keepdim=True) + 1e-8)).sum(dim=1)
    return context.transpose(1, 2).flatten(2), column, class_score


def plain_compact(tokens: Tensor, column: Tensor, class_score: Tensor, alignment: Tensor, keep: int) -> Tensor:
    """The tokens that token_compact returns, sample by sample, when it keeps `keep`."""
    rows = []
    for body, first, a, c, m in zip(tokens[:, 1:], tokens[:, :1], column, class_score, alignment, strict=True):
        best = m.max(dim=1).values
        score = (a / (a.sum() + 1e-8) + best / (best.sum() + 1e-8) + c) / 3
        order = score.argsort(descending=True)
        kept = torch.cat([order[: keep - 1].sort().values, order[keep - 1 : keep]])
        rest = order[keep:]
        merged = (score[rest] / (score[rest].sum() + 1e-8)) @ body[rest]
        rows.append(torch.cat([first, body[kept], merged[None]]))
    return torch.stack(rows)


def attention_inputs(batch: int, length: int, width: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(length)
    mask = -10000.0 * (torch.rand(batch, length, generator=g) < 0.3)
    mask[:, 0] = 0  # where every key is masked, float32 has no digits left for the scores
    return torch.randn(batch, length, 3 * width, generator=g, requires_grad=True), mask


def compact_inputs(batch: int, tokens: int, width: int = 8, entries: int = 4) -> list[Tensor]:
    """Tokens, column score, class score and alignment, all of which have gradients."""
    g = torch.Generator().manual_seed(tokens)
    return [
        torch.randn(batch, tokens + 1, width, generator=g, requires_grad=True),
        torch.rand(batch, tokens, generator=g, requires_grad=True),
        (torch.rand(batch, tokens, generator=g) / tokens).requires_grad_(),
        torch.rand(batch, tokens, entries, generator=g, requires_grad=True),
    ]


def compact_arguments(inputs: list[Tensor], tau: Tensor = TAU) -> tuple[Tensor | int, ...]:
    tokens, column, class_score, alignment = inputs
    mask = torch.zeros(tokens.shape[:2])
    ids = torch.arange(tokens.shape[1], dtype=torch.int32).repeat(len(tokens), 1)
    return tokens, mask, ids, column, class_score, alignment, tau, ONE, 0


def doubled(inputs: list[Tensor]) -> list[Tensor]:
    return [x.detach().double().requires_grad_() for x in inputs]


def assert_same_gradients(actual: list[Tensor], wanted: list[Tensor]) -> None:
    for mine, plain in zip(actual, wanted, strict=True):
        torch.testing.assert_close(mine.grad.double(), plain.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("batch", "length", "width", "heads"), [(1, 3, 4, 1), (2, 7, 12, 3), (3, 12, 8, 4)])
def test_attention_gradient_is_that_of_the_definition(batch: int, length: int, width: int, heads: int) -> None:
    qkv, mask = attention_inputs(batch, length, width)
    (plain,) = doubled([qkv])
    outputs, wanted = ATTEND(qkv, mask, 0, heads), plain_attention(plain, mask.double(), heads)
    weights = [torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) for x in outputs]
    sum((x * w).sum() for x, w in zip(outputs, weights, strict=True)).backward()
    sum((x * w).sum() for x, w in zip(wanted, weights, strict=True)).backward()
    assert_same_gradients([qkv], [plain])


@pytest.mark.parametrize(("batch", "tokens"), [(1, 6), (2, 15), (4, 40)])
def test_compaction_gradient_is_that_of_the_definition(batch: int, tokens: int) -> None:
    inputs = compact_inputs(batch, tokens)
    plain = doubled(inputs)
    output = COMPACT(*compact_arguments(inputs))[0]
    wanted = plain_compact(*plain, keep=output.shape[1] - 2)
    assert output.shape[1] < tokens + 1
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    (output * weight).sum().backward()
    (wanted * weight).sum().backward()
    torch.testing.assert_close(output.double(), wanted, rtol=1e-5, atol=1e-6)
    assert_same_gradients(inputs, plain)


def test_gradient_passes_a_layer_that_prunes_nothing() -> None:
    inputs = compact_inputs(2, 9)
    output = COMPACT(*compact_arguments(inputs, torch.tensor(0.0)))[0]
    output.backward(torch.full_like(output, 3.0))
    assert torch.equal(inputs[0].grad, torch.full_like(output, 3.0))
    assert all(x.grad is None or not x.grad.any() for x in inputs[1:])


def test_ops_are_registered_as_torch_wants_them() -> None:
    qkv, mask = attention_inputs(2, 7, 12)
    torch.library.opcheck(ATTEND, (qkv, mask, 0, 3), test_utils=OPCHECKS)
    torch.library.opcheck(COMPACT, compact_arguments(compact_inputs(2, 15)), test_utils=OPCHECKS)


def test_similarity_loss() -> None:
    text = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
    assert similarity_loss(torch.cat([text, 2 * text]), text).item() == pytest.approx(0, abs=1e-6)
    assert similarity_loss(torch.cat([text, -text]), text).item() == pytest.approx(1, abs=1e-6)
    assert similarity_loss(torch.cat([-text, -text]), text).item() == pytest.approx(2, abs=1e-6)


def tiny_model(seed: int = 0) -> NlvrModel:
    model = NlvrModel(NlvrConfig(**TINY | {"vit_depth": 2}))
    initialize(model, torch.Generator().manual_seed(seed))
    return model


def tiny_batch(pairs: int, statements: int) -> NlvrBatch:
    g = torch.Generator().manual_seed(0)
    images = torch.randn(2, pairs, 3, TINY["image_size"], TINY["image_size"], generator=g)
    ids = torch.randint(5, 300, (pairs * statements, 6), generator=g)
    labels = torch.randint(2, (pairs * statements,), generator=g)
    return NlvrBatch(images[0], images[1], ids, torch.ones_like(ids), labels)


def test_initial_weights_depend_on_the_generator_alone() -> None:
    first, again, other = tiny_model(0), tiny_model(0), tiny_model(1)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
        assert value.isfinite().all(), name
    assert not torch.equal(first.space_dict, other.space_dict)
    assert first.space_dict.any()


def test_loss_is_that_of_the_model_with_one_statement_a_pair() -> None:
    model, batch = tiny_model(), tiny_batch(4, 1)
    output = model(batch.image0, batch.image1, batch.input_ids, batch.attention_mask, TAU)
    pixels = torch.cat([batch.image0, batch.image1])
    images, vision = model.visual_encoder(pixels, model.space_dict, TAU, collect_aligned=True)
    _, text = model.text_encoder(
        batch.input_ids, batch.attention_mask, images.chunk(2), model.space_dict, TAU, collect_aligned=True
    )
    wanted = F.cross_entropy(output.logits, batch.labels) + 0.1 * similarity_loss(vision.aligned, text.aligned)
    torch.testing.assert_close(nlvr_loss(model, batch, TAU), wanted)


def test_several_statements_a_pair_are_the_same_as_repeated_pairs() -> None:
    model, batch = tiny_model(), tiny_batch(3, 4)
    image0, image1 = (image.repeat_interleave(4, 0) for image in (batch.image0, batch.image1))
    repeated = NlvrBatch(image0, image1, batch.input_ids, batch.attention_mask, batch.labels)
    torch.testing.assert_close(nlvr_loss(model, batch, TAU), nlvr_loss(model, repeated, TAU))


def test_dense_training_has_the_task_loss_alone() -> None:
    model, batch = tiny_model(), tiny_batch(4, 2)
    unpruned = nlvr_loss(model, batch, torch.tensor(0.0), similarity_weight=0)
    torch.testing.assert_close(nlvr_loss(model, batch, None), unpruned)


def test_every_parameter_learns_and_the_loss_falls() -> None:
    model, batch = tiny_model(), tiny_batch(8, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        loss = nlvr_loss(model, batch, TAU)
        optimizer.zero_grad()
        loss.backward()
        without = [name for name, value in model.named_parameters() if value.grad is None]
        assert not without
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    assert model.space_dict.grad.abs().sum() > 0
