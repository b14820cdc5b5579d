"""The demonstration: its data, its committed model, and its command."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import madtp
from madtp.data.preprocess import image_tensor
from madtp.data.tokenize import TextProcessor
from madtp.demo import __main__ as command
from madtp.demo import checkpoint_path, vocab_path
from madtp.demo.data import (
    CANVAS,
    CELL,
    WORDS,
    Scenes,
    held_out_samples,
    image_batch,
    load_split,
    statements,
    vocabulary,
)
from madtp.demo.evaluate import Evaluation, evaluate, model_inputs
from madtp.demo.output import staged
from madtp.demo.train import Recipe, temperature_at
from tests.helpers.paths import ROOT

MEGABYTES = 5
EVALUATED = 1000  # samples, as the command; of 400 the loss by pruning has a standard error of a point


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return Scenes(load_split(held_out=True), seed=3)


@pytest.fixture
def threads() -> Iterator[None]:
    """The command sets the number of threads; other tests keep theirs."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def is_true(sentence: str, left: int, right: int) -> bool:
    """The truth of a statement, read from its words."""
    words = sentence.split()
    if words[-1] in WORDS:
        digit = WORDS.index(words[-1])
        shown = {"the left": [left], "the right": [right], "at least": [left, right]}[" ".join(words[:2])]
        return digit in shown
    return (left == right) == ("same" in words)


def test_no_scan_is_both_trained_and_evaluated_on() -> None:
    train, held_out = load_split(False), load_split(True)
    assert not set(train.indices) & set(held_out.indices)
    assert len(train.indices) + len(held_out.indices) == 1797
    assert 0.15 < len(held_out.indices) / 1797 < 0.25
    assert np.bincount(held_out.labels, minlength=10).min() >= 20
    unique = {scan.tobytes() for scan in train.scans}
    assert not [scan for scan in held_out.scans if scan.tobytes() in unique]


def test_statements_are_true_where_their_words_say_so(scenes: Scenes) -> None:
    batch = scenes.batch(np.random.default_rng(0), 200, 3)
    for pair in range(200):
        for number, label in zip(batch.statements[pair], batch.labels[pair], strict=True):
            assert is_true(statements()[number].sentence, *batch.digits[:, pair]) == label


def test_the_sentence_alone_does_not_tell_the_answer(scenes: Scenes) -> None:
    batch = scenes.batch(np.random.default_rng(0), 1500, 4)
    templates = np.array([statement.template for statement in statements()])[batch.statements]
    assert batch.labels.mean() == 0.5
    for template in range(templates.max() + 1):
        labels = batch.labels[templates == template]
        assert len(labels) > 400
        assert labels.mean() == pytest.approx(0.5, abs=0.08)


def test_scenes_follow_from_the_generator(scenes: Scenes) -> None:
    first, again, other = (scenes.batch(np.random.default_rng(seed), 4) for seed in (1, 1, 2))
    assert np.array_equal(first.images, again.images)
    assert np.array_equal(first.statements, again.statements)
    assert not np.array_equal(first.images, other.images)


def test_most_of_a_canvas_is_background() -> None:
    assert CELL**2 / CANVAS**2 <= 0.25


def test_training_sees_what_deployment_sees(scenes: Scenes) -> None:
    images = scenes.batch(np.random.default_rng(0), 4).images[0]
    wanted = torch.stack([image_tensor(Image.fromarray(image), CANVAS) for image in images])
    assert torch.equal(image_batch(images), wanted)


