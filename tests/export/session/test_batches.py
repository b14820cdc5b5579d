"""By default no answer depends on what it is asked with; what runs together on request says so."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import madtp
from export import Session
from export.session.products import RankingBatch
from export.session.requests import FilledRunner
from madtp.data.preprocess import image_tensor
from madtp.errors import InputError
from madtp.tasks.ranking import image_tokens, pair_tokens
from madtp.tasks.requests import Outputs
from tests.helpers.artifacts import TaskArtifacts
from tests.helpers.checkpoints import TAU
from tests.helpers.command_line import Ran
from tests.helpers.manifests import write_manifest
from tests.helpers.samples import write_vocabulary

RNG = np.random.default_rng(11)
IMAGES = [Image.fromarray(RNG.integers(0, 256, (20, 24, 3), dtype=np.uint8)) for _ in range(6)]
TEXTS = ["the left image", "a digit", "both images show the same digit", "one", "left", "digit one image both"]
OTHERS = ("vqa", "caption", "retrieval", "clip")

Ask = Callable[[Session, Sequence[int]], list[Any]]  # the products of requests, by number


def judge(session: Session, numbers: Sequence[int], **how: Any) -> list[Any]:
    pairs = [(IMAGES[number], IMAGES[number - 1]) for number in numbers]
    return session.judge(pairs, [TEXTS[number] for number in numbers], **how)


def write(session: Session, numbers: Sequence[int], **how: Any) -> list[Any]:
    return session.answer([IMAGES[number] for number in numbers], [TEXTS[number] for number in numbers], **how)


def choose(session: Session, numbers: Sequence[int], **how: Any) -> list[Any]:
    return write(session, numbers, candidates=["left", "right image", "same", "both"], k=3, **how)


def caption(session: Session, numbers: Sequence[int], **how: Any) -> list[Any]:
    return session.caption([IMAGES[number] for number in numbers], max_length=9, **how)


ASKED = {"judge": ("nlvr", judge), "write": ("vqa", write), "choose": ("vqa", choose), "caption": ("caption", caption)}


def opened(task: str, tiny_artifact: Path, task_artifacts: TaskArtifacts, tmp_path: Path) -> Session:
    if task != "nlvr":
        return Session(task_artifacts[task] / "out.json", threads=1)
    vocabulary = write_vocabulary(tmp_path / "vocab.txt")
    return Session(tiny_artifact / "out.json", vocabulary=vocabulary, threads=1)


@pytest.mark.parametrize("name", ASKED)
def test_a_request_is_answered_as_if_it_were_alone(
    name: str, tiny_artifact: Path, task_artifacts: TaskArtifacts, tmp_path: Path
) -> None:
    task, ask = ASKED[name]
    numbers = range(len(IMAGES))
    with opened(task, tiny_artifact, task_artifacts, tmp_path) as session:
        alone = [ask(session, [number])[0] for number in numbers]
        assert ask(session, numbers) == alone
        assert ask(session, [*reversed(numbers)]) == alone[::-1]
        assert {product.batch for product in alone} == {1}
        together = ask(session, numbers, batch=6)
        assert {product.batch for product in together} == {6}
        assert [product.tokens for product in together] != [
            product.tokens for product in alone
        ]  # or this shows nothing


@pytest.mark.parametrize("task", ["retrieval", "clip"])
def test_a_pair_is_scored_as_if_it_were_alone(task: str, task_artifacts: TaskArtifacts) -> None:
    """Whatever else is ranked, in which order. Similarities may round differently in a larger product."""
    with Session(task_artifacts[task] / "out.json", threads=1) as session:
        ranking = session.rank(IMAGES, TEXTS)
        for image, text in ((0, 0), (3, 2), (5, 5)):
            alone = session.rank([IMAGES[image]], [TEXTS[text]])
            for name, score in (
                ("sim", ranking.sim[image, text]),
                ("score_i2t", ranking.score_i2t[image, text]),
                ("score_t2i", ranking.score_t2i[text, image]),
            ):
                torch.testing.assert_close(getattr(alone, name)[0, 0], score, atol=1e-5, rtol=0)
            assert alone.tokens["vision"][0].tolist() == ranking.tokens["vision"][image].tolist()
            assert alone.tokens["text"][0].tolist() == ranking.tokens["text"][text].tolist()
        assert ranking.batch == RankingBatch(1, 1, 1)
        together = session.rank(IMAGES, TEXTS, batch=6)
        assert together.batch == RankingBatch(6, 6, 6)
        assert together.tokens["vision"].tolist() != ranking.tokens["vision"].tolist()


@torch.no_grad()
def test_a_pair_matched_on_its_own_sees_its_own_image(task_artifacts: TaskArtifacts) -> None:
    """The model's own score of a pair: no copies of a class token stand where another image has more tokens."""
    model = madtp.load(task_artifacts["retrieval"] / "tiny.pt")
    with Session(task_artifacts["retrieval"] / "out.json", threads=1) as session:
        ranking = session.rank(IMAGES, TEXTS)
        ids, mask = session.processor.batch(TEXTS)
    ids[:, 0] = model.config.enc_token_id
    lengths = set()
    for image in range(len(IMAGES)):
        encoded = model.encode_image(image_tensor(IMAGES[image], 32)[None], TAU)
        lengths.add(encoded.image_tokens.shape[1])
        for text in range(len(TEXTS)):
            logit = model.match(ids[text : text + 1], mask[text : text + 1], encoded.image_tokens, TAU).itm_logits[0, 1]
            score = ranking.score_i2t[image, text] - ranking.sim[image, text]
            torch.testing.assert_close(score, logit, atol=1e-4, rtol=0)
    assert len(lengths) > 1  # or nothing would have been filled up anyway


