"""Images and texts that strangers made: taken or refused by the C++ runtime, under the sanitizers."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.helpers.artifacts import TaskArtifacts
from tests.helpers.checkpoints import TINY
from tests.helpers.runtime_programs import programs, run
from tests.helpers.samples import write_vocabulary

SECONDS = os.environ.get("MADTP_FUZZ_SECONDS", "5")


@pytest.fixture(scope="module")
def built() -> Path:
    """The folder of the programs, under AddressSanitizer and UndefinedBehaviorSanitizer."""
    return programs("address", "checks", "fuzz", "fuzz_tasks", "nlvr_app", "caption_app")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One small file of each kind that is decoded."""
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 31, 4), dtype=np.uint8)
    color, grey = Image.fromarray(pixels[..., :3]), Image.fromarray(pixels[..., 0])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    color.save(folder / "0.jpg", exif=exif)
    color.save(folder / "1.jpg", progressive=True, subsampling=2)
    grey.save(folder / "2.jpg")
    Image.fromarray(pixels, "CMYK").save(folder / "3.jpg")
    for number, image in enumerate((color, grey, grey.convert("1"), Image.fromarray(pixels), color.quantize(9)), 4):
        image.save(folder / f"{number}.png", exif=exif)
    return sorted(folder.iterdir())


def test_damaged_images_and_any_texts_are_taken_or_refused(built: Path, images: list[Path], tmp_path: Path) -> None:
    vocabulary = write_vocabulary(tmp_path / "vocab.txt")
    done = run(built / "fuzz_tasks", SECONDS, 2, "nlvr", vocabulary, TINY["vocab_size"], *images)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-3000:]
    found = re.fullmatch(r"(\d+) inputs, (\d+) times accepted\n", done.stdout)
    assert found is not None
    assert 0 < int(found[2]) < int(found[1])


def test_the_apps_are_clean(
    built: Path, images: list[Path], tiny_artifact: Path, task_artifacts: TaskArtifacts, tmp_path: Path
) -> None:
    words = ("a digit", "--vocab", write_vocabulary(tmp_path / "vocab.txt"))
    judged = run(built / "nlvr_app", tiny_artifact / "out.json", images[1], images[5], *words)
    written = run(built / "caption_app", task_artifacts["caption"] / "out.json", images[8])
    for done in (judged, written):
        assert (done.returncode, done.stderr.replace("--rotate follows it\n", "")[:5]) in ((0, ""), (0, "note:"))
