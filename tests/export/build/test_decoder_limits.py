"""How much a decoder writes or reads is an option of the export, and told where a request is more."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from export import Session
from export.engine.profile import Written, input_profile, part_sizes, written_sizes
from export.engine.range import Range
from export.errors import OptionError
from madtp.checkpoint.loading import MODELS
from madtp.data.samples import Config
from madtp.errors import InputError
from madtp.models.config import CaptionConfig, VqaConfig
from madtp.models.parts import parts_of
from tests.helpers import sizes
from tests.helpers.artifacts import TaskArtifacts
from tests.helpers.checkpoints import write_task_checkpoint
from tests.helpers.command_line import Ran, run_export
from tests.helpers.samples import IMAGES, write_vocabulary

FIVE = ["one", "two", "left", "right", "same"]


@pytest.mark.parametrize(
    ("config", "given", "written", "prompt"),
    [
        (sizes.VQA, (None, None), Written(128, 17), 16),
        (sizes.VQA, (300, 30), Written(300, 30), 16),
        (sizes.VQA, (None, 512), Written(128, 512), 170),
        (sizes.CAPTION, (None, None), Written(8, 41), 16),
        (sizes.CAPTION, (16, 100), Written(16, 100), 33),
        (sizes.CAPTION, (3, 20), Written(3, 20), 16),
    ],
)
def test_the_profile_has_what_was_asked_for(
    config: VqaConfig | CaptionConfig, given: tuple[int | None, int | None], written: Written, prompt: int
) -> None:
    assert config.max_position == 512
    found = written_sizes(config, *given)
    assert found == written
    with torch.device("meta"):
        part = parts_of(MODELS[config.task](config))["decoder"]
    profile = input_profile(part, part_sizes(config.task, part, Range(1, 1, 8), Range(2, 12, 64), None, found))
    assert profile["input_ids"][2] == [8, written.texts, prompt]
    assert profile["past"][2][5] == written.ids - 2  # neither the last id nor the newest one is in the cache
    for least, usual, most in profile.values():
        assert all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True))


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        (sizes.BASE, (4, None), "--beams 4 does not apply to nlvr"),
        (sizes.RETRIEVAL, (None, 30), "--max-length 30 does not apply to retrieval"),
        (sizes.CLIP, (None, 30), "--max-length 30 does not apply to clip"),
        (sizes.VQA, (2, None), "--beams is 2\nIt has to be 3"),
        (sizes.VQA, (2**31, None), "--beams is"),
        (sizes.VQA, (None, 9), "--max-length is 9\nIt has to be 10.* to 512"),
        (sizes.CAPTION, (None, 19), "--max-length is 19\nIt has to be 20"),
        (sizes.CAPTION, (None, 513), "--max-length is 513"),
    ],
)
def test_what_cannot_be_built_is_refused(config: Config, given: tuple[int | None, int | None], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        written_sizes(config, *given)


def test_a_larger_decoder_reads_longer_answers(
    task_artifacts: TaskArtifacts, run_cli: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["one", "two"] * 14  # [DEC] and [SEP] besides
    candidates = [" ".join(words), "one"]
    with (
        Session(task_artifacts["vqa"] / "out.json") as session,
        pytest.raises(InputError, match=r"(?s)30 .* candidate 0.*1 to 17.*--max-length 30"),
    ):
        session.answer(IMAGES[:1], ["one"], candidates=candidates)
    folder = tmp_path / "larger"
    folder.mkdir()
    write_vocabulary(folder / "vocab.txt")
    checkpoint = write_task_checkpoint("vqa", folder / "tiny.pt")
    monkeypatch.setattr("export.build.check.LATENCY_SECONDS", 0.0)
    monkeypatch.setattr("madtp.data.samples.MIN_SAMPLES", 2)
    arguments = ("--ckpt", checkpoint, "--engine", folder / "out.onnx", "--max-length", 30, "--beams", 4)
    assert run_export(monkeypatch, *arguments) == 0
    with Session(folder / "out.json") as session:
        (answer,) = session.answer(IMAGES[:1], ["one"], candidates=candidates)
        assert {text for text, _ in answer.top} == set(candidates)
        assert len(session.answer(IMAGES[:1], ["one"], max_length=30, min_length=30)[0].ids) == 30
        with pytest.raises(InputError, match=r"(?s)5 .*1 to 4.*--beams 5"):
            session.answer(IMAGES[:1], ["one"], candidates=FIVE, k=5)
        assert len(session.answer(IMAGES[:1], ["one"], candidates=FIVE)[0].top) == 4
    IMAGES[0].save(tmp_path / "x.png")
    given = ("run", folder / "out.json", "--image", tmp_path / "x.png", "--text", "one", "--max-length")
    assert run_cli(*given, 30).status == 0
    run_cli(*given, 31).refused("31 ids of a text were asked for", "1 to 30", "--max-length 31")


def test_the_command_refuses_what_does_not_apply(tiny_artifact: Path, run_cli: Callable[..., Ran]) -> None:
    engine = tiny_artifact / "other.onnx"
    given = ("--ckpt", tiny_artifact / "tiny.pt", "--engine", engine)
    run_cli(*given, "--max-length", 20).refused("--max-length 20 does not apply to nlvr")
    run_cli("check", *given, "--beams", 20).refused("--beams 20 does not apply to nlvr")
    assert not engine.exists()
