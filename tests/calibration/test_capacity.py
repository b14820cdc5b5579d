"""`calibration capacity`: counts right, resumed, written, and files refused where they belong to something else."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import madtp
from calibration import overflow
from calibration.capacities import choose_capacities, dense_rows
from calibration.capacity_command import LONGEST_TEXT, longest_text
from calibration.capacity_file import CapacityFile, check_capacity, read_capacity, write_capacity
from calibration.counts import collect_counts
from calibration.tables import capacity_table
from calibration.tokens import Source, partial_path
from export.engine.profile import text_range
from madtp.data.samples import collate, load_samples
from madtp.data.synthetic import synthetic_samples
from madtp.errors import CapacityError
from madtp.files.inputs import sha256
from madtp.models.config import BlipConfig
from madtp.models.parts import parts_of
from tests.helpers.checkpoints import TAU, write_task_checkpoint

Write = Callable[..., Path]
Requests = list[Callable[[], Mapping[str, Tensor]]]


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overflow, "MOST_DRAWS", 2_000)


def requests_of(model: Any) -> Requests:
    samples = synthetic_samples(model.config).requests
    return [lambda request=request: collate([request], model.config) for request in samples]


@pytest.fixture
def written(tiny_checkpoint: Write, samples_folder: Path, tmp_path: Path, run: Any) -> Path:
    """A file of the tiny checkpoint, for batches of 1 and 4."""
    output = tmp_path / "capacity.json"
    ran = run(
        "capacity",
        "--ckpt",
        tiny_checkpoint(),
        "--data",
        samples_folder,
        "--batch",
        "4,1",
        "--text",
        "40",
        "-o",
        output,
    )
    assert ran.status == 0, ran
    assert "100 %" in ran.err
    assert "show that at most" in ran.out
    return output


def test_the_file_holds_buckets_of_every_batch_and_how_often_they_overflow(
    written: Path, tmp_path: Path, samples_folder: Path
) -> None:
    found = read_capacity(written)
    assert found.source == replace(
        found.source,
        checkpoint_sha256=sha256(tmp_path / "tiny.pt"),
        temperature=TAU,
        data_sha256=sha256(samples_folder / "samples.json"),
    )
    chosen = found.capacities
    assert (chosen.overflow, chosen.chosen_with, chosen.held_out) == (1e-3, 6, 2)
    assert chosen.parts == {"model": ("vision", "text")}
    assert chosen.dense == {"vision": 2 * 5, "text": 40}
    assert list(chosen.buckets) == [1, 4]
    for batch, buckets in chosen.buckets.items():
        assert buckets[-1].rows == {"vision": (10 * batch,), "text": (40 * batch,) * 2}
        assert buckets[0].overflow["model"].observed.high > 1e-3
    assert not partial_path(written).exists()
    assert json.loads(written.read_text())["doubts"] == list(chosen.doubts) != []


def test_the_same_command_writes_the_same_file(written: Path, tmp_path: Path, samples_folder: Path, run: Any) -> None:
    again, arguments = tmp_path / "again.json", ("--batch", "1,4", "--text", "40")
    run("capacity", "--ckpt", tmp_path / "tiny.pt", "--data", samples_folder, *arguments, "-o", again)
    assert again.read_bytes() == written.read_bytes()


@pytest.mark.parametrize("task", ["vqa", "caption", "retrieval", "clip"])
def test_every_encoder_of_every_task_is_counted(task: str, tmp_path: Path) -> None:
    model = madtp.load(write_task_checkpoint(task, tmp_path / "tiny.pt"))
    source = Source("a" * 64, task, TAU, "random", None)
    parts = parts_of(model)
    counts = collect_counts(model.config, parts, requests_of(model), source, tmp_path / "capacity.json")
    layers = {encoder: depth for part in parts.values() for encoder, depth in part.encoders.items()}
    assert {encoder: len(rows[0]) for encoder, rows in counts.rows.items()} == layers
    assert counts.sequences == dict.fromkeys(layers, 1)
    pruned = {name: list(part.encoders) for name, part in parts.items() if part.encoders}
    dense = dense_rows(model.config, counts.sequences, longest_text(model.config, None))
    found = choose_capacities(counts, pruned, dense, [4], 0.1, 2)
    for bucket in found.buckets[4]:
        assert bucket.rows.keys() == layers.keys()
        assert bucket.overflow.keys() == pruned.keys()
    assert capacity_table(found, source).row_count >= len(layers)


def test_rows_are_those_of_both_images_of_a_request_alone(
    tiny_checkpoint: Write, samples_folder: Path, tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint()
    model = madtp.load(checkpoint)
    requests = load_samples(samples_folder, checkpoint, model.config).requests
    inputs = [collate([request], model.config) for request in requests]
    source = Source("a" * 64, "nlvr", TAU, "some", None)
    reads = [lambda given=given: given for given in inputs]
    counts = collect_counts(model.config, parts_of(model), reads, source, tmp_path / "capacity.json")
    with torch.no_grad():
        alone = [model(**given, temperature=TAU) for given in inputs]
    assert counts.rows["vision"] == [(2 * result.vision_token_counts[0]).tolist() for result in alone]
    assert counts.rows["text"] == [result.text_token_counts[0].tolist() for result in alone]
    assert counts.longest_text == max(given["input_ids"].shape[1] for given in inputs)


def test_an_interrupted_run_goes_on_and_counts_nothing_twice(tiny_checkpoint: Write, tmp_path: Path) -> None:
    model, output = madtp.load(tiny_checkpoint()), tmp_path / "capacity.json"
    source, parts, requests = Source("a" * 64, "nlvr", TAU, "random", None), parts_of(model), requests_of(model)

    def stop() -> Mapping[str, Tensor]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_counts(model.config, parts, [*requests[:5], stop, *requests[6:]], source, output)
    done: list[int] = []
    resumed = collect_counts(model.config, parts, requests, source, output, done.append)
    assert done == [5, 6, 7, 8]
    assert resumed == collect_counts(model.config, parts, requests, source, tmp_path / "whole.json")
    other = replace(source, temperature=1.0)
    with pytest.raises(CapacityError, match="are of something else"):
        collect_counts(model.config, parts, requests, other, output)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("{", "cannot read"),
        ('{"schema": 7}', "schema 7"),
        ('{"schema": 1}', "malformed"),
        (
            '{"schema": 1, "checkpoint_sha256": "", "task": "", "temperature": 1, "data": "", "data_sha256": null, '
            '"sequences": {"vision": 1}, "rows": {"vision": [[1]], "text": []}, "longest_text": 1}',
            "contradict",
        ),
    ],
)
def test_a_damaged_partial_file_is_refused(
    content: str, part: str, tiny_checkpoint: Write, samples_folder: Path, tmp_path: Path, run: Any
) -> None:
    output = tmp_path / "capacity.json"
    partial_path(output).write_text(content)
    ran = run("capacity", "--ckpt", tiny_checkpoint(), "--data", samples_folder, "-o", output)
    ran.refused(part if content.startswith('{"schema": 1, ') else "is not a partial file of token counts")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--data", "nowhere"), "there is no folder 'nowhere'"),
        (("--temperature", "0"), "At zero the model is dense"),
        (("--batch", "1,zero"), "--batch is '1,zero'"),
        (("--batch", "0"), "--batch is '0'"),
        (("--overflow", "nan"), "--overflow is nan"),
        (("--overflow", "1"), "--overflow is 1"),
        (("--held-out", "0.01"), "of which 0 held out"),
        (("--limit", "3"), "3 samples"),
        (("--text", "99"), "The model has 40 positions"),
        (("--text", "4"), "Give --text"),
    ],
)
def test_bad_input(
    arguments: tuple[str, ...], part: str, tiny_checkpoint: Write, samples_folder: Path, tmp_path: Path, run: Any
) -> None:
    given = {"--ckpt": tiny_checkpoint(), "--data": samples_folder, "-o": tmp_path / "capacity.json"}
    given |= dict([arguments])
    run("capacity", *(entry for pair in given.items() for entry in pair)).refused(part)
    assert not (tmp_path / "capacity.json").exists()


def test_an_empty_folder_and_a_foreign_output_are_refused(
    tiny_checkpoint: Write, samples_folder: Path, tmp_path: Path, run: Any
) -> None:
    empty, foreign = tmp_path / "empty", tmp_path / "notes.json"
    empty.mkdir()
    foreign.write_text('{"mine": 1}')
    run("capacity", "--ckpt", tiny_checkpoint(), "--data", empty).refused("nlvr_test.json")
    run("capacity", "--ckpt", tiny_checkpoint(), "--data", samples_folder, "-o", foreign).refused(
        "is not a file of capacities"
    )
    assert foreign.read_text() == '{"mine": 1}'


def test_the_longest_text_is_that_of_an_export(tiny_checkpoint: Write, tmp_path: Path) -> None:
    configs = [madtp.load(write_task_checkpoint(task, tmp_path / f"{task}.pt")).config for task in ("vqa", "retrieval")]
    for config in (madtp.load(tiny_checkpoint()).config, *configs):
        assert isinstance(config, BlipConfig)
        long = replace(config, max_position=512)
        assert text_range(long, None).max == LONGEST_TEXT[config.task]


DENSE, DEPTHS = {"vision": 10, "text": 40}, {"vision": 1, "text": 2}


def check(found: CapacityFile, path: Path, **changes: Any) -> Any:
    given = {"wanted": found.source, "dense": DENSE, "depths": DEPTHS, "batch": 4} | changes
    return check_capacity(found, **given, path=path)


def test_a_file_is_read_as_it_was_written(written: Path, tmp_path: Path) -> None:
    found = read_capacity(written)
    write_capacity(found, tmp_path / "again.json")
    assert read_capacity(tmp_path / "again.json") == found
    assert check(found, written) == found.capacities.buckets[4]
    assert check(found, written, wanted=replace(found.source, data="others")) == found.capacities.buckets[4]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "checkpoint": ({"wanted": Source("b" * 64, "nlvr", TAU, "", None)}, "are of another checkpoint"),
    "batch": ({"batch": 2}, "have none for batches of 2"),
    "layers": ({"depths": {"vision": 1, "text": 3}}, "do not cover the model"),
    "a smaller engine": ({"dense": {"vision": 10, "text": 20}}, "rows for layer 0 of text"),
    "a larger engine": ({"dense": {"vision": 10, "text": 64}}, "have no lossless bucket"),
}


@pytest.mark.parametrize(("changes", "part"), REFUSED.values(), ids=REFUSED)
def test_a_file_of_something_else_is_refused(changes: dict[str, Any], part: str, written: Path) -> None:
    with pytest.raises(CapacityError, match=part):
        check(read_capacity(written), written, **changes)


def test_a_file_of_another_temperature_or_task_is_refused(written: Path) -> None:
    found = read_capacity(written)
    for change, part in (({"temperature": 9.0}, "at temperature 2"), ({"task": "vqa"}, "of another checkpoint")):
        with pytest.raises(CapacityError, match=part):
            check(found, written, wanted=replace(found.source, **change))


@pytest.mark.parametrize("rows", [0, 41, 10**9])
def test_capacities_that_no_engine_can_have_are_refused(rows: int, written: Path) -> None:
    content = json.loads(written.read_text())
    content["batches"]["4"]["buckets"][0]["rows"]["vision"] = [rows]
    written.write_text(json.dumps(content))
    with pytest.raises(CapacityError, match="2 to 40 rows"):
        check(read_capacity(written), written)


def broken(content: dict[str, Any], name: str) -> str:
    if name == "truncated":
        return json.dumps(content)[:200]
    if name == "no parts":
        del content["parts"]
    elif name == "no buckets":
        content["batches"]["4"]["buckets"] = []
    elif name == "rows in words":
        content["batches"]["4"]["buckets"][0]["rows"]["vision"] = ["many"]
    elif name == "a share too many":
        content["batches"]["4"]["buckets"][0]["overflow"]["model"]["predicted"]["x"] = 1
    else:
        content["schema"] = 2
    return json.dumps(content)


@pytest.mark.parametrize(
    "name", ["truncated", "no parts", "no buckets", "rows in words", "a share too many", "another schema"]
)
def test_malformed_files_are_refused(name: str, written: Path) -> None:
    written.write_text(broken(json.loads(written.read_text()), name))
    with pytest.raises(CapacityError, match=r"cannot read|malformed|schema 2"):
        read_capacity(written)
