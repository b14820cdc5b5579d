"""The packed layout in torch: a batch gives every request what the dynamic layout gives it alone."""

from typing import Any

import pytest
import torch

from madtp.models.parts import parts_of
from madtp.ops.recorder import PruningRecorder
from madtp.tasks.ranking import rank
from tests import golden
from tests.helpers.packed_batches import PruningRunner, alone, differences, inputs_of
from tests.helpers.paths import golden_folders

FOLDERS = [folder for folder in golden_folders() if folder.name != "base"]


@pytest.mark.parametrize("sized", [False, True], ids=["exact", "sized"])
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_a_batch_gives_what_every_request_gets_alone(folder: Any, sized: bool) -> None:
    model = golden.load_model(folder)
    packed_parts = parts_of(model.packed_copy(sized=sized))
    dynamic = {name: PruningRunner(part) for name, part in parts_of(model).items()}
    packed = {name: PruningRunner(part) for name, part in packed_parts.items()}
    cases = [case for case in golden.load_cases(folder, model.config.image_size) if not case.evaluates]
    batches = [case for case in cases if case.requests > 1]
    assert batches
    for case in batches:
        inputs = inputs_of(case)
        expected = alone(model.config, dynamic, inputs, case.temperature)
        worst, wrong = differences(model.config, packed_parts, packed, inputs, case.temperature, expected)
        assert not wrong, (case.name, wrong)
        assert worst <= 1e-5, case.name


@pytest.fixture(scope="module")
def carried() -> tuple[Any, list[golden.GoldenCase]]:
    folder = FOLDERS[0]
    model = golden.load_model(folder)
    return model, list(golden.load_cases(folder, model.config.image_size))


def test_a_copy_shares_the_weights_and_leaves_the_model_as_it_is(carried: tuple[Any, Any]) -> None:
    model, _ = carried
    copy = model.packed_copy()
    assert copy.packed
    assert not model.packed
    ours, theirs = (dict(one.named_parameters()) for one in (model, copy))
    assert all(theirs[name] is weight for name, weight in ours.items())


def test_capacities_are_enough_where_all_rows_have_room(carried: tuple[Any, list[golden.GoldenCase]]) -> None:
    model, cases = carried
    case = next(case for case in cases if case.name == "b3_pad_prune")
    inputs, sized = inputs_of(case), model.packed_copy(sized=True)
    with torch.no_grad():
        exact = model.packed_copy()(**inputs, temperature=case.temperature)
        needed = [counts.sum(dim=0).tolist() for counts in (exact.vision_token_counts, exact.text_token_counts)]
        sized.visual_encoder.capacities, sized.text_encoder.capacities = (tuple(row + 1 for row in of) for of in needed)
        enough = sized(**inputs, temperature=case.temperature)
        sized.visual_encoder.capacities = (*needed[0][:-1], needed[0][-1] // 2)
        short = sized(**inputs, temperature=case.temperature)  # whatever it gives, it gives something
    assert (enough.logits - exact.logits).abs().max() < 1e-5
    assert all(map(torch.equal, enough[1:], exact[1:]))
    assert short.vision_token_counts.sum(dim=0)[-1] == needed[0][-1] // 2


def test_filling_of_a_batch_changes_no_text(carried: tuple[Any, list[golden.GoldenCase]]) -> None:
    model, cases = carried
    packed = model.packed_copy()
    case = next(case for case in cases if case.name == "b1_prune")
    inputs = inputs_of(case)
    longer = dict(inputs)
    longer["input_ids"] = torch.nn.functional.pad(inputs["input_ids"], (0, 9), value=7)
    longer["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, 9))
    with torch.no_grad():
        short, filled = (packed(**given, temperature=case.temperature) for given in (inputs, longer))
    for one, other in zip(short, filled, strict=True):
        assert torch.equal(one, other)


def test_a_recorder_sees_every_request(carried: tuple[Any, list[golden.GoldenCase]]) -> None:
    model, cases = carried
    case = next(case for case in cases if case.name == "b3_pad_prune")
    with PruningRecorder() as together, torch.no_grad():
        output = model.packed_copy()(**inputs_of(case), temperature=case.temperature)
    depth, requests = model.config.vit_depth, case.requests
    assert len(together.records) == requests * (depth + model.config.text_layers)
    vision = [
        [record.tokens_out for record in together.records[request : depth * requests : requests]]
        for request in range(requests)
    ]
    assert vision == output.vision_token_counts[:requests].tolist()


@pytest.mark.skipif(len(FOLDERS) < 2, reason="the full recordings are not on this machine")
def test_ranking_in_batches_is_ranking_one_by_one() -> None:
    folder = next(folder for folder in FOLDERS if folder.parent.name == "retrieval")
    model = golden.load_model(folder)
    case = next(case for case in golden.load_cases(folder, model.config.image_size) if case.evaluates)
    images, ids, mask = (case.inputs[name] for name in ("image", "input_ids", "attention_mask"))
    sizes = {"k_test": 3, "temperature": torch.tensor(case.temperature)}
    one_by_one = rank(model, images.split(1), ids, mask, text_batch=1, match_batch=1, **sizes)
    batched = rank(model.packed_copy(), images.split(4), ids, mask, text_batch=3, match_batch=3, **sizes)
    for found, expected in zip(batched, one_by_one, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
