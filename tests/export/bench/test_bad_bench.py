"""What bench refuses: options, baselines and artifacts that it cannot measure or compare."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.bench.artifact import synchronisations
from export.bench.measurement import read_measurement
from export.bench.run import BenchOptions
from export.errors import BackendError, BaselineError, ManifestError, OptionError
from export.runtime.artifact import Artifact
from madtp.errors import InputError
from tests.helpers.bench import FakeRunner, FakeTimer, as_plan, fake_bench
from tests.helpers.checkpoints import TAU
from tests.helpers.command_line import Ran
from tests.helpers.manifests import edit_manifest

Cli = Callable[..., Ran]


def test_a_baseline_whose_series_do_not_belong_together_is_refused(options: BenchOptions, saved: Path) -> None:
    content = json.loads(saved.read_text())
    for changes in (
        {"cases": [{**content["cases"][0], "device_milliseconds": [1.0]}]},
        {"cases": [{**content["cases"][0], "waited_milliseconds": content["cases"][0]["milliseconds"]}]},
        {"cases": [content["cases"][0], *content["cases"]]},
        {"ended": "interrupted"},
        {"partial": True},
    ):
        saved.write_text(json.dumps(content | changes))
        with pytest.raises(BaselineError, match="malformed"):
            read_measurement(saved)


def test_answers_that_are_not_finite_are_refused_before_timing(options: BenchOptions) -> None:
    timer = FakeTimer()
    runner = FakeRunner(timer, broken_at=TAU)
    with pytest.raises(InputError, match="'logits' of part model is not finite"):
        fake_bench(options, timer, runner)
    assert runner.calls == 2  # the first of each kind


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--batch", 99), ("--batch 99 is outside the profile", "1 to 8")),
        (("--temperature", -1), ("--temperature is -1.0",)),
        (("--temperature", "nan"), ("--temperature is nan",)),
        (("--max-regression", "fast"), ("--max-regression is 'fast'",)),
        (("--seconds", 0), ("--seconds is 0",)),
        (("--threads", 0), ("--threads is 0",)),
        (("--threads", 9999), ("--threads is 9999",)),
        (("--synthetic", "--samples", "x"), ("exclude each other",)),
        (("--against", "x", "--against-engine", "y"), ("exclude each other",)),
        (("--against", "missing.json"), ("cannot read the baseline",)),
        (("--samples", "missing"), ("there is no folder 'missing'",)),
        (("--save", "missing/base.json"), ("cannot write into 'missing'",)),
        (("--save", "x.json", "--json", "x.json"), ("is named twice",)),
    ],
)
def test_bad_options_are_refused(
    arguments: tuple[object, ...], words: tuple[str, ...], run_cli: Cli, tiny_artifact: Path
) -> None:
    run_cli("bench", tiny_artifact / "out.json", *arguments).refused(*words)


def test_an_output_never_takes_the_place_of_an_input(run_cli: Cli, exported: tuple[Path, Path]) -> None:
    artifact, _ = exported
    for name in ("out.json", "out.onnx"):
        before = artifact.with_name(name).read_bytes()
        run_cli("bench", artifact, "--save", artifact.with_name(name)).refused("would overwrite")
        assert artifact.with_name(name).read_bytes() == before


def test_files_that_are_not_of_each_other_are_refused(exported: tuple[Path, Path]) -> None:
    artifact, _ = exported
    shutil.copy(artifact.with_suffix(".json"), artifact.with_name("other.json"))
    with pytest.raises(ManifestError, match=r"is the manifest of 'out\.onnx', not of 'other\.onnx'"):
        Artifact.open(artifact.with_name("other.onnx"))
    artifact.write_bytes(artifact.read_bytes() + b"0")
    with pytest.raises(ManifestError, match="sha256 is another"):
        Artifact.open(artifact)


def test_a_plan_that_cannot_run_here_is_refused(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.engine.backends.find_gpus", list)
    with pytest.raises(BackendError, match=r"no GPU of this machine can run(.|\n)*: this machine has no GPU"):
        as_plan(Artifact.open(tiny_artifact / "out.json")).open_runners()


def test_a_plan_waits_once_for_every_size_that_depends_on_the_data(tiny_artifact: Path) -> None:
    described = Artifact.open(tiny_artifact / "out.json")
    compacting = described.manifest.parts[0].custom_nodes["TokenCompact"]
    assert compacting == 3
    assert synchronisations(described.manifest) == {"model": 0}
    assert synchronisations(as_plan(described).manifest) == {"model": compacting + 1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"artifact": {"precision": "fp16"}}, "precision 'fp16', now 'fp32'"),
        ({"artifact": {"layout": "packed"}}, "layout 'packed', now 'dynamic'"),
        ({"artifact": {"backend": {"name": "tensorrt", "version": "10"}}}, "backend 'tensorrt', now 'onnxruntime'"),
        ({"machine": {"processor": "another"}}, "processor 'another', now"),
        ({"machine": {"gpus": ["H200", "L4"]}}, "GPU 'H200' and 'L4', now none"),
        ({"machine": {"threads": 77}}, "number of threads 77, now"),
        ({"samples": {"sha256": "0" * 64}}, "samples .*sha256 000000000000"),
        ({"cuda_graphs": True}, "CUDA graphs on, now off"),
        ({"cases": {"batch": 2}}, r"measured \(dense, batch 2\) and \(.*batch 2\), not \(dense, batch 1\)"),
    ],
)
def test_a_baseline_of_something_else_is_refused(
    change: dict[str, Any], words: str, options: BenchOptions, saved: Path
) -> None:
    content = json.loads(saved.read_text())
    ((place, values),) = change.items()
    if isinstance(values, dict):
        for entry in content[place] if isinstance(content[place], list) else [content[place]]:
            entry.update(values)
    else:
        content[place] = values
    saved.write_text(json.dumps(content))
    timer = FakeTimer()
    with pytest.raises(BaselineError, match=words):
        fake_bench(replace(options, against=saved), timer, FakeRunner(timer))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 9}', '{"schema": 3}', "[" * 100000])
def test_a_damaged_baseline_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "base.json"
    path.write_text(text)
    with pytest.raises(BaselineError):
        read_measurement(path)


def test_an_artifact_of_other_inputs_is_refused(options: BenchOptions, exported: tuple[Path, Path]) -> None:
    artifact, _ = exported
    edit_manifest(artifact.with_suffix(".json"), lambda manifest: manifest["config"].update(vocab_size=301))
    with pytest.raises(OptionError, match="vocab_size is 301, the artifact's 300"):
        fake_bench(replace(options, against_engine=artifact), FakeTimer())
