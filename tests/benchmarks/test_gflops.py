"""The dense counts of `benchmarks.gflops`: the published constants, and parts against arithmetic by hand."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks.gflops import PAST, Row, count_everything, gflops_table, main
from madtp.models.vqa import VqaModel
from madtp.ops.flops import count_call
from tests.helpers.sizes import VQA

WIDTH, LAYERS, VOCABULARY = 768, 12, 30524
NORM = 5 * WIDTH  # of one token
PUBLISHED = {"nlvr": 132.54, "vqa": 186.1, "caption": 65.7, "retrieval": 153.2, "clip": 395.7}


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return count_everything()


def part(rows: list[Row], task: str, what: str) -> float:
    (found,) = (row.gflops for row in rows if (row.task, row.what) == (task, what))
    return found


@pytest.mark.parametrize("task", PUBLISHED)
def test_published_constant_is_counted_again(rows: list[Row], task: str) -> None:
    (row,) = (row for row in rows if row.task == task and row.published is not None)
    assert row.published == PUBLISHED[task]
    assert row.gflops == pytest.approx(row.published, rel=0.01)
    assert row.deviation == pytest.approx(100 * (row.gflops - PUBLISHED[task]) / PUBLISHED[task])


@pytest.mark.parametrize(("task", "decimals"), [("nlvr", 2), ("caption", 1), ("retrieval", 1), ("clip", 1)])
def test_all_but_vqa_agree_to_every_digit_published(rows: list[Row], task: str, decimals: int) -> None:
    assert round(part(rows, task, "published"), decimals) == PUBLISHED[task]


def test_image_encoder_is_counted_as_by_hand(rows: list[Row]) -> None:
    patches = (384 // 16) ** 2
    tokens = patches + 1
    layer = tokens * (4 + 8) * WIDTH**2 + 2 * tokens**2 * WIDTH + 2 * tokens * NORM
    total = patches * 3 * 16 * 16 * WIDTH + LAYERS * layer + tokens * NORM
    assert part(rows, "caption", "image") == pytest.approx(total / 1e9, rel=1e-12)


@pytest.mark.parametrize(("task", "states"), [("caption", 577), ("vqa", 20)])
def test_decoder_is_counted_as_by_hand(rows: list[Row], task: str, states: int) -> None:
    keys_and_values = LAYERS * 2 * states * WIDTH**2
    assert part(rows, task, "decoder, once a request") == pytest.approx(keys_and_values / 1e9, rel=1e-12)
    # Self-attention 4, query and output of cross-attention 2, feed-forward network 8; each with its norm.
    layer = (4 + 2 + 8) * WIDTH**2 + 2 * (PAST + 1) * WIDTH + 2 * states * WIDTH + 3 * NORM
    head = WIDTH**2 + NORM + WIDTH * VOCABULARY
    assert part(rows, task, "decoder step") == pytest.approx((NORM + LAYERS * layer + head) / 1e9, rel=1e-12)


def test_a_call_of_several_parts_counts_their_sum() -> None:
    with torch.device("meta"):
        decoder = VqaModel(VQA).eval().text_decoder
    states = torch.zeros(1, 3, WIDTH, device="meta")
    once = count_call(lambda: decoder.source_cache(states))
    twice = count_call(lambda: (decoder.source_cache(states), decoder.source_cache(states)))
    assert twice.total == 2 * once.total > 0
    assert twice.by_operator.keys() == once.by_operator.keys()


def test_command_writes_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[Row]) -> None:
    monkeypatch.setattr("benchmarks.gflops.count_everything", lambda: rows)
    result = CliRunner().invoke(main, ["--json", str(tmp_path / "gflops.json")], catch_exceptions=False)
    written = json.loads((tmp_path / "gflops.json").read_text())
    assert result.exit_code == 0
    assert [(entry["task"], entry["gflops"]) for entry in written] == [(row.task, row.gflops) for row in rows]
    assert all(f"{row.gflops:.2f}" in result.output for row in rows)
    assert gflops_table(rows).row_count == len(rows)