def test_vocabulary() -> None:
    assert vocab_path().read_text(encoding="utf-8").splitlines() == vocabulary()
    assert vocabulary()[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    text = TextProcessor(vocab_path(), madtp.load(checkpoint_path()).config)
    unknown = vocabulary().index("[UNK]")
    assert all(unknown not in text.ids(statement.sentence) for statement in statements())


def test_held_out_samples() -> None:
    samples, again = held_out_samples(8), held_out_samples(8)
    assert [sample.text for sample in samples] == [sample.text for sample in again]
    assert all(a.images[0].tobytes() == b.images[0].tobytes() for a, b in zip(samples, again, strict=True))
    assert sum(bool(sample.label) for sample in samples) == 4
    assert samples[0].images[1].size == (CANVAS, CANVAS)
    assert samples[0].images[1].tobytes() != held_out_samples(8, seed=1)[0].images[1].tobytes()


def test_temperature_rises_from_dense() -> None:
    recipe = Recipe()
    values = [temperature_at(step, recipe) for step in range(recipe.judging.steps)]
    assert values == sorted(values)
    assert values[0] == 0
    assert values[-1] == recipe.temperature > recipe.deployed_temperature


def test_committed_model_keeps_its_promises() -> None:
    assert checkpoint_path().stat().st_size <= MEGABYTES * 1e6
    model = madtp.load(checkpoint_path())
    assert model.temperature == Recipe().deployed_temperature
    samples = held_out_samples(EVALUATED)
    dense, pruned = (evaluate(model, vocab_path(), samples, tau) for tau in (0.0, model.temperature))
    assert command.missed_promises(dense, pruned) == []
    assert dense.vision_tokens == (model.config.vision_tokens,) * model.config.vit_depth
    assert list(pruned.vision_tokens) == sorted(pruned.vision_tokens, reverse=True)


def test_missed_promises() -> None:
    def result(accuracy: float, gflops: float) -> Evaluation:
        return Evaluation(accuracy, gflops, (), ())

    assert command.missed_promises(result(0.95, 1.0), result(0.94, 0.5)) == []
    (less_accurate,) = command.missed_promises(result(0.90, 1.0), result(0.89, 0.5))
    (less_pruned,) = command.missed_promises(result(0.95, 1.0), result(0.95, 0.7))
    (more_lost,) = command.missed_promises(result(0.99, 1.0), result(0.95, 0.5))
    assert "minimum 90%" in less_accurate
    assert "30.0% of the GFLOPs" in less_pruned
    assert "4.0% of accuracy" in more_lost


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["madtp.demo", *map(str, arguments)])
    return command.main()


def test_command_writes_what_it_says_and_again_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], threads: None
) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        assert run_command(monkeypatch, "--out", folder, "--steps", 3) == 0
    shown = capsys.readouterr()
    assert "accuracy" in shown.out
    assert "GFLOPs" in shown.out
    assert "100 %" in shown.err
    assert "\x1b" not in shown.err + shown.out
    first, second = (madtp.load(folder / "nlvr-digits.pt") for folder in folders)
    assert first.temperature == Recipe().deployed_temperature
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert sorted(path.name for path in folders[0].iterdir()) == ["nlvr-digits.pt", "samples", "vocab.txt"]
    check_samples(folders[0] / "samples", first)


def check_samples(folder: Path, model: madtp.NlvrModel) -> None:
    entries = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    samples = held_out_samples(len(entries))
    assert len(entries) == command.SAMPLES
    text = TextProcessor(folder / "vocab.txt", model.config)
    for entry, sample in zip(entries, samples, strict=True):
        assert entry["sentence"] == sample.text
        assert entry["label"] == str(sample.label)
        for name, image in zip(entry["images"], sample.images, strict=True):
            with Image.open(folder / name) as written:
                assert written.tobytes() == image.tobytes()
        assert model_inputs(sample, text, model.config)["input_ids"][0, 0] == model.config.enc_token_id


def test_command_rejects_a_folder_that_it_cannot_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], threads: None
) -> None:
    (tmp_path / "file").write_text("")
    assert run_command(monkeypatch, "--out", tmp_path / "file" / "demo", "--steps", 1) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: cannot write into")
    assert "--out" in message
    assert run_command(monkeypatch, "--steps", "0") == 2


def test_failure_leaves_earlier_outputs_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("earlier")

    def fail() -> None:
        with staged(tmp_path) as stage:
            (stage / "vocab.txt").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["vocab.txt"]
    assert (tmp_path / "vocab.txt").read_text() == "earlier"


def test_an_interrupt_of_generated_code_ends_with_our_status_too(tmp_path: Path) -> None:
    (tmp_path / "interrupted.py").write_text(
        "import sys, click\n"
        "from madtp.console.command import run\n"
        "@click.command()\n"
        "def command(): exec('raise KeyboardInterrupt')\n"
        "if __name__ == '__main__': sys.exit(run(command, 'interrupted'))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "interrupted"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr.split()) == (2, ["interrupted"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_command_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "madtp.demo", "--out", str(tmp_path / "demo")],
        cwd=ROOT,
        env=os.environ | {"OMP_WAIT_POLICY": "passive"},  # spinning threads starve tests that run beside this one
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("demo/.demo-*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)  # into the training
    process.send_signal(number)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "interrupted: nothing was written" in message
    assert "Traceback" not in message
    assert list(tmp_path.iterdir()) == []
