"""The listings of docs/embedding.md: all compile with the installed package, and the first gives the first answer."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from export.runtime.artifact import Artifact
from export.runtime.runner import RunnerOptions
from madtp.data.preprocess import image_tensor
from tests.helpers.paths import ROOT
from tests.helpers.runtime_programs import build_with_package, run

LISTING = re.compile(r"```(?:cmake|cpp|c)\n((?:# |// |/\* )(\w+\.\w+).*?)```", re.S)
IDS = (2, 7, 9, 3)


@pytest.fixture(scope="module")
def built() -> Path:
    """The folder with what the page's project builds, and with objects of its other listings."""
    listings = {name: text for text, name in LISTING.findall((ROOT / "docs" / "embedding.md").read_text())}
    assert {"CMakeLists.txt", "first.cpp", "ask.c"} <= listings.keys()
    others = sorted(listings.keys() - {"CMakeLists.txt", "first.cpp", "ask.c"})
    listings["CMakeLists.txt"] += (
        "enable_language(C)\nadd_executable(ask ask.c)\ntarget_link_libraries(ask PRIVATE madtp::runtime)\n"
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


def test_the_first_answer_is_that_of_python(built: Path, tiny_artifact: Path, tmp_path: Path) -> None:
    artifact = Artifact.open(tiny_artifact / "out.json")
    size = artifact.config.image_size
    images = [Image.fromarray(np.random.default_rng(s).integers(0, 256, (size, size, 3), np.uint8)) for s in (1, 2)]
    for image, name in zip(images, ("left", "right"), strict=True):
        (tmp_path / name).write_bytes(image.tobytes())
    ids = torch.tensor([IDS])
    inputs = {f"image{number}": image_tensor(image, size)[None] for number, image in enumerate(images)}
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    options = RunnerOptions(threads=1, execution=artifact.execution())
    expected = artifact.open_runners(options)["model"].run(inputs, artifact.manifest.temperature)

    done = run(built / "first", tiny_artifact / "out.onnx", tmp_path / "left", tmp_path / "right", *IDS)
    assert (done.returncode, done.stderr) == (0, "")
    answer, *tokens = done.stdout.splitlines()
    probability = float(expected["logits"].softmax(dim=1)[0, 1])
    word, shown = re.match(r"(true|false), probability of true (\d\.\d+)", answer).groups()  # type: ignore[union-attr]
    assert (word == "true") == (probability > 0.5)
    assert float(shown) == pytest.approx(probability, abs=0.0006)
    counts = {name: int(expected[f"{name}_token_counts"][0, -1]) for name in ("text", "vision")}
    assert tokens == [f"{name}: {count} tokens after the last layer" for name, count in counts.items()]


def test_the_page_in_c_says_what_runs_or_what_is_wrong(built: Path, tiny_artifact: Path) -> None:
    assert run(built / "ask", tiny_artifact / "out.json").stdout.startswith("nlvr, dynamic: ")
    done = run(built / "ask", "/nowhere.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: cannot read the manifest '/nowhere.json'\n")