def test_a_pair_is_filled_up_where_several_are_matched_together() -> None:
    tokens = [torch.zeros(3, 2), torch.ones(5, 2)]
    assert pair_tokens(tokens, torch.tensor([0]), 1).shape == (1, 3, 2)
    for together in (None, 2):
        expected = image_tokens(tokens, torch.tensor([0]))
        assert torch.equal(pair_tokens(tokens, torch.tensor([0]), together), expected)
        assert expected.shape == (1, 5, 2)


def built_for(folder: Path, least: int) -> None:
    """The artifact of `folder`, said to take `least` requests or more, as ONNX Runtime alone would not insist."""
    path = folder / "out.json"
    manifest = json.loads(path.read_text())
    for part in manifest["parts"]:
        for entry in part["inputs"]:
            shapes = part["profile"].get(entry["name"], [])
            for shape in shapes:
                for axis, size in enumerate(entry["shape"]):
                    if size == "batch":
                        shape[axis] = max(shape[axis], least)
    write_manifest(path, manifest)


@pytest.mark.parametrize("name", ["judge", "write", "caption"])
def test_an_artifact_of_larger_batches_answers_one_request(
    name: str, tiny_artifact: Path, task_artifacts: TaskArtifacts, tmp_path: Path
) -> None:
    task, ask = ASKED[name]
    with opened(task, tiny_artifact, task_artifacts, tmp_path) as session:
        expected = ask(session, range(5))
        together = ask(session, range(4), batch=4)
    folder = tmp_path / "larger"
    shutil.copytree(tiny_artifact if task == "nlvr" else task_artifacts[task], folder)
    built_for(folder, 3)
    with opened(task, folder, {task: folder}, tmp_path) as session:  # type: ignore[arg-type]
        assert session.batch.min == 3
        assert_alike(ask(session, range(5)), expected)
        assert_alike(ask(session, range(4), batch=4), together)
        assert_alike(ask(session, range(1), batch=4), expected[:1])


