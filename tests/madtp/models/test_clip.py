"""CLIP with MADTP: recorded cases of the official implementation, and properties of its parts."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from madtp.checkpoint.loading import NOT_DEPLOYED, load_state
from madtp.errors import CheckpointError, InputError
from madtp.models.clip import ClipModel, round_like_official_loader
from madtp.models.config import ClipConfig
from madtp.ops.recorder import PruningRecorder
from tests import golden
from tests.helpers.generate import generated_images, generated_state
from tests.helpers.paths import RECORDINGS

RECORDED = RECORDINGS.parent / "clip"
TINY = RECORDED / "tiny"
needs_recordings = pytest.mark.skipif(
    not (TINY / "cases.json").is_file(), reason="the full recordings are not on this machine"
)
END = 63  # end of text; start is 62, words are below
CONFIG = ClipConfig(
    embed_dim=12,
    image_size=32,
    patch_size=4,
    vision_layers=3,
    vision_width=16,
    vision_heads=2,
    context_length=40,
    vocab_size=64,
    text_width=24,
    text_heads=3,
    text_layers=3,
    sd_num=8,
    sd_dim=20,
    sot_token_id=62,
    eot_token_id=END,
)
TAU = 1.0


@pytest.fixture(scope="module")
def state() -> Mapping[str, Tensor]:
    with torch.device("meta"):
        return generated_state(ClipModel(CONFIG), 0)


@pytest.fixture(scope="module")
def model(state: Mapping[str, Tensor]) -> ClipModel:
    model = ClipModel(CONFIG, TAU).requires_grad_(False)
    model.load_state_dict(state)
    return model.eval()


def captions(*lengths: int) -> Tensor:
    """[B, context_length] ids of captions with so many words."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.zeros(len(lengths), CONFIG.context_length, dtype=torch.int64)
    for row, length in zip(ids, lengths, strict=True):
        row[0] = CONFIG.sot_token_id
        row[1 : length + 1] = torch.randint(1, 60, (length,), generator=generator)
        row[length + 1] = END
    return ids


IMAGES = generated_images(3, CONFIG.image_size, 0)


