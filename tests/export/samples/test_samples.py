"""The samples that an artifact is shown without its checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.samples.artifact import artifact_samples
from madtp.errors import InputError
from tests.helpers.samples import write_samples
from tests.helpers.sizes import CLIP

OTHER_WORDS = replace(CLIP, image_size=28, vocab_size=512, sot_token_id=510, eot_token_id=511)
MANIFEST: dict[str, Any] = {
    "parts": [
        {"name": "image", "profile": {"image": [[1, 3, 28, 28], [1, 3, 28, 28], [8, 3, 28, 28]]}},
        {"name": "text", "profile": {"input_ids": [[1, 77], [1, 77], [8, 77]]}},
    ],
    "preprocessing": {"text": {"vocabulary": None}},
}


def test_a_clip_model_with_words_of_its_own_is_shown_hashed_ones(tmp_path: Path) -> None:
    shown = artifact_samples(MANIFEST, tmp_path, OTHER_WORDS, None, synthetic=False, demos=3)
    assert len(shown.prepared) == len(shown.texts) == 3
    assert not shown.prepared.fits
    assert "words hashed to ids" in shown.prepared.origin
    assert all(request.ids[-1] == 511 and max(request.ids) < 512 for request in shown.prepared.requests)
    fitting = artifact_samples(MANIFEST, tmp_path, replace(CLIP, image_size=28), None, synthetic=False, demos=3)
    assert fitting.prepared.fits
    assert fitting.processor is not None


def test_a_folder_of_texts_that_the_model_has_no_words_for_is_refused(tmp_path: Path) -> None:
    folder = write_samples(tmp_path / "samples")
    (folder / "samples.json").write_text('[{"caption": "a digit", "image": "0-left.png"}]')
    with pytest.raises(InputError, match="CLIP's vocabulary does not belong"):
        artifact_samples(MANIFEST, tmp_path, OTHER_WORDS, folder, synthetic=False, demos=3)
    one = artifact_samples(MANIFEST, tmp_path, replace(CLIP, image_size=28), folder, synthetic=False, demos=3)
    assert one.texts == ["a digit"]


def test_a_limit_takes_the_first_samples(tmp_path: Path) -> None:
    folder = write_samples(tmp_path / "samples")
    entries = ", ".join(f'{{"caption": "digit {n}", "image": "0-left.png"}}' for n in range(4))
    (folder / "samples.json").write_text(f"[{entries}]")
    config = replace(CLIP, image_size=28)
    shown = artifact_samples(MANIFEST, tmp_path, config, folder, synthetic=False, demos=3, limit=2)
    assert shown.texts == ["digit 0", "digit 1"]
    assert "the first 2 of 4 samples" in shown.prepared.origin
