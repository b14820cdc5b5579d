"""Token statistics: counted right, resumed without counting twice, refused where they belong to something else."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import madtp
from calibration.tokens import Source, TokenStatistics, collect_resumable, partial_path, read_tokens, write_tokens
from madtp.data.samples import collate, load_samples
from madtp.errors import TokensError
from madtp.files.inputs import sha256
from madtp.models.parts import parts_of
from tests.helpers.checkpoints import TAU

Write = Callable[..., Path]
SOURCE = Source("a" * 64, "nlvr", 0.5, "some samples", None)


def statistics_of(*requests: tuple[list[int], list[int]]) -> TokenStatistics:
    """Of requests given as tokens after each vision and text layer."""
    statistics = TokenStatistics(SOURCE)
    for vision, text in requests:
        statistics.add({"vision": torch.tensor([vision, vision]), "text": torch.tensor([text])})
    return statistics


def test_statistics_are_those_of_the_samples(
    tiny_checkpoint: Write, samples_folder: Path, tmp_path: Path, run: Any
) -> None:
    checkpoint, output = tiny_checkpoint(), tmp_path / "tokens.json"
    ran = run("tokens", "--ckpt", checkpoint, "--data", samples_folder, "-o", output)
    assert ran.status == 0, ran
    assert "100 %" in ran.err
    content = json.loads(output.read_text())
    assert content["checkpoint_sha256"] == sha256(checkpoint)
    assert content["temperature"] == TAU
    assert content["samples"] == 8

    model = madtp.load(checkpoint)
    vision, text = [], []
    for request in load_samples(samples_folder, checkpoint, model.config).requests:
        result = model(**collate([request], model.config), temperature=TAU)
        vision.append(result.vision_token_counts.amax(dim=0).tolist())
        text.append(result.text_token_counts[0].tolist())
    for name, rows in (("vision", vision), ("text", text)):
        for layer, counts in enumerate(zip(*rows, strict=True)):
            entry = content["encoders"][name][layer]
            assert entry["layer"] == layer
            assert entry["mean"] == pytest.approx(np.mean(counts), abs=1e-3)
            assert {int(count): times for count, times in entry["histogram"].items()} == {
                count: counts.count(count) for count in set(counts)
            }
            assert entry["quantiles"]["0.5"] == np.quantile(counts, 0.5, method="inverted_cdf")
    assert not partial_path(output).exists()


def test_usual_tokens_of_a_batch_are_the_median_of_its_largest() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(10, 200, 400)
    statistics = statistics_of(*(([int(count)], [5]) for count in counts))
    assert statistics.usual_tokens("vision", 1) == [np.quantile(counts, 0.5, method="inverted_cdf")]
    drawn = rng.choice(counts, (20_000, 8)).max(axis=1)
    assert statistics.usual_tokens("vision", 8)[0] == pytest.approx(np.median(drawn), abs=2)
    assert statistics.usual_tokens("text", 8) == [5]


def test_file_round_trip(tmp_path: Path) -> None:
    statistics = statistics_of(([9, 7], [5]), ([9, 6], [4]))
    write_tokens(statistics, tmp_path / "tokens.json")
    assert read_tokens(tmp_path / "tokens.json") == statistics


def test_an_interrupted_run_goes_on_and_counts_nothing_twice(
    tiny_checkpoint: Write, samples_folder: Path, tmp_path: Path
) -> None:
    checkpoint, output = tiny_checkpoint(), tmp_path / "tokens.json"
    model = madtp.load(checkpoint)
    samples = load_samples(samples_folder, checkpoint, model.config)
    source = Source(sha256(checkpoint), "nlvr", TAU, samples.origin, None)
    read: list[int] = []

    def request(number: int, stop_at: int | None = None) -> Callable[[], dict[str, torch.Tensor]]:
        def make() -> dict[str, torch.Tensor]:
            if number == stop_at:
                raise KeyboardInterrupt
            read.append(number)
            return collate([samples.requests[number]], model.config)

        return make

    with pytest.raises(KeyboardInterrupt):
        collect_resumable(
            model.config, parts_of(model), [request(n, 5) for n in range(8)], source, output, lambda _: None
        )
    assert not output.exists()
    assert read_tokens(partial_path(output)).samples == 5
    resumed = collect_resumable(
        model.config, parts_of(model), [request(n) for n in range(8)], source, output, lambda _: None
    )
    assert read == list(range(8))
    whole = collect_resumable(
        model.config, parts_of(model), [request(n) for n in range(8)], source, tmp_path / "whole.json", lambda _: None
    )
    assert resumed == whole == read_tokens(output)
    assert not partial_path(output).exists()


def test_ctrl_c_keeps_what_was_counted(tiny_checkpoint: Write, samples_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    shutil.copytree(samples_folder, folder)
    index = folder / "samples.json"
    index.write_text(json.dumps(json.loads(index.read_text()) * 2000))
    output = tmp_path / "tokens.json"
    arguments = ["tokens", "--ckpt", tiny_checkpoint(), "--data", folder, "-o", output]
    process = subprocess.Popen(
        [sys.executable, "-m", "calibration", *map(str, arguments)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not partial_path(output).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert "run the same command to go on" in errors
    assert "Traceback" not in errors
    assert 0 < read_tokens(partial_path(output)).samples < 16000
    assert not output.exists()


def broken(**changes: Any) -> dict[str, Any]:
    return {**statistics_of(([9], [5])).to_json(), **changes}


BROKEN: dict[str, tuple[str, str]] = {
    "no json": ("{", "cannot read"),
    "a list": ("[]", "schema None"),
    "another schema": (json.dumps(broken(schema=7)), "schema 7"),
    "no encoders": (json.dumps({k: v for k, v in broken().items() if k != "encoders"}), "malformed"),
    "count in words": (json.dumps(broken(encoders={"vision": [{"histogram": {"many": 1}}]})), "malformed"),
    "sum": (json.dumps(broken(samples=3)), "contradict themselves"),
    "negative": (json.dumps(broken(encoders={"vision": [{"histogram": {"-1": 1}}]})), "contradict themselves"),
}


@pytest.mark.parametrize(("content", "part"), BROKEN.values(), ids=BROKEN)
def test_malformed_files_are_refused(content: str, part: str, tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(content)
    with pytest.raises(TokensError, match=part):
        read_tokens(path)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"checkpoint_sha256": "b" * 64}, "are of another checkpoint"),
        ({"temperature": 9.0}, "were taken at temperature 9"),
        ({"encoders": {"vision": [{"histogram": {"9": 1}}]}}, "do not cover the model"),
    ],
)
@pytest.mark.parametrize("verb", [(), ("check",)], ids=["export", "check"])
def test_export_refuses_statistics_of_something_else(
    verb: tuple[str, ...],
    change: dict[str, Any],
    part: str,
    tiny_checkpoint: Write,
    outputs: Any,
    run_cli: Any,
    tmp_path: Path,
) -> None:
    checkpoint = tiny_checkpoint()
    path = tmp_path / "tokens.json"
    path.write_text(json.dumps(broken(checkpoint_sha256=sha256(checkpoint), temperature=TAU) | change))
    run_cli(*verb, "--ckpt", checkpoint, "--engine", outputs / "trt.plan", "--tokens", path).refused(part)
    outputs.untouched()


def test_a_run_refuses_to_go_on_from_another_checkpoints_part(
    tiny_checkpoint: Write, samples_folder: Path, tmp_path: Path, run: Any
) -> None:
    output = tmp_path / "tokens.json"
    write_tokens(statistics_of(([9], [5])), partial_path(output))
    ran = run("tokens", "--ckpt", tiny_checkpoint(), "--data", samples_folder, "-o", output)
    ran.refused("are of another checkpoint")
    assert partial_path(output).exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--data", "nowhere"), "there is no folder 'nowhere'"),
        (("--temperature", "0"), "At zero the model is dense"),
        (("-o", "no/such/folder/tokens.json"), "cannot write into"),
        (("--ckpt", "nowhere.pt"), "nowhere.pt"),
    ],
)
def test_bad_input(
    arguments: tuple[str, ...], part: str, tiny_checkpoint: Write, samples_folder: Path, tmp_path: Path, run: Any
) -> None:
    given = {"--ckpt": tiny_checkpoint(), "--data": samples_folder, "-o": tmp_path / "tokens.json"}
    given |= dict([arguments])
    run("tokens", *(entry for pair in given.items() for entry in pair)).refused(part)


def test_export_tunes_for_the_statistics_of_the_file(
    tiny_checkpoint: Write, samples_folder: Path, tmp_path: Path, run: Any, run_cli: Any, quick: Any
) -> None:
    checkpoint, output = tiny_checkpoint(), tmp_path / "tokens.json"
    assert run("tokens", "--ckpt", checkpoint, "--data", samples_folder, "-o", output).status == 0
    plan = tmp_path / "out.plan"
    shared = ("--ckpt", checkpoint, "--engine", plan, "--samples", samples_folder)
    ran = run_cli(*shared, "--tokens", output, "--batch", "1:4:8")
    assert ran.status == 0, ran
    assert "token sizes tuned for: statistics of 8 samples" in ran.out
    tokens = json.loads(plan.with_suffix(".json").read_text())["parts"][0]["tokens"]
    assert tokens["source"] == "file"
    statistics = read_tokens(output)
    for name in ("vision", "text"):
        assert [opt for opt, _ in tokens["opt_max"][name]] == statistics.usual_tokens(name, 4)
