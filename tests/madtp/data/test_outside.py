"""Images lie below the folder of the data that names them, unless the user says otherwise."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from export.build.options import ExportOptions
from export.build.pipeline import prepare
from madtp.data.datasets import read_dataset
from madtp.data.images import MOST_BYTES, image_path, read_image
from madtp.data.samples import read_samples
from madtp.errors import InputError
from tests.helpers.command_line import Ran
from tests.helpers.paths import ROOT
from tests.helpers.samples import write_samples, write_vocabulary

Run = Callable[..., Ran]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of samples and of a data set, beside an image that is none of their business."""
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    folder = write_samples(tmp_path / "data")
    write_vocabulary(folder / "vocab.txt")
    (folder / "nlvr_test.json").write_text((folder / "samples.json").read_text())
    return folder


def name_one(folder: Path, name: str) -> None:
    """Let the first entry of both files name another image."""
    for index in ("samples.json", "nlvr_test.json"):
        entries: list[dict[str, Any]] = json.loads((folder / index).read_text())
        entries[0]["images"][1] = name
        (folder / index).write_text(json.dumps(entries))


def outside(folder: Path) -> list[str]:
    return ["../secret.png", str(folder.parent / "secret.png"), "x/../../secret.png", f"../{folder.name}/../secret.png"]


@pytest.mark.parametrize("which", range(4))
def test_every_reader_keeps_to_the_folder(which: int, data: Path) -> None:
    name_one(data, outside(data)[which])
    (data / "x").mkdir()
    with pytest.raises(InputError, match="names an image outside of"):
        read_samples(data, "nlvr")
    with pytest.raises(InputError, match="names an image outside of"):
        read_dataset("nlvr", data)
    with pytest.raises(InputError, match="names an image outside of"):
        read_dataset("nlvr", data, skip_missing=True)
    assert read_samples(data, "nlvr", allow_outside=True)[0].images[1].size == (8, 8)
    item = read_dataset("nlvr", data, allow_outside=True).items[0]
    assert read_image(item.images[1]).size == (8, 8)  # type: ignore[union-attr]


@pytest.mark.parametrize("folder", [".", "..", "../data", "link/../data"])
def test_folders_may_be_named_as_one_likes(folder: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = data.parent / "elsewhere"
    (elsewhere / "inner").mkdir(parents=True)
    (elsewhere / "data").symlink_to(data)
    (data / "sub").mkdir()
    (data / "link").symlink_to(elsewhere / "inner")
    monkeypatch.chdir(data if folder != ".." else data / "sub")
    inside = image_path(Path(folder), "./a.png", Path("samples.json"))
    assert os.path.samefile(inside.parent, data)
    for name in ("../secret.png", "../../secret.png"):
        with pytest.raises(InputError):
            image_path(Path(folder), name, Path("samples.json"))
    assert image_path(data, str(data / "a.png"), data) == data / "a.png"
    for place, name in ((elsewhere / "data", data / "a.png"), (data, elsewhere / "data" / "a.png")):
        assert os.path.realpath(image_path(place, str(name), data)) == str(data / "a.png")


def test_links_of_the_user_are_followed_and_dots_behind_them_are_not(data: Path) -> None:
    (data.parent / "more" / "deep").mkdir(parents=True)
    shutil.copy(data.parent / "secret.png", data.parent / "more" / "linked.png")
    (data / "linked.png").symlink_to(data.parent / "more" / "linked.png")
    (data / "deep").symlink_to(data.parent / "more" / "deep")
    name_one(data, "linked.png")
    assert read_samples(data, "nlvr")[0].images[1].size == (8, 8)
    name_one(data, "deep/../../secret.png")
    with pytest.raises(InputError, match="names an image outside of"):
        read_samples(data, "nlvr")
    (data / "linked.png").unlink()
    name_one(data, "deep/../linked.png")  # of the folder, not of where the link leads
    with pytest.raises(InputError, match="cannot read the image"):
        read_samples(data, "nlvr")
    with pytest.raises(InputError, match="are not there"):
        read_dataset("nlvr", data)


def test_every_command_refuses_and_allows(
    data: Path, exported: tuple[Path, Path], run_cli: Run, tmp_path: Path, quick: pytest.MonkeyPatch
) -> None:
    artifact, checkpoint = exported
    name_one(data, "../secret.png")
    commands: list[tuple[Any, ...]] = [
        ("evaluate", artifact, "--data", data, "--vocab", data / "vocab.txt", "-o", tmp_path / "results.json"),
        ("validate", "--engine", artifact, "--ckpt", checkpoint, "--samples", data, "--limit", 2),
        ("validate", "--engine", artifact, "--ckpt", checkpoint, "--data", data, "--limit", 2),
        ("bench", artifact, "--samples", data, "--seconds", 0.01, "--no-profile"),
        ("report", artifact, "--samples", data, "-o", tmp_path / "page.html"),
        ("check", "--ckpt", checkpoint, "--engine", tmp_path / "new.onnx", "--samples", data),
    ]
    for command in commands:
        run_cli(*command).refused("names an image outside of", "--allow-outside")
        ran = run_cli(*command, "--allow-outside")
        assert ran.status == 0, ran
    with pytest.raises(InputError, match="outside"):
        prepare(ExportOptions(checkpoint, tmp_path / "new.onnx", samples=data))


def test_calibration_refuses_and_allows(data: Path, exported: tuple[Path, Path], tmp_path: Path) -> None:
    name_one(data, "../secret.png")
    command = [sys.executable, "-m", "calibration", "tokens", "--ckpt", exported[1], "--data", data]
    command += ["-o", tmp_path / "tokens.json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ran.returncode == 2
    assert "names an image outside of" in ran.stderr
    ran = subprocess.run([*command, "--allow-outside"], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr


def test_images_are_regular_files_that_no_other_program_runs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="It is a pipe"):
        read_image(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="It is a device"):
        read_image(Path("/dev/zero"))
    Image.new("RGB", (8, 8)).save(tmp_path / "script.eps")  # Pillow has Ghostscript run it
    with pytest.raises(InputError, match="cannot identify image file"):
        read_image(tmp_path / "script.eps")
    Image.new("RGB", (8, 8)).save(tmp_path / "large.bmp")
    os.truncate(tmp_path / "large.bmp", MOST_BYTES + 1)
    with pytest.raises(InputError, match="more than 537 MB"):
        read_image(tmp_path / "large.bmp")