def assert_alike(products: Sequence[Any], expected: Sequence[Any]) -> None:
    """The same but for rounding, which the size of a batch decides."""
    for product, wanted in zip(products, expected, strict=True):
        assert product.tokens == wanted.tokens
        assert product.batch == wanted.batch
        if hasattr(product, "logits"):
            assert product.logits == pytest.approx(wanted.logits, abs=1e-5)
        else:
            assert product == wanted


@pytest.mark.parametrize("task", ["retrieval", "clip"])
def test_an_artifact_of_larger_batches_ranks_single_ones(
    task: str, task_artifacts: TaskArtifacts, tmp_path: Path
) -> None:
    with Session(task_artifacts[task] / "out.json", threads=1) as session:
        expected = session.rank(IMAGES[:4], TEXTS)
    folder = tmp_path / "larger"
    shutil.copytree(task_artifacts[task], folder)
    built_for(folder, 3)
    with Session(folder / "out.json", threads=1) as session:
        ranking = session.rank(IMAGES[:4], TEXTS)
    torch.testing.assert_close(ranking.score_i2t, expected.score_i2t, atol=1e-5, rtol=0)
    assert {name: counts.tolist() for name, counts in ranking.tokens.items()} == {
        name: counts.tolist() for name, counts in expected.tokens.items()
    }


def test_rows_that_fill_up_are_copies_and_are_dropped() -> None:
    class Runner:
        def run(self, inputs: Any, temperature: float) -> Outputs:
            assert inputs["x"].tolist() == [[1], [2], [2], [2]]
            return {"y": inputs["x"] * 2}

    assert FilledRunner(Runner(), 4).run({"x": torch.tensor([[1], [2]])}, 0.0)["y"].tolist() == [[2], [4]]


@pytest.mark.parametrize("batch", [0, -1, 9])
def test_a_batch_that_the_artifact_does_not_take_is_refused(batch: int, task_artifacts: TaskArtifacts) -> None:
    refused = pytest.raises(InputError, match=f"(?s)batch is {batch}.* 8")
    with Session(task_artifacts["caption"] / "out.json", threads=1) as session, refused:
        session.caption(IMAGES, batch=batch)
    with Session(task_artifacts["retrieval"] / "out.json", threads=1) as session:
        for name in ("batch", "image_batch", "text_batch", "match_batch"):
            with pytest.raises(InputError, match=f"{name} is {batch}"):
                session.rank(IMAGES, TEXTS, **{name: batch})


def test_a_ranking_of_clip_matches_no_pairs(task_artifacts: TaskArtifacts) -> None:
    with (
        Session(task_artifacts["clip"] / "out.json", threads=1) as session,
        pytest.raises(InputError, match="match_batch does not apply to clip"),
    ):
        session.rank(IMAGES, TEXTS, match_batch=2)


@pytest.mark.parametrize(("task", "texts"), [("vqa", TEXTS), ("retrieval", TEXTS), ("caption", [])])
def test_the_command_says_what_ran_together(
    task: str, texts: list[str], task_artifacts: TaskArtifacts, run_cli: Callable[..., Ran], tmp_path: Path
) -> None:
    names = [tmp_path / f"{number}.png" for number in range(1 if task == "vqa" else 4)]
    for name, image in zip(names, IMAGES, strict=False):
        image.save(name)
    given = [part for name in names for part in ("--image", name)] + [
        part for text in texts for part in ("--text", text)
    ]
    command = ("run", task_artifacts[task] / "out.json", *given)
    assert "batched" not in run_cli(*command).out
    together = run_cli(*command, "--batch", 4)
    assert together.status == 0, together
    assert "an answer can depend on the others in its batch" in together.out
    printed = json.loads(run_cli(*command, "--batch", 4, "--json").out)
    if task == "retrieval":
        assert printed["ranking"]["batch"] == {"images": 4, "texts": 4, "pairs": 4}
    else:
        assert printed["products"][0]["batch"] == 4
    run_cli(*command, "--batch", 9).refused("batch is 9")
