"""The listings of docs/embedding.md: all compile with the installed package, and the first gives the first answer."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from export import Session
from export.runtime.artifact import Artifact
from export.runtime.runner import RunnerOptions
from madtp.data.preprocess import image_tensor
from tests.helpers.fake_tensorrt import to_plans
from tests.helpers.paths import ROOT
from tests.helpers.runtime_programs import build_with_package, run
from tests.helpers.samples import write_vocabulary

LISTING = re.compile(r"```(?:cmake|cpp|c)\n((?:# |// |/\* )(\w+\.\w+).*?)```", re.S)
IDS = (2, 7, 9, 3)


@pytest.fixture(scope="module")
def built() -> Path:
    """The folder with what the page's project builds, and with objects of its other listings."""
    listings = {name: text for text, name in LISTING.findall((ROOT / "docs" / "embedding.md").read_text())}
    assert {"CMakeLists.txt", "first.cpp", "tensors.cpp", "ask.c"} <= listings.keys()
    others = sorted(listings.keys() - {"CMakeLists.txt", "first.cpp", "tensors.cpp", "ask.c"})
    listings["CMakeLists.txt"] += (
        "enable_language(C)\nadd_executable(ask ask.c)\ntarget_link_libraries(ask PRIVATE madtp::runtime)\n"
        "add_executable(tensors tensors.cpp)\ntarget_link_libraries(tensors PRIVATE madtp::runtime)\n"
        f"add_library(others OBJECT {' '.join(others)})\ntarget_link_libraries(others PRIVATE madtp::runtime)\n"
        "target_compile_options(others PRIVATE -Wall -Wextra -Werror)\n"
    )
    sources = ROOT / "build" / "embedding-listings"
    sources.mkdir(parents=True, exist_ok=True)
    for name, text in listings.items():
        path = sources / name
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)
    return build_with_package(sources, ROOT / "build" / "embedding")


@pytest.fixture(scope="module")
def images(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Image.Image]]:
    """Two images of the model's size, and the folder with them as left.png, right.png, and their pixels alone."""
    folder, size = tmp_path_factory.mktemp("images"), Artifact.open(tiny_artifact / "out.json").config.image_size
    made = [Image.fromarray(np.random.default_rng(s).integers(0, 256, (size, size, 3), np.uint8)) for s in (1, 2)]
    for image, name in zip(made, ("left", "right"), strict=True):
        image.save(folder / f"{name}.png")
        (folder / f"{name}.rgb").write_bytes(image.tobytes())
    return folder, made


def assert_answer(text: str, probability: float, tokens: dict[str, int]) -> None:
    answer, *counts = text.splitlines()
    word, shown = re.match(r"(true|false), probability of true (\d\.\d+)", answer).groups()  # type: ignore[union-attr]
    assert (word == "true") == (probability > 0.5)
    assert float(shown) == pytest.approx(probability, abs=0.0006)
    assert counts == [f"{name}: {count} tokens after the last layer" for name, count in sorted(tokens.items())]


def test_the_first_answer_is_that_of_python(
    built: Path, tiny_artifact: Path, images: tuple[Path, list[Image.Image]], tmp_path: Path
) -> None:
    (folder, pair), vocabulary = images, write_vocabulary(tmp_path / "vocab.txt")
    sentence = "both images show the digit"
    with Session(tiny_artifact / "out.json", vocabulary=vocabulary, threads=1) as session:
        (expected,) = session.judge([tuple(pair)], [sentence])
    photos = (folder / "left.png", folder / "right.png")
    done = run(built / "first", tiny_artifact / "out.onnx", *photos, sentence, vocabulary)
    assert (done.returncode, done.stderr) == (0, "")
    assert_answer(done.stdout, expected.probability, {name: counts[-1] for name, counts in expected.tokens.items()})
    done = run(built / "first", tiny_artifact / "out.onnx", *photos)
    assert (done.returncode, done.stderr) == (2, "error: usage: first ARTIFACT LEFT RIGHT SENTENCE [VOCABULARY]\n")


def test_the_first_program_opens_plans_in_tensorrt(
    built: Path, exported: tuple[Path, Path], images: tuple[Path, list[Image.Image]]
) -> None:
    artifact, _ = exported
    plan, (folder, _) = to_plans(artifact.with_suffix(".json"), "tensorrt"), images
    photos = (folder / "left.png", folder / "right.png")
    done = run(built / "first", plan, *photos, "a sentence", MADTP_TENSORRT="/nowhere/libnvinfer.so.10")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: TensorRT cannot be loaded\n"), done.stderr
    assert "/nowhere/libnvinfer.so.10" in done.stderr


def test_the_answer_from_tensors_is_that_of_python(
    built: Path, tiny_artifact: Path, images: tuple[Path, list[Image.Image]]
) -> None:
    artifact, (folder, pair), ids = Artifact.open(tiny_artifact / "out.json"), images, torch.tensor([IDS])
    inputs = {f"image{i}": image_tensor(image, artifact.config.image_size)[None] for i, image in enumerate(pair)}
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    options = RunnerOptions(threads=1, execution=artifact.execution())
    expected = artifact.open_runners(options)["model"].run(inputs, artifact.manifest.temperature)
    done = run(built / "tensors", tiny_artifact / "out.onnx", folder / "left.rgb", folder / "right.rgb", *IDS)
    assert (done.returncode, done.stderr) == (0, "")
    probability = float(expected["logits"].softmax(dim=1)[0, 1])
    counts = {name: int(expected[f"{name}_token_counts"][0, -1]) for name in ("text", "vision")}
    assert_answer(done.stdout, probability, counts)


def test_the_page_in_c_says_what_runs_or_what_is_wrong(built: Path, tiny_artifact: Path) -> None:
    assert run(built / "ask", tiny_artifact / "out.json").stdout.startswith("nlvr, dynamic: ")
    done = run(built / "ask", "/nowhere.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: cannot read the manifest '/nowhere.json'\n")