@needs_recordings
@pytest.mark.parametrize("damage", ["tokens_out", "K"])
def test_wrong_counts_are_noticed(tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(TINY, tmp_path / "clip")
    cases = json.loads((folder / "cases.json").read_text())
    case = next(case for case in cases if case["name"] == "evaluate")
    call = next(call for call in case["trace"] if call["tower"] == "vision_2")
    call[damage][1] += 1
    (folder / "cases.json").write_text(json.dumps([case]))
    ((_, _, verdict),) = golden.check_folder(folder, onnx=False, scratch=tmp_path)
    assert any("vision_2 layer 1" in mismatch for mismatch in verdict.mismatches)


@needs_recordings
def test_another_storage_order_or_position_is_noticed() -> None:
    model = golden.load_model(TINY)
    case = next(case for case in golden.load_cases(TINY, model.config.image_size) if case.name == "b3_prune")
    replay = golden.replay(model.config, golden.TorchRuntime(model), case)
    ids = replay.towers["vision"][0].source_ids
    assert ids is not None
    ids[0, 1:3] = ids[0, 1:3].flip(0)
    replay.outputs["text_picked_position"][0] += 1
    mismatches = golden.compare(case, replay).mismatches
    assert len(mismatches) == 2
    assert mismatches[0] == "text_picked_position differs"
    assert mismatches[1] == "vision layer 0: tokens are stored in another order"


@pytest.mark.skipif(not (RECORDED / "keys.json").is_file(), reason="the full recordings are not on this machine")
def test_full_size_model_has_exactly_the_official_keys() -> None:
    official = json.loads((RECORDED / "keys.json").read_text())
    values = json.loads((RECORDED / "base" / "config.json").read_text())
    with torch.device("meta"):
        model = ClipModel(ClipConfig(**{k: v for k, v in values.items() if k in ClipConfig.__dataclass_fields__}))
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == {name: entry["shape"] for name, entry in official.items() if not NOT_DEPLOYED.search(name)}


def test_outputs_have_the_documented_shapes_and_lengths(model: ClipModel) -> None:
    output = model(IMAGES, captions(4, 6))
    assert output.sim.shape == (3, 2)
    assert output.image_feature.shape == output.image_embed.shape == (3, CONFIG.embed_dim)
    assert output.text_feature.shape == output.text_embed.shape == (2, CONFIG.embed_dim)
    assert output.vision_token_counts.shape == (3, CONFIG.vision_layers)
    assert output.text_token_counts.shape == (2, CONFIG.text_layers)
    assert output.text_picked_position.shape == (2,)
    for embed in (output.image_embed, output.text_embed):
        torch.testing.assert_close(embed.norm(dim=1), torch.ones(len(embed)))


def test_both_encoders_prune_at_the_models_own_temperature(model: ClipModel) -> None:
    output = model(IMAGES, captions(4, 6))
    assert output.vision_token_counts[0, -1] < CONFIG.vision_tokens
    assert output.text_token_counts[0, -1] < CONFIG.context_length
    torch.testing.assert_close(output, model(IMAGES, captions(4, 6), torch.tensor(TAU)), rtol=0, atol=0)


def test_temperature_zero_is_the_dense_model(model: ClipModel) -> None:
    with PruningRecorder() as recorder:
        dense = model(IMAGES, captions(4, 6), 0.0)
    assert not recorder.records
    assert (dense.vision_token_counts == CONFIG.vision_tokens).all()
    assert (dense.text_token_counts == CONFIG.context_length).all()
    torch.testing.assert_close(dense, model(IMAGES, captions(4, 6), torch.tensor(0.0)))


def test_a_feature_is_read_at_the_end_of_text_where_nothing_is_pruned(model: ClipModel) -> None:
    output = model.encode_text(captions(4, 9), 0.0)
    assert output.text_picked_position.tolist() == [5, 10]
    changed = captions(4, 9)
    changed[:, 12:] = 7  # behind both ends: causal attention does not see it
    torch.testing.assert_close(output, model.encode_text(changed, 0.0))


@pytest.mark.parametrize("mates", [(), (1,)])
def test_text_prunes_only_while_more_tokens_stay_than_the_last_end_of_text_and_two(
    model: ClipModel, mates: tuple[int, ...]
) -> None:
    spare = set()  # tokens that stay beyond the limit
    for words in range(1, CONFIG.context_length - 2):
        with PruningRecorder() as recorder:
            model.encode_text(captions(*mates, words))
        for record in recorder.records:
            limit = words + 1 + 2
            assert record.pruned == (record.keep > limit and record.importance.shape[1] - record.keep >= 2)
            spare.add(record.keep - limit)
    assert {0, 1} <= spare


def test_a_long_caption_keeps_its_batch_mates_unpruned(model: ClipModel) -> None:
    alone = model.encode_text(captions(4))
    mixed = model.encode_text(captions(4, 36))
    assert alone.text_token_counts[0, 0] < CONFIG.context_length
    assert (mixed.text_token_counts == CONFIG.context_length).all()
    assert mixed.text_picked_position.tolist() == [5, 37]


def test_images_prune_only_while_more_than_one_patch_stays(state: Mapping[str, Tensor]) -> None:
    small = replace(CONFIG, image_size=12)
    model = ClipModel(small, TAU).requires_grad_(False)
    positions = state["visual.positional_embedding"][: small.vision_tokens]
    model.load_state_dict({**state, "visual.positional_embedding": positions})
    keeps = set()
    for image in generated_images(16, small.image_size, 0).split(1):
        with PruningRecorder() as recorder:
            model.encode_image(image)
        for record in recorder.records:
            assert record.pruned == (record.keep > 1 and record.importance.shape[1] - record.keep >= 2)
            keeps.add(record.keep)
    assert {1, 2} <= keeps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_keep_scores_and_outputs_wide(state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    model = ClipModel(CONFIG, TAU).requires_grad_(False)
    model.load_state_dict(state)
    reference = model(IMAGES, captions(4, 6), 0.0)
    model = model.to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    with PruningRecorder() as recorder:
        output = model(IMAGES, captions(4, 6))
    assert all(record.importance.dtype == wide for record in recorder.records)
    assert output.sim.dtype == output.image_embed.dtype == output.text_embed.dtype == wide
    dense = model(IMAGES, captions(4, 6), 0.0)
    torch.testing.assert_close(dense.sim, reference.sim, atol=0.05, rtol=0, check_dtype=False)


def test_rounding_is_to_half_precision_of_products_only(state: Mapping[str, Tensor]) -> None:
    rounded = round_like_official_loader(state)
    assert rounded.keys() == state.keys()
    changed = {key for key in state if not torch.equal(rounded[key], state[key])}
    kept = ("space_dict", "embedding", "ln_")
    assert changed == {key for key in state if not any(part in key for part in kept)}
    for key in changed:
        assert rounded[key].dtype == torch.float32
        assert torch.equal(rounded[key], state[key].half().float())
    again = round_like_official_loader(rounded)
    assert all(torch.equal(again[key], rounded[key]) for key in rounded)


def test_weights_beyond_half_precision_are_named(state: Mapping[str, Tensor]) -> None:
    broken = {**state, "visual.proj": torch.full_like(state["visual.proj"], 1e6)}
    with torch.device("meta"):
        model = ClipModel(CONFIG)
    with pytest.raises(CheckpointError, match=r"visual\.proj"):
        load_state(model, round_like_official_loader(broken), "clip.pth")


def test_what_is_no_weight_passes_the_rounding_and_is_named_when_loaded(state: Mapping[str, Tensor]) -> None:
    broken = {**state, "visual.proj": "text", "text_projection": torch.ones(24, 12, dtype=torch.int64)}
    with torch.device("meta"):
        model = ClipModel(CONFIG)
    with pytest.raises(CheckpointError, match=r"text_projection is int64, visual\.proj is of type str"):
        load_state(model, round_like_official_loader(broken), "clip.pth")


def test_a_checkpoint_without_its_alignment_is_refused(state: Mapping[str, Tensor]) -> None:
    plain = {key: value for key, value in state.items() if "query_model" not in key and key != "space_dict"}
    with torch.device("meta"):
        model = ClipModel(CONFIG)
    with pytest.raises(CheckpointError, match=r"missing: space_dict, transformer\.resblocks\.0\.query_model\.q_map\.0"):
        load_state(model, plain, "clip.pth")


@pytest.mark.parametrize("shape", [(2, 39), (2, 1), (40,)])
def test_captions_of_another_length_are_refused(model: ClipModel, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"not \[B, 40\]"):
        model.encode_text(torch.ones(shape, dtype=torch.int64))
