"""The samples that an artifact is shown without its checkpoint."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from export.artifact.manifest import Profile
from export.samples.choice import DataOptions
from madtp.errors import InputError
from tests.helpers.artifact_samples import samples_of
from tests.helpers.samples import write_samples
from tests.helpers.sizes import CLIP

OTHER_WORDS = replace(CLIP, image_size=28, vocab_size=512, sot_token_id=510, eot_token_id=511)
IMAGES, TEXTS = Profile((1, 3, 28, 28), (1, 3, 28, 28), (8, 3, 28, 28)), Profile((1, 77), (1, 77), (8, 77))
MANIFEST = SimpleNamespace(
    parts=[
        SimpleNamespace(name="image", profile={"image": IMAGES}),
        SimpleNamespace(name="text", profile={"input_ids": TEXTS}),
    ],
    vocabulary_file=None,
)


def test_a_clip_model_with_words_of_its_own_is_shown_hashed_ones(tmp_path: Path) -> None:
    shown = samples_of(MANIFEST, tmp_path, OTHER_WORDS, DataOptions(), demos=3)
    assert len(shown) == len(shown.texts) == 3
    assert not shown.fits
    assert "words hashed to ids" in shown.origin
    assert all(request.ids[-1] == 511 and max(request.ids) < 512 for request in shown.requests)
    fitting = samples_of(MANIFEST, tmp_path, replace(CLIP, image_size=28), DataOptions(), demos=3)
    assert fitting.fits
    assert fitting.processor is not None


def test_a_folder_of_texts_that_the_model_has_no_words_for_is_refused(tmp_path: Path) -> None:
    folder = write_samples(tmp_path / "samples")
    (folder / "samples.json").write_text('[{"caption": "a digit", "image": "0-left.png"}]')
    with pytest.raises(InputError, match="CLIP's vocabulary does not belong"):
        samples_of(MANIFEST, tmp_path, OTHER_WORDS, DataOptions(folder))
    one = samples_of(MANIFEST, tmp_path, replace(CLIP, image_size=28), DataOptions(folder))
    assert one.texts == ["a digit"]


def test_a_limit_takes_samples_that_are_evenly_spaced(tmp_path: Path) -> None:
    folder = write_samples(tmp_path / "samples")
    entries = ", ".join(f'{{"caption": "digit {n}", "image": "0-left.png"}}' for n in range(4))
    (folder / "samples.json").write_text(f"[{entries}]")
    config = replace(CLIP, image_size=28)
    shown = samples_of(MANIFEST, tmp_path, config, DataOptions(folder, limit=2))
    assert shown.texts == ["digit 0", "digit 2"]
    assert "2 of 4 samples" in shown.origin
