"""`python -m export run`: prints the product, and refuses requests of another form."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from export import Session
from tests.helpers.checkpoints import TAU
from tests.helpers.command_line import Ran
from tests.helpers.samples import write_vocabulary

PIXELS = np.random.default_rng(5).integers(0, 256, (20, 24, 3), dtype=np.uint8)


@pytest.fixture
def run(run_cli: Callable[..., Ran]) -> Callable[..., Ran]:
    return lambda *arguments: run_cli("run", *arguments)


@pytest.fixture
def request_files(tiny_artifact: Path, tmp_path: Path) -> dict[str, Any]:
    """The manifest and vocabulary of the tiny nlvr model, and two images, of which the second lies on its side."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(PIXELS).save(tmp_path / "left.png")
    Image.fromarray(PIXELS[::-1]).save(tmp_path / "[right].jpg", exif=exif)
    return {
        "artifact": tiny_artifact / "out.json",
        "images": (tmp_path / "left.png", tmp_path / "[right].jpg"),
        "vocabulary": write_vocabulary(tmp_path / "vocab.txt"),
    }


def arguments_of(files: dict[str, Any], *more: object) -> list[object]:
    left, right = files["images"]
    return [files["artifact"], "--image", left, "--image", right, "--vocab", files["vocabulary"], *more]


def test_a_judgement_is_printed_for_people_and_programs(run: Callable[..., Ran], request_files: dict[str, Any]) -> None:
    left, right = (Image.open(path) for path in request_files["images"])
    with Session(request_files["artifact"], vocabulary=request_files["vocabulary"]) as session:
        (expected,) = session.judge([(left, right)], ["a digit"])
    ran = run(*arguments_of(request_files, "--text", "a digit"))
    assert ran.status == 0
    assert ran.out.startswith(f"{str(expected.answer).lower()} (probability of true {expected.probability:.3f})\n")
    assert f"tokens vision {' '.join(map(str, expected.tokens['vision']))}, text" in ran.out
    assert ran.err == (
        f"note: the orientation in the EXIF data of '{request_files['images'][1]}' is ignored, as published; "
        "--rotate follows it\n"
    )
    ran = run(*arguments_of(request_files, "--text", "a digit", "--json"))
    printed = json.loads(ran.out)
    assert printed["products"] == [json.loads(json.dumps(expected.__dict__))]
    assert printed["temperature"] == TAU
    assert printed["backend"]["name"] == "onnxruntime"
    assert printed["files"] == ["out.onnx"]
    assert printed["images"] == list(map(str, request_files["images"]))
    assert printed["texts"] == ["a digit"]


def test_photos_are_turned_where_that_is_asked_for(run: Callable[..., Ran], request_files: dict[str, Any]) -> None:
    given = arguments_of(request_files, "--text", "a digit", "--json", "--temperature", 0)
    as_stored, turned = run(*given), run(*given, "--rotate")
    assert "--rotate follows it" in as_stored.err
    assert turned.err == ""
    assert json.loads(as_stored.out)["products"][0]["logits"] != json.loads(turned.out)["products"][0]["logits"]
    assert json.loads(turned.out)["temperature"] == 0


def test_the_artifacts_own_name_will_do(run: Callable[..., Ran], request_files: dict[str, Any]) -> None:
    request_files["artifact"] = request_files["artifact"].with_suffix(".onnx")
    assert run(*arguments_of(request_files, "--text", "a digit")).status == 0


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ((), ("2 images and 0 texts do not fit the task nlvr", "--image LEFT --image RIGHT --text")),
        (("--text", "a", "--text", "b"), ("2 images and 2 texts do not fit the task nlvr",)),
        (("--text", "a", "--beams", 2), ("--beams does not apply to nlvr", "vqa, caption")),
        (("--text", "a", "--k-test", 2), ("--k-test does not apply to nlvr", "retrieval")),
        (("--text", "a", "--prompt", "x"), ("--prompt does not apply to nlvr", "caption")),
        (("--text", "a", "--candidates", "x"), ("--candidates does not apply to nlvr", "vqa")),
        (("--text", "a", "--top", 1), ("--top does not apply to nlvr",)),
        (("--text", "a", "--temperature", "nan"), ("the temperature is nan", "zero or more")),
        (("--text", "a", "--temperature", -1), ("the temperature is -1",)),
        (("--text", "a " * 50), ("the limit is 40", "Shorten the text")),
        (("--text", "a", "--image", "nowhere.png"), ("3 images and 1 texts",)),
    ],
)
def test_what_is_no_request_names_the_right_form(
    more: tuple[object, ...], parts: tuple[str, ...], run: Callable[..., Ran], request_files: dict[str, Any]
) -> None:
    run(*arguments_of(request_files, *more)).refused(*parts)


def test_files_that_cannot_be_read_are_refused(
    run: Callable[..., Ran], request_files: dict[str, Any], tmp_path: Path
) -> None:
    left, _ = request_files["images"]
    left.write_bytes(left.read_bytes()[:200])
    run(*arguments_of(request_files, "--text", "a")).refused("cannot read the image", str(left))
    run(tmp_path / "none.json", "--image", left).refused("cannot read the manifest")
    run(tmp_path / "none.onnx", "--image", left).refused("cannot read the manifest", "none.json")


def pretend(monkeypatch: pytest.MonkeyPatch, task: str, session: Any) -> None:
    """An artifact of another task, without exporting one: `test_session.py` asks real ones."""
    monkeypatch.setattr("export.artifact.reader.read_manifest", lambda path, changed=False: SimpleNamespace(task=task))
    monkeypatch.setattr("export.session.session.Session", lambda artifact, vocabulary=None: session)


@pytest.mark.parametrize(
    ("task", "form", "message"),
    [
        ("vqa", ("--image", "x"), "1 images and 0 texts do not fit the task vqa"),
        ("vqa", ("--image", "x", "--image", "y", "--text", "a"), "2 images and 1 texts"),
        ("caption", ("--image", "x", "--text", "a"), "1 images and 1 texts"),
        ("retrieval", ("--text", "a"), "0 images and 1 texts"),
        ("clip", ("--image", "x"), "1 images and 0 texts"),
        ("clip", ("--image", "x", "--text", "a", "--k-test", "3"), "--k-test does not apply to clip"),
        ("vqa", ("--image", "x", "--text", "a", "--prompt", "3"), "--prompt does not apply to vqa"),
    ],
)
def test_every_task_has_its_form(
    task: str, form: tuple[str, ...], message: str, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, task, None)
    run("out.json", *form).refused(message, "run --image")


def test_candidates_are_a_file_of_lines(
    run: Callable[..., Ran], request_files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, "vqa", None)
    given = ("out.json", "--image", request_files["images"][0], "--text", "a", "--candidates")
    run(*given, tmp_path / "none.txt").refused("cannot read the candidates")
    run(*given, tmp_path).refused("cannot read the candidates", f"Is a directory: '{tmp_path}'")
    for option in ("--beams", "--max-length"):
        run(*given, tmp_path / "none.txt", option, 4).refused(f"{option} does not apply with --candidates")
    (tmp_path / "empty.txt").write_text("\n \n")
    run(*given, tmp_path / "empty.txt").refused("there are no candidates", "one answer a line")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xfa")
    run(*given, tmp_path / "bad.txt").refused("cannot read the candidates")
