"""Real engines with plugins, in every precision: the demo's model and base-size NLVR, built without a GPU."""

import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

import madtp
from export.artifact.manifest import TokenSizes
from export.engine.backends import choose_backend
from export.engine.builder import BuildResult, build_plan
from export.engine.plugin_build import build_library
from export.engine.profile import input_profile, part_sizes
from export.engine.range import Range
from export.graph.token_sizes import set_token_sizes
from export.graph.trace import save_onnx, trace_part
from madtp.models.nlvr import NlvrModel
from madtp.models.parts import parts_of
from madtp.ops.spec import OPS
from tests.helpers.manifests import manifest_json
from tests.helpers.precisions import TYPES, retype
from tests.helpers.sizes import generated_model

DEMO = Path(madtp.__file__).parent / "demo" / "nlvr-digits.pt"
TEXT = Range(2, 8, 16)


def float16_graph(model: NlvrModel, folder: Path) -> Path:
    """The model traced in float16, weights in the file."""
    path = folder / "fp16.onnx"
    save_onnx(trace_part(parts_of(model.half())["model"]), path, external_data=False)
    return path


def built(traced: Path, model_config: Any, precision: str, folder: Path) -> tuple[BuildResult, Path]:
    """Engine of a float16 trace in another precision; no weights are left behind."""
    network = folder / "network.onnx"
    retyped = retype(onnx.load(str(traced)), precision)
    onnx.save(retyped, str(network), save_as_external_data=True, location="network.data")
    del retyped  # a gigabyte at base size
    vision = (model_config.image_size // model_config.patch_size) ** 2 + 1
    sizes = {
        "vision": [TokenSizes(vision // 2, vision)] * model_config.vit_depth,
        "text": [TokenSizes(6, TEXT.max)] * model_config.text_layers,
    }
    set_token_sizes(network, network, sizes)
    plan = folder / "out.plan"
    with torch.device("meta"):
        part = parts_of(NlvrModel(model_config))["model"]
    profile = input_profile(part, part_sizes("nlvr", part, Range(1, 1, 8), TEXT, None))
    backend = choose_backend("auto", ".plan")
    library = build_library().path
    return build_plan(backend, network, plan, folder / "timing", profile, lambda _: None, library), plan


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    model = madtp.load(DEMO)
    return float16_graph(model, tmp_path_factory.mktemp("demo")), model.config


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    model = generated_model()
    return float16_graph(model, tmp_path_factory.mktemp("base")), model.config


# Base size in the precision that is exported; the others take minutes more and have the same layers.
@pytest.mark.parametrize(("name", "precision"), [*(("demo", precision) for precision in TYPES), ("base", "fp32")])
def test_engine_has_a_pair_of_plugins_for_every_layer(
    name: str, precision: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    traced, config = request.getfixturevalue(name)
    result, plan = built(traced, config, precision, tmp_path)
    pairs = config.vit_depth + config.text_layers
    assert result.plugin_layers == {spec.onnx_name: pairs for spec in OPS}
    assert pairs == (24 if name == "base" else 8)
    weights = traced.stat().st_size * (2 if precision == "fp32" else 1)
    assert plan.stat().st_size > 0.9 * weights
    for file in tmp_path.iterdir():
        file.unlink()  # gigabytes


@pytest.mark.parametrize("task", ["vqa", "caption", "retrieval", "clip"])
def test_every_part_of_a_task_builds_with_its_plugins(
    task: str, task_artifacts: dict[str, Path], tmp_path: Path
) -> None:
    artifact = task_artifacts[task]
    library, parts = build_library().path, parts_of(madtp.load(artifact / "tiny.pt"))
    for part in manifest_json(artifact / "out.json")["parts"]:
        network = tmp_path / part["artifact"]
        shutil.copyfile(artifact / part["artifact"], network)
        encoders = parts[part["name"]].encoders
        if encoders:
            set_token_sizes(network, network, {name: [TokenSizes(2, 80)] * layers for name, layers in encoders.items()})
        plugins = library if encoders else None
        result = build_plan(
            *(choose_backend("auto", ".plan"), network, tmp_path / "out.plan", tmp_path / "timing"),
            *(part["profile"], lambda _: None, plugins),
        )
        pairs = sum(encoders.values())
        assert result.plugin_layers == ({spec.onnx_name: pairs for spec in OPS} if pairs else {})
        assert (tmp_path / "out.plan").stat().st_size > 0
