"""Range tables: measured right for every task, resumed, and refused where they belong to something else."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import madtp
from calibration.keep import KeepFile, check_keep, read_keep, write_keep
from calibration.methods import METHODS
from calibration.ranges import (
    RangeTable,
    check_ranges,
    collect_ranges,
    collect_ranges_resumable,
    read_ranges,
    write_ranges,
)
from calibration.tokens import Source, partial_path
from madtp.data.samples import collate
from madtp.data.synthetic import synthetic_samples
from madtp.errors import KeepError, RangesError
from madtp.files.inputs import sha256
from madtp.models.weight_products import weight_products
from tests.helpers.checkpoints import TAU, TINY, write_task_checkpoint
from tests.helpers.datasets import nlvr_data

Write = Callable[..., Path]
TABLE = RangeTable(
    Source("a" * 64, "nlvr", 0.5, "some samples", None),
    9,
    False,
    {"x.weight": {"minmax": (-1.0, 2.0), "entropy": (-0.5, 1.5), "percentile": (-0.9, 1.9)}},
)
KEEP = KeepFile("a" * 64, "nlvr", "int8", 0.995, ("x.weight",))


def requests_of(model: Any) -> list[Mapping[str, Tensor]]:
    return [collate([request], model.config) for request in synthetic_samples(model.config).requests]


@pytest.mark.parametrize("task", ["vqa", "caption", "retrieval", "clip"])
def test_every_weight_product_of_every_task_has_ranges(task: str, tmp_path: Path) -> None:
    model = madtp.load(write_task_checkpoint(task, tmp_path / "tiny.pt"))
    table = collect_ranges(model, requests_of(model), Source("a" * 64, task, TAU, "random", None), synthetic=True)
    assert table.ranges.keys() == weight_products(model).keys()
    assert table.samples == 8


def test_ranges_are_those_of_the_tokens_that_survive(tiny_checkpoint: Write) -> None:
    model = madtp.load(tiny_checkpoint())
    requests = requests_of(model)
    seen: list[Tensor] = []
    hook = model.visual_encoder.blocks[0].mlp.fc1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    table = collect_ranges(model, requests, Source("a" * 64, "nlvr", TAU, "random", None))
    hook.remove()
    values = torch.cat([tokens.flatten() for tokens in seen])
    assert table.ranges["visual_encoder.blocks.0.mlp.fc1.weight"]["minmax"] == (values.min(), values.max())
    everything = len(requests) * 2 * (1 + (TINY["image_size"] // TINY["patch_size"]) ** 2) * TINY["vit_dim"]
    assert len(values) < everything


def test_the_command_writes_a_table_of_the_checkpoint_and_samples(
    tiny_checkpoint: Write, samples_folder: Path, tmp_path: Path, run: Any
) -> None:
    checkpoint, output = tiny_checkpoint(), tmp_path / "ranges.json"
    ran = run("ranges", "--ckpt", checkpoint, "--data", samples_folder, "-o", output)
    assert ran.status == 0, ran
    assert "100 %" in ran.err
    assert "vision.0.qkv" in ran.out
    table = read_ranges(output)
    assert table.source.checkpoint_sha256 == sha256(checkpoint)
    assert table.source.data_sha256 == sha256(samples_folder / "samples.json")
    assert (table.source.temperature, table.samples, table.synthetic) == (TAU, 8, False)
    check_ranges(table, sha256(checkpoint), "nlvr", output)


def test_random_data_have_to_be_asked_for_and_are_recorded(tiny_checkpoint: Write, tmp_path: Path, run: Any) -> None:
    output = tmp_path / "ranges.json"
    given = ("ranges", "--ckpt", tiny_checkpoint(), "-o", output)
    run(*given).refused("there are no data", "--synthetic")
    assert run(*given, "--synthetic").status == 0
    assert read_ranges(output).synthetic


def test_an_interrupted_run_goes_on_to_the_same_table(tiny_checkpoint: Write, tmp_path: Path) -> None:
    checkpoint, output = tiny_checkpoint(), tmp_path / "ranges.json"
    model = madtp.load(checkpoint)
    source = Source(sha256(checkpoint), "nlvr", TAU, "random", None)
    requests = [lambda inputs=inputs: inputs for inputs in requests_of(model)]

    def stop() -> Mapping[str, Tensor]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_ranges_resumable(model, [*requests[:5], stop, *requests[6:]], source, output)
    assert not output.exists()
    done: list[int] = []
    table = collect_ranges_resumable(model, requests, source, output, on_sample=done.append)
    assert done == [5, 6, 7, 8]
    assert table == collect_ranges(model, [read() for read in requests], source) == read_ranges(output)
    assert not partial_path(output).exists()


def test_a_run_refuses_to_go_on_from_other_data(tiny_checkpoint: Write, tmp_path: Path) -> None:
    model, output = madtp.load(tiny_checkpoint()), tmp_path / "ranges.json"
    requests = [lambda inputs=inputs: inputs for inputs in requests_of(model)]

    def stop() -> Mapping[str, Tensor]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_ranges_resumable(model, [*requests, stop], TABLE.source, output)
    other = Source("a" * 64, "nlvr", 0.5, "other samples", None)
    with pytest.raises(RangesError, match="of something else"):
        collect_ranges_resumable(model, requests, other, output)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_no_numbers_are_named(bad: float, tiny_checkpoint: Write) -> None:
    model = madtp.load(tiny_checkpoint())
    requests = requests_of(model)
    requests[3]["image1"][0, 0, 0, 0] = bad  # type: ignore[index]
    with pytest.raises(RangesError, match=r"patch_embed\.proj\.weight' is NaN or infinite on sample 3"):
        collect_ranges(model, requests, TABLE.source)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_few_samples_are_refused(count: int, tiny_checkpoint: Write) -> None:
    model = madtp.load(tiny_checkpoint())
    with pytest.raises(RangesError, match=rf"^{count} samples? cannot be calibrated with"):
        collect_ranges(model, requests_of(model)[:count], TABLE.source)


def test_data_of_another_task_are_refused(
    samples_folder: Path, tmp_path: Path, run: Any, tiny_checkpoint: Write
) -> None:
    given = ("ranges", "--ckpt", write_task_checkpoint("vqa", tmp_path / "vqa.pt"), "-o", tmp_path / "ranges.json")
    run(*given, "--data", samples_folder).refused("has no question that can be used")
    run(*given, "--data", nlvr_data(tmp_path / "nlvr")).refused("has no annotation file of the task vqa")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--data", "nowhere"), "there is no folder 'nowhere'"),
        (("--temperature", "0"), "At zero the model is dense"),
        (("--limit", "0"), "--limit is 0"),
        (("--limit", "1"), "1 sample cannot be calibrated with"),
        (("-o", "no/such/folder/ranges.json"), "cannot write into"),
    ],
)
def test_bad_input(
    arguments: tuple[str, ...], part: str, tiny_checkpoint: Write, samples_folder: Path, tmp_path: Path, run: Any
) -> None:
    given = {"--ckpt": tiny_checkpoint(), "--data": samples_folder, "-o": tmp_path / "ranges.json"}
    given |= dict([arguments])
    run("ranges", *(entry for pair in given.items() for entry in pair)).refused(part)


def test_tables_survive_being_written(tmp_path: Path) -> None:
    write_ranges(TABLE, tmp_path / "ranges.json")
    assert read_ranges(tmp_path / "ranges.json") == TABLE


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"schema": 7}, "schema 7"),
        ({"ranges": None}, "malformed"),
        ({"ranges": {"x": {"minmax": [1, 2]}}}, "malformed"),
        ({"ranges": {"x": {method: [2, 1] for method in METHODS}}}, "minmax of 'x' is 2 to 1"),
    ],
)
def test_malformed_tables_are_refused(changes: dict[str, Any], part: str, tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    path.write_text(json.dumps(TABLE.to_json() | changes))
    with pytest.raises(RangesError, match=part):
        read_ranges(path)


@pytest.mark.parametrize(("sha", "task"), [("b" * 64, "nlvr"), ("a" * 64, "vqa")])
def test_tables_and_keep_files_of_another_checkpoint_are_refused(sha: str, task: str) -> None:
    with pytest.raises(RangesError, match="is of another checkpoint"):
        check_ranges(TABLE, sha, task, Path("ranges.json"))
    with pytest.raises(KeepError, match="is of another checkpoint"):
        check_keep(KEEP, sha, task, "int8", {"x.weight"}, Path("keep.json"))


def test_keep_files_survive_being_written(tmp_path: Path) -> None:
    write_keep(KEEP, tmp_path / "keep.json")
    assert read_keep(tmp_path / "keep.json") == KEEP
    check_keep(KEEP, "a" * 64, "nlvr", "int8", {"x.weight"}, tmp_path / "keep.json")


def test_keep_files_of_another_precision_or_model_are_refused() -> None:
    with pytest.raises(KeepError, match="is for int8, not for fp8"):
        check_keep(KEEP, "a" * 64, "nlvr", "fp8", {"x.weight"}, Path("keep.json"))
    with pytest.raises(KeepError, match="no weight product"):
        check_keep(KEEP, "a" * 64, "nlvr", "int8", {"y.weight"}, Path("keep.json"))


@pytest.mark.parametrize(
    "changes", [{"schema": 2}, {"keep": "x"}, {"keep": [1]}, {"precision": "int4"}, {"agreement": "much"}]
)
def test_malformed_keep_files_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "keep.json"
    path.write_text(json.dumps(KEEP.to_json() | changes))
    with pytest.raises(KeepError):
        read_keep(path)
