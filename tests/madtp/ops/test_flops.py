"""The FLOP counter against fvcore's counts of the official model (tests/data/nlvr/flops.json)."""

import json
from collections import Counter

import pytest
import torch

from madtp.models.nlvr import NlvrModel
from madtp.ops.flops import count_flops
from tests import golden
from tests.helpers.paths import CARRIED, RECORDINGS
from tests.helpers.sizes import BASE

PAPER_GFLOPS = 132.54
ROWS = {row["name"]: row for row in json.loads((CARRIED / "flops.json").read_text())}


def dense_inputs(tokens: int) -> dict[str, torch.Tensor]:
    image = torch.zeros(1, 3, 384, 384, device="meta")
    words = torch.ones(1, tokens, dtype=torch.int64, device="meta")
    return {"image0": image, "image1": image, "input_ids": words, "attention_mask": words}


@pytest.fixture(scope="module")
def base_shapes() -> NlvrModel:
    """The full-size model without memory behind it: dense counts need shapes alone."""
    with torch.device("meta"):
        return NlvrModel(BASE).eval()


@pytest.mark.parametrize("name", ["official_text_t0", "base/b1_t0"])
def test_dense_count_is_fvcores_to_the_last_flop(name: str, base_shapes: NlvrModel) -> None:
    row = ROWS[name]
    flops = count_flops(base_shapes, dense_inputs(row["text_tokens"]), 0.0)
    assert flops.giga == pytest.approx(row["gflops_total"], abs=1e-9)


def test_dense_count_is_the_papers(base_shapes: NlvrModel) -> None:
    tokens = ROWS["official_text_t0"]["text_tokens"]
    assert count_flops(base_shapes, dense_inputs(tokens), 0.0).giga == pytest.approx(PAPER_GFLOPS, rel=0.01)


@pytest.mark.skipif(not (RECORDINGS / "base").is_dir(), reason="the full recordings are not on this machine")
def test_pruned_count_is_fvcores_plus_the_alignment_of_unchanged_layers() -> None:
    """fvcore drops dead code: the dictionary products of a layer that ends up unchanged. We run them, so we count."""
    model = golden.load_model(RECORDINGS / "base")
    config = model.config
    for case in golden.load_cases(RECORDINGS / "base", config.image_size):
        if case.temperature <= 0:
            continue
        row = ROWS[f"base/{case.name}"]
        unchanged = 0
        for tower, images in (("vision", 2), ("text", 1)):
            before = {"vision": config.vision_tokens, "text": case.inputs["input_ids"].shape[1]}[tower]
            for after in row["tokens_out"][tower]:
                unchanged += images * row["samples"] * (before - 1) * (before == after)
                before = after
        expected = row["gflops_total"] * 1e9 + unchanged * config.sd_num * config.sd_dim
        assert count_flops(model, case.inputs, case.temperature).total == pytest.approx(expected, rel=1e-9), case.name


def test_pruning_counts_fewer_operations_and_every_kind_of_them() -> None:
    model = golden.load_model(CARRIED)
    case = next(c for c in golden.load_cases(CARRIED, model.config.image_size) if c.name == "b1_prune")
    dense, pruned = (count_flops(model, case.inputs, tau) for tau in (0.0, case.temperature))
    assert pruned.total < dense.total
    assert {"madtp.aligned_attention", "madtp.token_compact"} <= pruned.by_operator.keys()
    assert sum(pruned.by_operator.values()) == pruned.total


@pytest.mark.parametrize("sized", [False, True], ids=["exact", "sized"])
def test_a_packed_batch_counts_what_its_requests_count_alone(sized: bool) -> None:
    """But for products with weights of rows that no sequence has, where there is room for them."""
    model = golden.load_model(CARRIED)
    case = next(c for c in golden.load_cases(CARRIED, model.config.image_size) if c.name == "b3_pad_prune")
    alone: Counter[str] = Counter()
    for request in range(case.requests):
        words = int(case.inputs["attention_mask"][request].sum())
        own = {name: value[request : request + 1] for name, value in case.inputs.items()}
        own |= {name: own[name][:, :words] for name in ("input_ids", "attention_mask")}
        alone.update(count_flops(model, own, case.temperature).by_operator)
    packed = count_flops(model.packed_copy(sized=sized), case.inputs, case.temperature).by_operator
    assert packed["madtp.packed_aligned_attention"] == alone["madtp.aligned_attention"]
    assert packed["madtp.packed_token_compact"] == alone["madtp.token_compact"]
    products = {
        name: sum(found.get(f"aten.{op}", 0) for op in ("mm", "addmm", "bmm"))
        for name, found in (("packed", packed), ("alone", alone))
    }
    total = products["packed"] + packed["madtp.varlen_attention"]
    assert (total > products["alone"]) if sized else (total == pytest.approx(products["alone"], rel=0.02))
