"""Looking into plans. ONNX Runtime stands in for a GPU: what it runs is a copy of the graph, right or with a defect."""

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import run
from typing import Any

import onnx
import pytest
import torch

import export.validate.artifact_runners
import export.validate.intermediates
import export.validate.plan_bisection
import madtp
from export.artifact.manifest import Profile, Tokens, TokenSizes
from export.artifact.reader import manifest_path, read_manifest
from export.engine.backends import choose_backend
from export.engine.plugin_build import build_library
from export.engine.profile import input_profile, part_sizes
from export.engine.range import Range
from export.errors import BackendError
from export.graph.onnx_graph import OnnxGraph
from export.graph.source_ids import kept_ids
from export.graph.trace import save_onnx
from export.runtime.artifact import Artifact
from export.runtime.intermediates_runner import IntermediatesRunner
from export.validate.divergent_node import record_calls
from export.validate.intermediates import IntermediatesPlanBuilder
from export.validate.model_runner import TorchModelRunner
from export.validate.plan_bisection import PlanBisection, bisect_plan
from export.validate.repro import save_repro
from export.validate.tolerances import TOLERANCES
from madtp.checkpoint.loading import Model
from madtp.data.samples import collate, load_samples
from madtp.files.inputs import sha256
from madtp.tasks.requests import Runner
from tests.helpers.command_line import Ran
from tests.helpers.defects import MUTATIONS, change_weight, edit, node_of
from tests.helpers.manifests import manifest_json
from tests.helpers.plans import pass_for_plan

Run = Callable[..., Ran]
FEW = ("--limit", 2)
FP32 = TOLERANCES["fp32"]


@pytest.fixture(scope="module")
def model(tiny_artifact: Path) -> Model:
    return madtp.load(tiny_artifact / "tiny.pt")


@pytest.fixture(scope="module")
def reference(tiny_artifact: Path) -> OnnxGraph:
    return OnnxGraph.read(tiny_artifact / "out.onnx")


def look(model: Model, reference: OnnxGraph, shows: Callable[[str, set[str]], Runner]) -> PlanBisection:
    contestant = TorchModelRunner("torch", model, torch.float32)
    inputs = collate(load_samples(None, reference.folder / "tiny.pt", model.config).requests[:2], model.config)
    calls = record_calls(model.config, contestant.runners, inputs, model.temperature)
    return bisect_plan(calls, {"model": reference}, shows, FP32.segment, lambda _: None)


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_the_first_wrong_node_of_a_plan_is_named(
    mutate: Callable[[onnx.GraphProto], onnx.NodeProto], model: Model, reference: OnnxGraph, tmp_path: Path
) -> None:
    changed = onnx.ModelProto()
    changed.CopyFrom(reference.model)
    node = mutate(changed.graph)
    asked = list[set[str]]()

    def shows(part: str, shown: set[str]) -> Runner:
        asked.append(shown)
        there = {name for made in changed.graph.node for name in made.output}
        return IntermediatesRunner(OnnxGraph(changed, reference.folder), shown & there)

    divergent_node = look(model, reference, shows).divergent_node
    assert divergent_node is not None
    assert (divergent_node.node, divergent_node.nodes) == (node.name, 1)
    assert len(asked) == (1 if node.op_type in ("AlignedAttention", "TokenCompact") else 2), "a custom op shows at once"
    command = save_repro(divergent_node, tmp_path / "repro", FP32.segment)
    ran = run(shlex.split(command), capture_output=True, text=True)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "the plan" in ran.stdout


def test_a_plan_that_is_right_names_nothing(model: Model, reference: OnnxGraph) -> None:
    found = look(model, reference, lambda part, shown: IntermediatesRunner(reference, shown - constants(reference)))
    assert found == PlanBisection()
    assert str(found) == "a plan with intermediate values as outputs agrees with ONNX Runtime"


