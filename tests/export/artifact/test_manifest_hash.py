"""A manifest vouches for itself and for nothing outside its folder."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from PIL import Image

from export import Session
from export.artifact.reader import LONGEST, manifest_path, read_manifest
from export.artifact.seal import OWN_HASH, dump_manifest, manifest_sha256
from export.build.options import ExportOptions
from export.errors import ManifestError, OptionError
from export.inspect.artifact import MOST_PARTS
from madtp.errors import InputError
from madtp.files.inputs import sha256
from tests.helpers.command_line import Ran
from tests.helpers.manifests import edit_manifest, write_manifest
from tests.helpers.samples import write_vocabulary

NO_NAMES = ["/etc/passwd", "../out.onnx", "x/out.onnx", "..", ".", "", "x\\out.onnx", "a\0b"]
NAMES: dict[str, Callable[[dict[str, Any], Any], object]] = {
    "artifact": lambda manifest, name: manifest.update(artifact=name),
    "part": lambda manifest, name: manifest["parts"][0].update(artifact=name),
    "weights": lambda manifest, name: manifest["parts"][0].update(external_data={"file": name, "sha256": "0" * 64}),
    "timing cache": lambda manifest, name: manifest["parts"][0].update(timing_cache={"file": name, "reused": False}),
    "vocabulary": lambda manifest, name: manifest["preprocessing"]["text"].update(
        vocabulary={"file": name, "sha256": "0" * 64}
    ),
    "library": lambda manifest, name: manifest["plugins"].update(
        mode="library",
        library={
            "file": name,
            "embedded": False,
            "version": "0.1.0",
            "sha256": "0" * 64,
            "source_sha256": "0" * 64,
            "sm": [80],
        },
    ),
}


@pytest.mark.parametrize("where", NAMES)
@pytest.mark.parametrize("name", NO_NAMES)
def test_files_are_named_without_folders(where: str, name: str, exported: tuple[Path, Path]) -> None:
    path = manifest_path(exported[0])
    edit_manifest(path, lambda manifest: NAMES[where](manifest, name))
    for changed in (False, True):
        with pytest.raises(ManifestError, match="is not a bare file name"):
            read_manifest(path, changed=changed)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["preprocessing"]["image"].update(mean=[0.5, 0.5, 0.5]),
        lambda manifest: manifest.update(temperature=0.25),
        lambda manifest: manifest["parts"][0].update(sha256="0" * 64),
        lambda manifest: manifest["validation"].update(artifact="not run"),
        lambda manifest: manifest.update({OWN_HASH: "0" * 64}),
    ],
)
def test_an_edited_manifest_is_refused(
    change: Callable[[dict[str, Any]], object], exported: tuple[Path, Path], run_cli: Callable[..., Ran]
) -> None:
    path = manifest_path(exported[0])
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(ManifestError, match="was changed after it was written"):
        Session(path)
    assert read_manifest(path, changed=True).to_json() == manifest
    shown = run_cli("inspect", path, "--json")
    assert shown.status == 1
    found = json.loads(shown.out)
    assert found["manifest"]["state"].startswith("CHANGED")
    assert found["manifest"]["temperature"] == manifest["temperature"]


def test_the_hash_is_of_the_content_however_it_is_laid_out(exported: tuple[Path, Path]) -> None:
    path = manifest_path(exported[0])
    manifest = read_manifest(path)
    digest = manifest_sha256(manifest.to_json())
    assert manifest.manifest_sha256 == digest == json.loads(dump_manifest(manifest))[OWN_HASH]
    path.write_text(json.dumps(dict(reversed(manifest.to_json().items())), indent=7))
    assert read_manifest(path) == manifest


def test_a_manifest_of_many_bytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    with path.open("wb") as file:
        file.truncate(LONGEST + 1)
    with pytest.raises(ManifestError, match=r"at most 1\.0 MB are read"):
        read_manifest(path)


@pytest.mark.parametrize("place", ["graph", "attribute", "function", "sparse"])
@pytest.mark.parametrize("location", ["other.data", "../other.data", "/etc/passwd"])
def test_weights_come_from_the_files_of_the_manifest(place: str, location: str, exported: tuple[Path, Path]) -> None:
    artifact, _ = exported
    model = onnx.load(str(artifact))
    tensor = onnx.TensorProto(data_type=onnx.TensorProto.FLOAT, dims=[1], name="foreign")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    node = onnx.helper.make_node("Constant", [], ["foreign"], value=tensor)
    if place == "graph":
        model.graph.initializer.append(tensor)
    elif place == "attribute":
        model.graph.node.append(node)
    elif place == "function":
        model.functions[0].node.append(node)
    else:
        model.graph.sparse_initializer.add().values.CopyFrom(tensor)
    onnx.save(model, str(artifact))
    entry = {"sha256": sha256(artifact), "bytes": artifact.stat().st_size}
    edit_manifest(manifest_path(artifact), lambda manifest: manifest["parts"][0].update(entry))
    with pytest.raises(ManifestError, match=re.escape(f"takes weights from '{location}'")):
        Session(artifact)


def test_a_file_listed_with_two_hashes_is_refused(exported: tuple[Path, Path]) -> None:
    artifact, _ = exported
    path = manifest_path(artifact)
    manifest = json.loads(path.read_text())
    manifest["parts"][0]["sha256"] = "0" * 64
    manifest["preprocessing"]["text"]["vocabulary"] = {"file": artifact.name, "sha256": sha256(artifact)}
    write_manifest(path, manifest)
    with pytest.raises(ManifestError, match="Its sha256 is another"):
        Session(path)


@pytest.mark.parametrize("name", ["a\\b.onnx", "..\\b.plan"])
def test_no_artifact_is_exported_under_a_name_that_its_manifest_could_not_hold(name: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="a backslash in its name"):
        ExportOptions(tmp_path / "tiny.pt", tmp_path / name)


def test_a_name_that_stands_twice_is_refused(exported: tuple[Path, Path], run_cli: Callable[..., Ran]) -> None:
    """The hash would be of what this reader takes, and another reader takes the other one."""
    path = manifest_path(exported[0])
    path.write_text(path.read_text().replace('"mean": [', '"mean": [0, 0, 0], "mean": [', 1))
    with pytest.raises(ManifestError, match="The name 'mean' stands twice"):
        read_manifest(path)
    assert run_cli("inspect", path).status == 1


@pytest.mark.parametrize(
    "constants",
    [{"std": [0.0] * 3}, {"std": [1e-320, 1, 1]}, {"mean": [1e308, 0, 0]}, {"mean": [0, 0]}, {"std": [1] * 4}],
)
def test_constants_that_make_no_pixels_are_refused(constants: dict[str, Any], exported: tuple[Path, Path]) -> None:
    path = manifest_path(exported[0])
    edit_manifest(path, lambda manifest: manifest["preprocessing"]["image"].update(constants))
    with pytest.raises(ManifestError, match=r"preprocessing\.image"):
        read_manifest(path)


def test_a_manifest_of_many_entries_is_inspected_quickly(
    exported: tuple[Path, Path], run_cli: Callable[..., Ran]
) -> None:
    """Of each a row or a look at the disk would take minutes."""
    path = manifest_path(exported[0])
    edit_manifest(path, lambda manifest: manifest["parts"].extend([{}] * 1000))
    shown = run_cli("inspect", path, "--json")
    assert shown.status == 1
    assert len(json.loads(shown.out)["manifest"]["parts"]) == MOST_PARTS


def test_inspect_shows_the_size_that_a_file_has(exported: tuple[Path, Path], run_cli: Callable[..., Ran]) -> None:
    artifact, _ = exported
    edit_manifest(manifest_path(artifact), lambda manifest: manifest["parts"][0].update(bytes=7))
    shown = json.loads(run_cli("inspect", artifact, "--json").out)
    assert shown["manifest"]["parts"][0]["bytes"] == artifact.stat().st_size


def test_answers_that_are_no_numbers_are_refused(exported: tuple[Path, Path]) -> None:
    """A graph whose hash is the manifest's, but of which the weights are spoilt."""
    artifact, _ = exported
    model = onnx.load(str(artifact))
    output = next(node for node in model.graph.node if "logits" in node.output)
    output.output[list(output.output).index("logits")] = "spoilt"
    zero = onnx.helper.make_tensor("zero", onnx.TensorProto.FLOAT, [], [0.0])
    model.graph.initializer.append(zero)
    model.graph.node.extend(
        [
            onnx.helper.make_node("Mul", ["spoilt", "zero"], ["nought"]),
            onnx.helper.make_node("Div", ["nought", "zero"], ["logits"]),
        ]
    )
    onnx.save(model, str(artifact))
    edit_manifest(manifest_path(artifact), lambda manifest: manifest["parts"][0].update(sha256=sha256(artifact)))
    image = Image.new("RGB", (9, 9))
    vocabulary = write_vocabulary(artifact.parent / "vocab.txt")
    refused = pytest.raises(InputError, match="'logits' of part model is not finite")
    with Session(artifact, vocabulary=vocabulary) as session, refused:
        session.judge([(image, image)], ["a digit"])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda manifest: manifest["preprocessing"]["image"].update(mean=[0, 0, 0]), "mean"),
        (lambda manifest: manifest["config"].update(enc_token_id=1), "enc_token_id"),
    ],
)
def test_validate_tells_a_manifest_by_which_requests_are_prepared_otherwise(
    change: Callable[[dict[str, Any]], object], named: str, exported: tuple[Path, Path], run_cli: Callable[..., Ran]
) -> None:
    """Its hash of itself is right, as whoever edits can make it; the outputs of its files are right too."""
    artifact, checkpoint = exported
    edit_manifest(manifest_path(artifact), change)
    ran = run_cli("validate", "--engine", artifact, "--ckpt", checkpoint, "--synthetic", "--limit", 2)
    ran.refused("does not describe the model", f": {named}.")
