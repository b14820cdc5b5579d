"""The manifest's schema, and what it says of the parts of each task."""

import json
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
import torch

from export.artifact.manifest import PART_NAMES, SCHEMA_FILE, SCHEMA_VERSION, Manifest, Profile, manifest_schema
from export.artifact.reader import manifest_path
from export.build.describe import artifact_name
from export.engine.profile import batch_and_text, input_profile, part_sizes, text_range
from export.engine.range import Range
from madtp.checkpoint.loading import MODELS
from madtp.models.parts import PAST, parts_of
from tests.helpers import sizes

CONFIGS = {
    "nlvr": sizes.BASE,
    "vqa": sizes.VQA,
    "caption": sizes.CAPTION,
    "retrieval": sizes.RETRIEVAL,
    "clip": sizes.CLIP,
}


def test_the_schema_is_one() -> None:
    schema = manifest_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"]["schema"]["const"] == SCHEMA_VERSION
    assert set(schema["properties"]["task"]["enum"]) == set(PART_NAMES)


def test_the_documented_schema_is_the_one_that_is_generated() -> None:
    """`python -m export.artifact.manifest` writes it."""
    assert json.loads(SCHEMA_FILE.read_text(encoding="utf-8")) == manifest_schema()


def test_a_manifest_is_the_same_after_a_round_trip(exported: tuple[Path, Path]) -> None:
    content = json.loads(manifest_path(exported[0]).read_text())
    assert json.dumps(Manifest.from_json(content).to_json()) == json.dumps(content)


@pytest.mark.parametrize("task", CONFIGS)
def test_parts_and_profiles_are_those_of_the_model(task: str) -> None:
    config = CONFIGS[task]
    with torch.device("meta"):
        parts = parts_of(MODELS[task](config))
    assert tuple(parts) == PART_NAMES[task]
    text = text_range(config, None)
    entries = []
    for name, part in parts.items():
        profile = input_profile(part, part_sizes(task, part, Range(1, 2, 8), text, None))
        assert profile.keys() == {spec.name for spec in part.inputs if spec.name != "temperature"}
        for smallest, best, largest in profile.values():
            assert all(a <= b <= c for a, b, c in zip(smallest, best, largest, strict=True))
        profiles = {input_name: Profile(*map(tuple, shapes)) for input_name, shapes in profile.items()}
        entries.append(SimpleNamespace(name=name, profile=profiles))
    manifest = SimpleNamespace(parts=entries)
    assert batch_and_text(manifest)[0] == Range(1, 2, 8)
    decoder = parts.get("decoder")
    if decoder is not None:
        past = next(spec for spec in decoder.inputs if spec.name == "past").shape.index(PAST)
        assert entries[-1].profile["past"].min[past] == 0  # the first step has no cache
    fixed = task in ("caption", "clip")  # a prompt of one length; texts that all have the model's length
    assert batch_and_text(manifest)[1] == (Range(1, 1, 1) if fixed else text)


def test_a_single_part_keeps_the_name_that_was_asked_for() -> None:
    assert artifact_name(Path("x/out.plan"), "model", 1) == "out.plan"
    assert artifact_name(Path("x/out.v2.plan"), "decoder", 2) == "out.v2.decoder.plan"
