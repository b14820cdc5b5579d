"""The example programs, built with the installed package, print what `python -m export run` prints."""

from collections.abc import Callable
from pathlib import Path

import pytest

from madtp.data.default_samples import demo_samples
from tests.helpers.artifacts import TaskArtifacts
from tests.helpers.command_line import Ran
from tests.helpers.runtime_programs import examples, run
from tests.helpers.samples import write_vocabulary


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """JPEG files."""
    folder = tmp_path_factory.mktemp("photos")
    for number, sample in enumerate(demo_samples("caption", 2)):
        sample.images[0].convert("RGB").save(folder / f"{number}.jpg", quality=90)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vocabulary(tmp_path_factory.mktemp("vocabulary") / "vocab.txt")


def answer(text: str) -> list[str]:
    """Without the last line, which says what ran."""
    lines = text.splitlines()
    assert lines[-1].startswith("    runs ")
    return lines[:-1]


@pytest.mark.parametrize("temperature", ["2", "0"])
def test_nlvr_app_judges_as_run_does(
    run_cli: Callable[..., Ran], tiny_artifact: Path, photos: list[Path], vocabulary: Path, temperature: str
) -> None:
    options = ("--temperature", temperature, "--vocab", vocabulary)
    done = run(examples() / "nlvr_app", tiny_artifact / "out.json", *photos, "both images show the digit", *options)
    assert (done.returncode, done.stderr) == (0, "")
    asked = ("--image", photos[0], "--image", photos[1], "--text", "both images show the digit")
    ran = run_cli("run", tiny_artifact / "out.json", *asked, *options)
    assert answer(done.stdout) == answer(ran.out)


def test_caption_app_writes_as_run_does(
    run_cli: Callable[..., Ran], task_artifacts: TaskArtifacts, photos: list[Path]
) -> None:
    manifest = task_artifacts["caption"] / "out.json"
    for options in ((), ("--beams", "1"), ("--prompt", "the left")):
        done = run(examples() / "caption_app", manifest, photos[0], *options)
        assert (done.returncode, done.stderr) == (0, "")
        assert answer(done.stdout) == answer(run_cli("run", manifest, "--image", photos[0], *options).out)


BAD: dict[str, tuple[str, str]] = {
    "no photo": ("/nowhere/x.jpg", "error: cannot read the image '/nowhere/x.jpg'\nNo such file or directory."),
    "a device": ("/dev/zero", "error: cannot read the image '/dev/zero'\nIt is a device; only regular files are read."),
    "a text file": (__file__, f"error: cannot read the image '{__file__}'\nIt is neither a PNG nor a JPEG file."),
}


@pytest.mark.parametrize(("photo", "message"), BAD.values(), ids=BAD)
def test_an_app_says_what_is_wrong(tiny_artifact: Path, vocabulary: Path, photo: str, message: str) -> None:
    arguments = (tiny_artifact / "out.json", photo, photo, "a digit", "--vocab", vocabulary)
    done = run(examples() / "nlvr_app", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 3  # what, why, what to do
