"""An artifact gives the torch model's answers, token for token, and refuses what it cannot answer."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import madtp
from export import Session
from export.engine.backends import Backend
from export.errors import BackendError, ManifestError
from export.session.products import RankingBatch
from export.session.session import spans
from madtp.data.preprocess import image_tensor
from madtp.data.tokenize import text_processor
from madtp.errors import InputError, MadtpError
from madtp.models.retrieval import RetrievalModel
from madtp.tasks.ranking import rank
from tests.helpers import decoding
from tests.helpers.artifacts import TaskArtifacts
from tests.helpers.checkpoints import TAU
from tests.helpers.command_line import Ran
from tests.helpers.manifests import edit_manifest
from tests.helpers.samples import IMAGES, TEXTS, write_vocabulary

OTHERS = ("vqa", "caption", "retrieval", "clip")


@pytest.fixture(scope="module")
def sessions(task_artifacts: TaskArtifacts) -> Iterator[dict[str, Session]]:
    opened = {task: Session(task_artifacts[task] / "out.json") for task in OTHERS}
    yield opened
    for session in opened.values():
        session.close()


@pytest.fixture(scope="module")
def nlvr(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    vocabulary = write_vocabulary(tmp_path_factory.mktemp("vocabulary") / "vocab.txt")
    with Session(tiny_artifact / "out.json", vocabulary=vocabulary) as session:
        yield session


def pixels(images: list[Image.Image]) -> torch.Tensor:
    return torch.stack([image_tensor(image, 32) for image in images])


@torch.no_grad()
def test_judge_is_the_torch_model(nlvr: Session, tiny_artifact: Path) -> None:
    model = madtp.load(tiny_artifact / "tiny.pt")
    ids, mask = nlvr.processor.batch(TEXTS)
    pairs = list(zip(IMAGES[:4], IMAGES[4:8], strict=True))
    expected = model(pixels(IMAGES[:4]), pixels(IMAGES[4:8]), ids, mask, torch.tensor(TAU))
    products = nlvr.judge(pairs, TEXTS, batch=4)
    torch.testing.assert_close(torch.tensor([p.logits for p in products]), expected.logits, atol=1e-4, rtol=0)
    assert [p.answer for p in products] == (expected.logits[:, 1] > expected.logits[:, 0]).tolist()
    assert [p.probability for p in products] == pytest.approx(expected.logits.softmax(1)[:, 1].tolist(), abs=1e-4)
    for number, product in enumerate(products):
        assert list(product.tokens["vision"]) == expected.vision_token_counts[number].tolist()
        assert list(product.tokens["text"]) == expected.text_token_counts[number].tolist()


@pytest.mark.parametrize("temperature", [TAU, 0.0])
def test_answers_are_the_torch_models(
    temperature: float, sessions: dict[str, Session], task_artifacts: TaskArtifacts
) -> None:
    session, model = sessions["vqa"], madtp.load(task_artifacts["vqa"] / "tiny.pt")
    processor = session.processor
    ids, mask = processor.batch(TEXTS)
    with torch.no_grad():
        states, vision, _ = model(pixels(IMAGES[:4]), ids, mask, temperature)
    written = decoding.answer(model, states, beams=2, max_length=7)
    products = session.answer(IMAGES[:4], TEXTS, beams=2, max_length=7, batch=4, temperature=temperature)
    for row, counts, product in zip(written.tolist(), vision.tolist(), products, strict=True):
        assert product.how == "generated"
        assert product.ids == [number for number in row if number != 0]
        assert product.text == processor.decode(row)
        assert list(product.tokens["vision"]) == counts
    candidates = ["left", "right image", "same", "both"]
    ranked = decoding.rank(model, states, *processor.answers(candidates), 3)
    products = session.answer(IMAGES[:4], TEXTS, candidates=candidates, k=3, batch=4, temperature=temperature)
    assert [p.text for p in products] == [candidates[index] for index in ranked.answer_index.tolist()]
    for product, scores in zip(products, ranked.topk_log_prob_sum, strict=True):
        assert product.how == "ranked"
        assert product.ids == processor.answer_ids(product.text)
        expected = scores.sort(descending=True).values.tolist()
        assert [score for _, score in product.top] == pytest.approx(expected, abs=1e-4)
        assert product.top[0][0] == product.text
    assert len(session.answer(IMAGES[:1], TEXTS[:1], candidates=candidates)[0].top) == 4  # k is 128


@pytest.mark.parametrize("prompt", [None, "the image shows ", ""])
def test_captions_are_the_torch_models(
    prompt: str | None, sessions: dict[str, Session], task_artifacts: TaskArtifacts
) -> None:
    session, model = sessions["caption"], madtp.load(task_artifacts["caption"] / "tiny.pt")
    first = session.processor.prompt_ids("a picture of " if prompt is None else prompt)
    with torch.no_grad():
        states = model(pixels(IMAGES[:3]), TAU).image_states
    written = decoding.caption(model, states, torch.tensor([first] * 3), max_length=12)
    products = session.caption(IMAGES[:3], prompt=prompt, max_length=12, batch=3)
    for row, product in zip(written.tolist(), products, strict=True):
        assert product.ids == [number for number in row if number != 0]
        assert product.text == session.processor.decode(row[len(first) :])


def test_retrieval_is_the_torch_models_ranking(sessions: dict[str, Session], task_artifacts: TaskArtifacts) -> None:
    session, model = sessions["retrieval"], madtp.load(task_artifacts["retrieval"] / "tiny.pt")
    ids, mask = session.processor.batch(TEXTS)
    batches = pixels(IMAGES).split(3)
    settings: dict[str, Any] = {"k_test": 9, "text_batch": 2, "temperature": TAU}
    expected = rank(model, batches, ids, mask, match_batch=8, **settings)
    ranking = session.rank(IMAGES, TEXTS, k_test=9, batch=8, image_batch=3, text_batch=2)
    assert ranking.batch == RankingBatch(3, 2, 8)
    for name in ("sim", "score_i2t", "score_t2i"):
        torch.testing.assert_close(getattr(ranking, name), getattr(expected, name), atol=1e-4, rtol=0)
    assert {name: len(counts) for name, counts in ranking.tokens.items()} == {
        "vision": 10,
        "text": 4,
        "match": 10 * 4 + 4 * 9,
    }
    texts_of, images_of = ranking.top(10)
    assert [len(row) for row in texts_of] == [4] * 10
    assert [len(row) for row in images_of] == [9] * 4  # the tenth was not matched
    assert all(row == sorted(row, key=lambda found: -found[1]) for row in images_of)


def test_a_row_is_matched_in_batches_of_the_size_that_is_asked_for(
    sessions: dict[str, Session], task_artifacts: TaskArtifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = madtp.load(task_artifacts["retrieval"] / "tiny.pt")
    ids, mask = sessions["retrieval"].processor.batch(TEXTS)
    sizes: list[int] = []
    match = RetrievalModel.match
    monkeypatch.setattr(RetrievalModel, "match", lambda *given: sizes.append(len(given[1])) or match(*given))
    whole = rank(model, [pixels(IMAGES[:5])], ids, mask, k_test=5, temperature=0.0)
    assert sizes == [4] * 5 + [5] * 4
    sizes.clear()
    cut = rank(model, [pixels(IMAGES[:5])], ids, mask, k_test=5, match_batch=3, temperature=0.0)
    assert sizes == [3, 1] * 5 + [3, 2] * 4
    torch.testing.assert_close(cut, whole, atol=1e-5, rtol=0)  # dense: a batch changes nothing


def test_clip_is_the_torch_models_similarity(sessions: dict[str, Session], task_artifacts: TaskArtifacts) -> None:
    session, model = sessions["clip"], madtp.load(task_artifacts["clip"] / "tiny.pt")
    ids, _ = text_processor(model.config, None).batch(TEXTS)
    with torch.no_grad():
        expected = model(pixels(IMAGES[:3]), ids, TAU)
    ranking = session.rank(IMAGES[:3], TEXTS, batch=4)
    torch.testing.assert_close(ranking.sim, expected.sim, atol=1e-4, rtol=0)
    assert torch.equal(ranking.score_t2i, ranking.sim.mT)
    assert ranking.tokens["vision"].tolist() == expected.vision_token_counts.tolist()
    assert ranking.tokens["text"].tolist() == expected.text_token_counts.tolist()


@pytest.mark.parametrize(
    ("task", "given", "shown"),
    [
        ("vqa", ("--text", "a digit", "--text", "one"), ["a digit: ", "(generated)", "one: ", "tokens vision"]),
        ("vqa", ("--text", "one", "--candidates", "answers.txt", "--top", 1), ["(ranked)", "tokens vision"]),
        ("caption", ("--beams", 1, "--prompt", "the "), ["tokens vision"]),
        ("retrieval", ("--text", "a [digit]", "--text", "one", "--k-test", 1), ["a [digit]", "x.png", " - "]),
        ("clip", ("--text", "a [digit]", "--text", "one", "--top", 1), ["a [digit]", "x.png", "images of each text"]),
    ],
)
def test_the_command_prints_what_the_session_returns(
    task: str,
    given: tuple[object, ...],
    shown: list[str],
    task_artifacts: TaskArtifacts,
    sessions: dict[str, Session],
    run_cli: Callable[..., Ran],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    IMAGES[0].save("x.png")
    Path("answers.txt").write_text("left\nright\n\n")
    arguments = ("run", task_artifacts[task] / "out.json", "--image", "x.png", *given)
    ran = run_cli(*arguments)
    assert ran.status == 0, ran
    assert all(part in ran.out for part in shown), ran.out
    printed = json.loads(run_cli(*arguments, "--json").out)
    texts = [str(value) for option, value in pairwise(given) if option == "--text"]
    if task in ("retrieval", "clip"):
        ranking = sessions[task].rank(IMAGES[:1], texts, k_test=1 if task == "retrieval" else None)
        assert printed["ranking"]["score_i2t"] == ranking.score_i2t.tolist()
        assert printed["ranking"]["tokens"] == {name: counts.tolist() for name, counts in ranking.tokens.items()}
        assert len(printed["ranking"]["texts_of_images"][0]) == 1  # of two
    elif task == "vqa":
        candidates = ["left", "right"] if "--candidates" in given else None
        products = sessions["vqa"].answer(IMAGES[:1] * len(texts), texts, candidates=candidates)
        assert [entry["ids"] for entry in printed["products"]] == [product.ids for product in products]
        assert [len(entry["top"]) for entry in printed["products"]] == [1 if candidates else 0] * len(texts)
    else:
        (product,) = sessions["caption"].caption(IMAGES[:1], beams=1, prompt="the ")
        assert printed["products"][0] == json.loads(json.dumps(product.__dict__))


def test_more_requests_than_a_batch_are_cut(sessions: dict[str, Session]) -> None:
    session = sessions["caption"]
    assert session.batch.max == 8
    how: dict[str, Any] = {"max_length": 8, "batch": 8}
    products = session.caption(IMAGES, **how)
    assert products == [*session.caption(IMAGES[:8], **how), *session.caption(IMAGES[8:], **how)]
    assert [product.batch for product in products] == [8] * 8 + [2] * 2
    assert spans(9, 8, "x") == [(0, 8), (8, 9)]
    assert spans(16, 8, "x") == [(0, 8), (8, 16)]
    with pytest.raises(InputError, match="there are 0 images"):
        spans(0, 8, "images")


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "1"])
def test_images_of_every_mode_are_answered(mode: str, sessions: dict[str, Session]) -> None:
    session, image = sessions["clip"], IMAGES[0].convert(mode)
    assert torch.equal(session.rank([image], ["a"]).sim, session.rank([image.convert("RGB")], ["a"]).sim)


def test_an_empty_text_is_a_text(sessions: dict[str, Session], nlvr: Session) -> None:
    assert sessions["vqa"].answer(IMAGES[:1], [""])[0].ids
    assert sessions["clip"].rank(IMAGES[:1], [""]).sim.shape == (1, 1)
    assert math.isfinite(nlvr.judge([(IMAGES[0], IMAGES[1])], [""])[0].probability)


def test_an_overlong_text_is_refused_unless_it_may_be_cut(sessions: dict[str, Session]) -> None:
    session, text = sessions["vqa"], "the left image " * 30
    with pytest.raises(InputError, match="has 90 words; the limit is 50"):
        session.answer(IMAGES[:1], [text])
    assert session.answer(IMAGES[:1], [text], cut=True)[0].ids


def animated() -> Image.Image:
    import io

    buffer = io.BytesIO()
    IMAGES[0].save(buffer, "GIF", save_all=True, append_images=[IMAGES[1]])
    return Image.open(buffer)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (lambda: "a.jpg", "not a PIL image"),
        (lambda: Image.new("1", (9000, 9000)), "Scale it down"),
        (lambda: Image.new("I;16", (4, 4)), "more than 8 bits"),
        (animated, "2 frames"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(image: Any, message: str, sessions: dict[str, Session]) -> None:
    with pytest.raises(InputError, match=f"image 1[^0-9](.|\n)*{message}"):
        sessions["caption"].caption([IMAGES[0], image()])


@pytest.mark.parametrize("temperature", [-0.1, math.nan, math.inf])
def test_a_temperature_has_to_be_a_number(temperature: float, sessions: dict[str, Session]) -> None:
    with pytest.raises(InputError, match="the temperature is"):
        sessions["clip"].rank(IMAGES[:1], ["a"], temperature=temperature)


@pytest.mark.parametrize(
    ("task", "ask", "message"),
    [
        ("vqa", lambda s: s.rank(IMAGES, TEXTS), r"Use session.answer\(...\)"),
        ("caption", lambda s: s.answer(IMAGES, TEXTS), r"Use session.caption\(...\)"),
        ("retrieval", lambda s: s.judge([], []), r"Use session.rank\(...\)"),
        ("clip", lambda s: s.caption(IMAGES), r"Use session.rank\(...\)"),
        ("vqa", lambda s: s.answer(IMAGES[:2], TEXTS[:1]), "2 requests by their images and 1 by their texts"),
        ("vqa", lambda s: s.answer(IMAGES[:1], "what"), "not a list of texts"),
        ("vqa", lambda s: s.answer([], []), "there are no questions"),
        ("vqa", lambda s: s.answer(IMAGES[:1], ["a"], candidates=[]), "there are no candidates"),
        (
            "vqa",
            lambda s: s.answer(IMAGES[:1], ["a"], candidates=[f"a{n}" for n in range(200)], k=129),
            "129 candidates",
        ),
        ("vqa", lambda s: s.answer(IMAGES[:1], ["a"], candidates=["a " * 30]), "32 ids of a text"),
        ("vqa", lambda s: s.answer(IMAGES[:1], ["a"], candidates=["a"], k=0), "0 candidates"),
        ("vqa", lambda s: s.answer(IMAGES[:1], ["a"], beams=-1), "-1 beams"),
        (
            "caption",
            lambda s: s.caption(IMAGES[:1], beams=9),
            "9 beams were asked for\nThe artifact's decoder was built",
        ),
        ("caption", lambda s: s.caption(IMAGES[:1], max_length=100), "100 ids"),
        ("caption", lambda s: s.caption([]), "there are 0 requests"),
        ("caption", lambda s: s.caption(IMAGES[0]), r"Give \[image\]"),
        ("retrieval", lambda s: s.rank([], TEXTS), "there are 0 images"),
        ("retrieval", lambda s: s.rank(IMAGES[:1], []), "there are no texts"),
        ("retrieval", lambda s: s.rank(IMAGES[:1], TEXTS, k_test=0), "k_test is 0"),
        ("clip", lambda s: s.rank(IMAGES[:1], TEXTS, k_test=2), "does not apply to clip"),
    ],
)
def test_requests_that_cannot_be_made_say_what_can(
    task: str, ask: Any, message: str, sessions: dict[str, Session]
) -> None:
    with pytest.raises(InputError, match=message):
        ask(sessions[task])


@pytest.mark.parametrize("pairs", [[(IMAGES[0],)], [IMAGES[0]], [(*IMAGES[:3],)]])
def test_a_judgement_takes_two_images(pairs: Any, nlvr: Session) -> None:
    with pytest.raises(InputError, match="request 0 has no pair of images"):
        nlvr.judge(pairs, ["a digit"])


def test_a_closed_session_answers_nothing(task_artifacts: TaskArtifacts) -> None:
    with Session(str(task_artifacts["caption"] / "out.onnx"), threads=1) as session:  # the name that was exported to
        assert session.caption(IMAGES[:1], max_length=6)
    with pytest.raises(InputError, match="the session is closed"):
        session.caption(IMAGES[:1])


def edit(folder: Path, change: Any) -> None:
    edit_manifest(folder / "out.json", change)


def swap(folder: Path) -> None:
    encoder, decoder = folder / "out.encoder.onnx", folder / "out.decoder.onnx"
    encoder.rename(folder / "x")
    decoder.rename(encoder)
    (folder / "x").rename(decoder)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda f: (f / "out.json").unlink(), ManifestError, "cannot read the manifest"),
        (lambda f: (f / "out.decoder.onnx").unlink(), ManifestError, "out.decoder.onnx' is not the file"),
        (swap, ManifestError, "is not the file that the manifest"),
        (lambda f: edit(f, lambda m: m["parts"].pop()), ManifestError, "lists the parts encoder"),
        (
            lambda f: edit(f, lambda m: m["parts"][0].update(checkpoint_sha256="0" * 64)),
            ManifestError,
            "another checkpoint",
        ),
        (lambda f: edit(f, lambda m: m["config"].update(depth=3)), ManifestError, "is malformed\nconfig:"),
        (lambda f: edit(f, lambda m: m["config"].update(vit_heads=3)), ManifestError, "is malformed\nconfig:"),
        (lambda f: (f / "out.vocab.txt").write_text("[PAD]\n"), ManifestError, "out.vocab.txt' is not the file"),
    ],
)
def test_a_damaged_artifact_is_not_opened(
    damage: Any, error: type[MadtpError], message: str, task_artifacts: TaskArtifacts, tmp_path: Path
) -> None:
    folder = shutil.copytree(task_artifacts["vqa"], tmp_path / "copy")
    damage(folder)
    with pytest.raises(error, match=message):
        Session(folder / "out.json")


def test_a_vocabulary_has_to_belong_to_the_artifact(
    task_artifacts: TaskArtifacts, tiny_artifact: Path, tmp_path: Path
) -> None:
    manifest, path = task_artifacts["vqa"] / "out.json", tmp_path / "vocab.txt"
    lines = write_vocabulary(path).read_text().splitlines()
    Session(manifest, vocabulary=path).close()
    path.write_text("\n".join([*lines[:-1], "other"]) + "\n")
    with pytest.raises(InputError, match=r"vocab\.txt"):
        Session(manifest, vocabulary=path)
    path.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(InputError, match="It has 297 pieces; the model has 300"):
        Session(manifest, vocabulary=path)
    with pytest.raises(InputError, match="does not apply to clip"):
        Session(task_artifacts["clip"] / "out.json", vocabulary=path)
    with pytest.raises(InputError, match=r"Name the checkpoint's vocab\.txt"):
        Session(tiny_artifact / "out.json")  # exported without one


def test_a_plan_that_cannot_run_here_says_so(task_artifacts: TaskArtifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend("tensorrt-rtx", "1.7", "there is no GPU", can_run=False)
    monkeypatch.setattr("export.runtime.artifact.backend_of", lambda manifest: backend)
    with pytest.raises(
        BackendError, match=r"no GPU of this machine can run(.|\n)*there is no GPU(.|\n)*export to \.onnx"
    ):
        Session(task_artifacts["vqa"] / "out.json")


def test_importing_the_package_stays_cheap() -> None:
    code = "import sys, export; assert 'torch' not in sys.modules; assert not hasattr(export, 'nothing')"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch": "4"}, r"batch is '4'\nIt must be a whole number"),
        ({"batch": 2.5}, r"batch is 2\.5"),
        ({"beams": 2.0}, r"beams is 2\.0"),
        ({"max_length": "9"}, "max_length is '9'"),
        ({"min_length": 1.0}, r"min_length is 1\.0"),
        ({"candidates": ["a", "one"], "k": 1.5}, r"k is 1\.5"),
        ({"k": 2}, "k does not apply without candidates"),
        ({"temperature": "1"}, "the temperature is 1\nIt must be a finite number"),
    ],
)
def test_what_is_no_number_is_refused(given: dict[str, Any], message: str, sessions: dict[str, Session]) -> None:
    with pytest.raises(InputError, match=message):
        sessions["vqa"].answer(IMAGES[:1], TEXTS[:1], **given)


def test_numbers_of_numpy_are_numbers(sessions: dict[str, Session]) -> None:
    numbers = {"batch": np.int64(2), "beams": np.int32(1), "temperature": np.float32(0)}
    assert sessions["caption"].caption(IMAGES[:2], **numbers)[1].batch == 2


@pytest.mark.parametrize("images", [iter(IMAGES[:1]), {"a": IMAGES[0]}, None])
def test_images_are_a_list(images: Any, sessions: dict[str, Session], nlvr: Session) -> None:
    for ask in (
        lambda: nlvr.judge(images, ["one"]),
        lambda: sessions["vqa"].answer(images, ["one"]),
        lambda: sessions["caption"].caption(images),
        lambda: sessions["clip"].rank(images, ["one"]),
    ):
        with pytest.raises(InputError, match="the images are not a list"):
            ask()


def test_a_prompt_is_a_text(sessions: dict[str, Session]) -> None:
    with pytest.raises(InputError, match=r"prompts are not a list of texts\n.*number 0 is 3"):
        sessions["caption"].caption(IMAGES[:1], prompt=3)  # type: ignore[arg-type]
