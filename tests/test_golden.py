"""Parity with the official implementation: every recorded case, in torch and in the exported graph."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch.onnx._internal.exporter import _fx_passes

from tests import golden
from tests.helpers.paths import CARRIED, RECORDINGS, golden_folders

Carried = tuple[Callable[[golden.GoldenCase], golden.Replay], list[golden.GoldenCase]]


@pytest.fixture
def traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that torch.onnx can only write after tracing them again are refused."""

    def decompose(program: object, registry: object) -> None:
        raise AssertionError("it takes as long as all the rest")

    monkeypatch.setattr(_fx_passes, "decompose_with_registry", decompose)


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize("folder", golden_folders(), ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_recorded_cases_are_reproduced(folder: Path, tmp_path: Path) -> None:
    runs = dict.fromkeys(("torch", "torch-dense", "onnx", "kernels", "openvino"), 0)
    runs |= dict.fromkeys(("torch-packed", "onnx-packed", "kernels-packed", "openvino-packed"), 0)
    onnx = folder != CARRIED or len(golden_folders("nlvr")) == 1  # the same model is there in full otherwise
    openvino = onnx and folder.name != "base"  # as `python -m tests.golden --openvino` does, in a minute
    packed = folder.name != "base"  # as `python -m tests.golden --packed` does
    ran = golden.check_folder(folder, onnx=onnx, scratch=tmp_path, openvino=openvino, kernels=onnx, packed=packed)
    for name, runtime, verdict in ran:
        assert not verdict.mismatches, f"{name} in {runtime}: {verdict.mismatches}"
        runs[runtime] += 1
    cases = json.loads((folder / "cases.json").read_text())
    assert runs["torch"] == len(cases)
    assert runs["onnx"] == runs["kernels"] == onnx * len(cases)
    assert runs["openvino"] == openvino * len(cases)
    alone = packed * sum(case["name"].startswith("b1_") for case in cases)
    assert runs["torch-packed"] == alone
    assert runs["onnx-packed"] == runs["kernels-packed"] == runs["openvino-packed"] == onnx * alone
    assert runs["torch-dense"] == sum(case["temperature"] <= 0 for case in cases)


@pytest.fixture(scope="module")
def carried() -> Carried:
    model = golden.load_model(CARRIED)
    runtime = golden.TorchRuntime(model)
    return partial(golden.replay, model.config, runtime), list(golden.load_cases(CARRIED, model.config.image_size))


def test_wrong_outputs_are_noticed(carried: Carried) -> None:
    replay_case, cases = carried
    replay = replay_case(cases[1])
    replay.outputs["logits"][0, 0] += 2e-4
    assert any("logits off by" in mismatch for mismatch in golden.compare(cases[1], replay).mismatches)
    replay.outputs["logits"][0, 0] = torch.nan
    assert golden.compare(cases[1], replay).mismatches


def test_another_kept_set_is_noticed(carried: Carried) -> None:
    replay_case, cases = carried
    case = next(case for case in cases if case.name == "b3_pad_prune")
    replay = replay_case(case)
    layer = replay.towers["vision"][0]
    dropped = next(i for i in range(1, 37) if i not in layer.source_ids[0])
    layer.source_ids[0, 1] = dropped
    assert golden.compare(case, replay).mismatches == ["vision layer 0: kept set differs"]


def test_other_counts_are_noticed(carried: Carried) -> None:
    replay_case, cases = carried
    replay = replay_case(cases[1])
    first = replay.towers["text"][0]
    replay.towers["text"][0] = golden.LayerTrace(first.tokens_out + 1, first.keep - 1, first.source_ids)
    mismatches = golden.compare(cases[1], replay).mismatches
    assert len(mismatches) == 2
    assert all("text layer 0" in mismatch for mismatch in mismatches)


def test_command_prints_a_line_a_case_and_exits_1_on_a_mismatch(tmp_path: Path) -> None:
    folder = tmp_path / "cases"
    shutil.copytree(CARRIED, folder)
    result = CliRunner().invoke(golden.main, [str(folder)])
    assert result.exit_code == 0, result.output
    assert sum(line.startswith("ok") for line in result.output.splitlines()) >= 9
    cases = json.loads((folder / "cases.json").read_text())
    cases[1]["trace"][0]["tokens_out"][0] += 1
    (folder / "cases.json").write_text(json.dumps(cases))
    result = CliRunner().invoke(golden.main, [str(folder)])
    assert result.exit_code == 1
    assert "FAIL" in result.output
    assert "vision layer 0: 19 tokens, recorded 20" in result.output


def test_command_exits_2_on_a_folder_without_cases(tmp_path: Path) -> None:
    result = CliRunner().invoke(golden.main, [str(tmp_path)])
    assert result.exit_code == 2
    assert "config.json" in result.output


@pytest.mark.skipif(not (RECORDINGS / "keys.json").is_file(), reason="the full recordings are not on this machine")
def test_full_size_model_has_exactly_the_official_keys() -> None:
    official = json.loads((RECORDINGS / "keys.json").read_text())
    model = golden.load_model(RECORDINGS / "base")
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    expected = {name: entry["shape"] for name, entry in official.items() if not name.endswith("position_ids")}
    assert shapes == expected
