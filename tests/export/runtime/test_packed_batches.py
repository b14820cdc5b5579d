"""Packed graphs in ONNX Runtime, on bodies and on kernels: no request's answer depends on its batch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from export.engine.range import Range
from export.graph.fuse import fuse_products
from export.graph.trace import write_part
from export.runtime.checked import finite_runners
from export.runtime.execution import BODIES, Execution
from export.runtime.onnx_runner import OnnxRunner
from export.validate.batch_invariance import hostile_request
from madtp.checkpoint.loading import read_model
from madtp.data.samples import Request, collate
from madtp.errors import InputError
from madtp.models.parts import parts_of
from madtp.tasks.requests import Outputs, run_request
from tests.helpers.checkpoints import TAU, TINY, save_checkpoint, state_of
from tests.helpers.op_library import real_library
from tests.helpers.packed_batches import PruningRunner, differences

BATCHES = (1, 2, 3, 8, 33, 64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return read_model(save_checkpoint(tmp_path_factory.mktemp("model") / "tiny.pt", state_of(TINY)), None).model


@pytest.fixture(scope="module")
def graph(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "packed.onnx"
    write_part(parts_of(model.packed_copy())["model"], path, passes=[fuse_products])
    return path


@pytest.fixture(scope="module", params=["bodies", "kernels"])
def runner(request: pytest.FixtureRequest, graph: Path) -> OnnxRunner:
    execution = BODIES if request.param == "bodies" else Execution("cpu", real_library(), "")
    return OnnxRunner(graph, 2, execution)


@pytest.fixture(scope="module")
def requests(model: Any) -> list[Request]:
    """One to be watched, one that keeps nearly all of its tokens, and others."""
    random = torch.Generator().manual_seed(5)

    def made(words: int) -> Request:
        images = tuple(torch.randn(3, TINY["image_size"], TINY["image_size"], generator=random) for _ in range(2))
        ids = torch.randint(5, TINY["vocab_size"] - 2, (words,), generator=random).tolist()
        return Request(images, [TINY["enc_token_id"], *ids, TINY["sep_token_id"]])

    watched = made(6)
    return [watched, hostile_request(model.config, watched, Range(2, 8, 16)), *(made(1 + n % 9) for n in range(6))]


def run(runner: OnnxRunner, config: Any, requests: list[Request]) -> Outputs:
    return run_request(config, {"model": runner}, collate(requests, config), TAU)


def row(outputs: Mapping[str, Tensor], slot: int, batch: int) -> list[Tensor]:
    """Counts of a request, and its logits."""
    images, text = outputs["vision_token_counts"], outputs["text_token_counts"]
    return [images[slot], images[batch + slot], text[slot], outputs["logits"][slot]]


@pytest.mark.parametrize("batch", BATCHES)
def test_a_request_keeps_its_tokens_and_answer_in_every_slot(
    runner: OnnxRunner, model: Any, requests: list[Request], batch: int
) -> None:
    expected = row(run(runner, model.config, requests[:1]), 0, 1)
    for slot in {0, 1, batch // 2, batch - 1} & set(range(batch)):
        others = [requests[1 + n % (len(requests) - 1)] for n in range(batch - 1)]
        together = run(runner, model.config, [*others[:slot], requests[0], *others[slot:]])
        found = row(together, slot, batch)
        assert all(torch.equal(*pair) for pair in zip(found[:3], expected[:3], strict=True)), slot
        torch.testing.assert_close(found[3], expected[3], rtol=0, atol=1e-5)


def test_all_requests_of_a_batch_get_what_torch_gives_them_alone(
    runner: OnnxRunner, model: Any, requests: list[Request]
) -> None:
    dynamic = {name: PruningRunner(part) for name, part in parts_of(model).items()}
    expected = [run_request(model.config, dynamic, collate([one], model.config), TAU) for one in requests]
    kept = {tuple(one["vision_token_counts"][0].tolist()) for one in expected}
    assert len(kept) > 1, "requests that keep equally many show nothing"
    inputs, packed = collate(requests, model.config), {"model": runner}
    worst, wrong = differences(model.config, parts_of(model), packed, inputs, TAU, expected)
    assert not wrong
    assert worst <= 1e-5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_pixels_that_are_no_numbers_harm_their_own_request_alone(
    runner: OnnxRunner, model: Any, requests: list[Request], value: float
) -> None:
    clean = run(runner, model.config, requests)
    broken = [torch.full_like(image, value) for image in requests[2].images]
    others = [*requests[:2], Request(tuple(broken), requests[2].ids), *requests[3:]]
    damaged = run(runner, model.config, others)
    assert not damaged["logits"][2].isfinite().all()
    for slot in (0, 1, *range(3, len(requests))):
        found, expected = (row(outputs, slot, len(requests)) for outputs in (damaged, clean))
        assert all(torch.equal(*pair) for pair in zip(found[:3], expected[:3], strict=True)), slot
        torch.testing.assert_close(found[3], expected[3], rtol=0, atol=1e-5)
    with pytest.raises(InputError, match=f"not finite for request 2 of {len(others)} in the batch"):
        run_request(model.config, finite_runners({"model": runner}, "a test"), collate(others, model.config), TAU)
    again = run(runner, model.config, requests)
    assert torch.equal(again["logits"], clean["logits"])