def test_nodes_that_onnx_runtime_cannot_run_are_said_to_be_unchecked(
    model: Model, reference: OnnxGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of bfloat16."""

    def refuse(*given: Any) -> Any:
        raise RuntimeError("NOT_IMPLEMENTED")

    monkeypatch.setattr(export.validate.plan_bisection, "run_graph", refuse)
    found = look(model, reference, lambda part, shown: IntermediatesRunner(reference, shown - constants(reference)))
    assert found.divergent_node is None
    assert node_of(reference.model.graph, "TokenCompact").name in found.unchecked
    assert "nodes could not be checked, e.g. " in str(found)


def constants(file: OnnxGraph) -> set[str]:
    return {tensor.name for tensor in file.model.graph.initializer} | {value.name for value in file.model.graph.input}


def test_what_is_wrong_only_when_fused_is_said_to_be(model: Model, reference: OnnxGraph) -> None:
    """The defect is gone as soon as the values inside the stretch are shown, as one of a fused kernel would be."""
    node = node_of(reference.model.graph, "Gelu")

    class Fused(IntermediatesRunner):
        def __init__(self, file: OnnxGraph, shown: set[str]) -> None:
            defective = onnx.ModelProto()
            defective.CopyFrom(file.model)
            if node.output[0] not in shown:
                node_of(defective.graph, "Gelu").op_type = "Relu"
                del node_of(defective.graph, "Relu").attribute[:]
            super().__init__(OnnxGraph(defective, file.folder), shown - constants(file))

    divergent_node = look(model, reference, lambda part, shown: Fused(reference, shown)).divergent_node
    assert divergent_node is not None
    assert divergent_node.nodes > 1
    assert "on their own, unfused, each of these nodes is right" in str(divergent_node)


def break_plan(plan: Path) -> None:
    """Change a weight, and let the manifest say so."""
    model = onnx.load(str(plan))
    change_weight(model)
    onnx.save(model, str(plan))
    edit(plan, lambda manifest: manifest["parts"][0].update(sha256=sha256(plan)))


@pytest.fixture
def plan(exported: tuple[Path, Path], quick: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A plan of one part, and its checkpoint."""
    artifact, checkpoint = exported
    return pass_for_plan(artifact, quick), checkpoint


def test_a_plan_is_compared_with_both_others_token_by_token(
    plan: tuple[Path, Path], run_cli: Run, tmp_path: Path
) -> None:
    arguments = ("--engine", plan[0], "--ckpt", plan[1], *FEW, "--json", tmp_path / "v.json")
    ran = run_cli("validate", *arguments)
    assert ran.status == 0, ran
    verdict = json.loads((tmp_path / "v.json").read_text())
    assert verdict["status"] == "passed"
    pairs = {(pair["pair"], pair["temperature"]): pair for pair in verdict["pairs"]}
    assert pairs.keys() == {(pair, tau) for pair in ("torch/onnx", "torch/plan", "onnx/plan") for tau in (2, 0)}
    for (_, temperature), pair in pairs.items():
        assert {layer["jaccard_min"] for layer in pair["selection"]["layers"]} == {1.0 if temperature else None}
    manifest = manifest_json(manifest_path(plan[0]))
    assert (manifest["validation"]["artifact"], manifest["validation"]["validated"]) == ("passed", "artifact")


def test_a_defect_of_a_plan_is_found_and_shown(plan: tuple[Path, Path], run_cli: Run, tmp_path: Path) -> None:
    break_plan(plan[0])
    arguments = ("--engine", plan[0], "--ckpt", plan[1], *FEW, "--repro", tmp_path / "repro")
    ran = run_cli("validate", *arguments)
    assert ran.status == 1, ran
    assert "torch/plan, temperature 2, samples [0]: logits differ by 1.00e-02" in ran.out
    assert "first divergent node: " in ran.out
    command = next(line for line in ran.out.splitlines() if "polygraphy run" in line)
    shown = run(shlex.split(command[command.index("/") :]), capture_output=True, text=True)
    assert shown.returncode == 1, shown.stdout + shown.stderr


def test_a_plan_that_a_tool_changed_is_judged_by_what_it_does(
    plan: tuple[Path, Path], run_cli: Run, tmp_path: Path
) -> None:
    """One that is built anew from the checkpoint shows nothing of it."""
    model = onnx.load(str(plan[0]))
    change_weight(model)
    onnx.save(model, str(plan[0]))
    arguments = ("--engine", manifest_path(plan[0]), "--ckpt", plan[1], *FEW, "--changed")
    ran = run_cli("validate", *arguments, "--json", tmp_path / "v.json")
    assert ran.status == 1, ran
    assert "changed since the export: out.plan" in ran.out
    assert "torch/plan, temperature 2, samples [0]: logits differ by 1.00e-02" in ran.out
    assert "compared token counts only for the changed plan" in ran.out
    assert json.loads((tmp_path / "v.json").read_text())["changed"] == ["out.plan"]
    assert run_cli("validate", *arguments, "--tolerance", "logits=0.02").status == 0


def test_a_plan_that_cannot_be_built_anew_is_compared_by_its_counts(
    plan: tuple[Path, Path], run_cli: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*given: Any, **named: Any) -> Any:
        raise BackendError("tensorrt-rtx 1.7 did not build the engine")

    monkeypatch.setattr(export.validate.intermediates, "build_plan", fail)
    ran = run_cli("validate", "--engine", plan[0], "--ckpt", plan[1], *FEW, "--json", tmp_path / "v.json")
    assert ran.status == 0, ran
    assert "compared token counts only for the plan" in ran.out
    assert "did not build the engine" in ran.out
    verdict = json.loads((tmp_path / "v.json").read_text())
    assert len(verdict["notes"]) == 1
    shown = {pair["pair"]: pair["selection"]["layers"][0]["jaccard_min"] for pair in verdict["pairs"][:2]}
    assert shown["torch/plan"] is None
    break_plan(plan[0])
    ran = run_cli("validate", "--engine", plan[0], "--ckpt", plan[1], *FEW)
    assert ran.status == 1, ran
    assert "the plan could not be bisected: tensorrt-rtx 1.7 did not build the engine" in ran.out


@pytest.mark.parametrize("task", ["vqa", "retrieval"])
def test_plans_of_several_parts_are_validated(
    task: str, task_artifacts: dict[str, Path], run_cli: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = shutil.copytree(task_artifacts[task], tmp_path / task)
    traced = shutil.copytree(folder, tmp_path / "traced")
    files = {path.suffixes[0][1:]: path for path in traced.glob("out.*.onnx")}
    for name, path in files.items():
        files[name] = path.rename(traced / f"{name}.onnx")
    monkeypatch.setattr(export.validate.artifact_runners, "trace_parts", lambda *_, **__: files)
    plan = pass_for_plan(folder / "out.onnx", monkeypatch)
    ran = run_cli("validate", "--engine", plan, "--ckpt", folder / "tiny.pt", *FEW, "--json", tmp_path / "v.json")
    assert ran.status == 0, ran
    pairs = json.loads((tmp_path / "v.json").read_text())["pairs"]
    assert {pair["pair"] for pair in pairs} == {"torch/onnx", "torch/plan", "onnx/plan"}
    for pair in pairs:
        if pair["temperature"]:
            assert {layer["jaccard_min"] for layer in pair["selection"]["layers"]} == {1.0}


@pytest.mark.parametrize("plugins", ["auto", "none"])
def test_real_plans_show_which_tokens_they_keep(
    plugins: str, model: Model, tiny_artifact: Path, tiny_program: torch.onnx.ONNXProgram, tmp_path: Path
) -> None:
    """TensorRT for RTX builds them without a GPU."""
    source = tmp_path / "model.onnx"
    save_onnx(tiny_program, source, external_data=True)
    part = TorchModelRunner("torch", model, torch.float32).parts["model"]
    names = kept_ids(OnnxGraph.read(source))
    layers = {"vision": 1, "text": 2}
    assert len(names) == sum(layers.values())
    manifest = read_manifest(tiny_artifact / "out.json")
    (exported,) = manifest.parts
    profile = input_profile(part, part_sizes("nlvr", part, Range(1, 1, 2), Range(2, 6, 8), None))
    sizes = {name: (TokenSizes(2, 40),) * count for name, count in layers.items()}
    entry = replace(
        exported,
        profile={name: Profile(*map(tuple, shapes)) for name, shapes in profile.items()},
        plugin_layers=exported.custom_nodes if plugins == "auto" else {},
        tokens=Tokens("measured", "", 1, sizes),
    )
    library = build_library().path if plugins == "auto" else None
    said = list[str]()
    backend = choose_backend("auto", ".plan")
    artifact = Artifact(tiny_artifact / "out.json", replace(manifest, parts=(entry,)), backend)
    builder = IntermediatesPlanBuilder(artifact, {"model": source}, library, said.append)
    inside = set(names) | {node_of(OnnxGraph.read(source).model.graph, "Gelu").output[0]}
    assert set(builder.build("model", inside | {"no such value"}).shown) == inside
    assert source.with_suffix(".plan").stat().st_size > 0
    assert said
