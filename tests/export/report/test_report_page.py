"""`python -m export report`: the page refers to nothing outside, says what the manifest says, marks what was pruned."""

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import export.report.measurements as measure
import export.report.run as run
import export.validate.intermediates
import madtp
from export.artifact.manifest import OutputEntry, PairEntry, SamplesEntry, VerdictEntry
from export.artifact.reader import read_manifest
from export.bench.calls import samples_sha256
from export.engine.backends import Backend
from export.errors import BackendError
from export.report.examples import FRESH, GONE, KEPT, choose, merge_text, patch_path, state, text_view
from export.report.measurements import alone, temperatures_of, total_tokens
from export.report.page import validated_table
from export.report.source_ids import record_artifact, record_torch
from export.report.token_flow import follow_tokens, patch_runs
from export.report.token_names import token_names
from export.runtime.artifact import Artifact
from export.samples.choice import DataOptions
from export.validate.intermediates import show_onnx
from madtp.data.samples import hashed_ids, load_samples
from madtp.models.parts import parts_of
from tests.helpers.artifact_samples import samples_of
from tests.helpers.artifacts import TaskArtifacts
from tests.helpers.checkpoints import TAU
from tests.helpers.command_line import Ran
from tests.helpers.manifests import manifest_json, write_manifest
from tests.helpers.outputs import Outputs
from tests.helpers.pages import bench_result, parsed, text_of
from tests.helpers.plans import pass_for_plan
from tests.helpers.samples import write_samples

HOSTILE = "</p><script>alert(1)</script>"
# Six patches: layer 0 merges 2 and 5; layer 1 nothing; layer 2 merges 1, 6 and the merged token of layer 0.
IDS = [[0, 1, 3, 4, 6, -1], [0, 1, 3, 4, 6, -1], [0, 3, 4, -3]]


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "LATENCY_SECONDS", 0.0)


@pytest.fixture(scope="module")
def page(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """A page of the tiny artifact with everything, its samples' texts and folder hostile; and the manifest."""
    folder = tmp_path_factory.mktemp("page")
    samples = write_samples(folder / "a<script>b")
    entries = json.loads((samples / "samples.json").read_text())
    for entry in entries:
        entry["sentence"] = f"{HOSTILE} {entry['sentence']}"
    (samples / "samples.json").write_text(json.dumps(entries))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "LATENCY_SECONDS", 0.0)
        options = run.ReportOptions(
            tiny_artifact / "out.json",
            folder / "page.html",
            tiny_artifact / "tiny.pt",
            samples,
            temperatures=(TAU / 2,),
        )
        run.report(options, Silent())
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["page.html"]
    return (folder / "page.html").read_text(encoding="utf-8"), manifest_json(tiny_artifact / "out.json")


class Silent:
    def stage(self, description: str) -> None: ...

    def detail(self, text: str) -> None: ...


def test_page_refers_to_nothing_outside(page: tuple[str, dict[str, Any]]) -> None:
    root = parsed(page[0])
    ids = {element.get("id") for element in root.iter()}
    uris = 0
    for element in root.iter():
        assert element.tag not in ("script", "link", "iframe", "object")
        for name, value in element.attrib.items():
            assert not name.startswith("on")
            if name.split("}")[-1] in ("src", "href"):
                assert value.startswith(("#", "data:"))
                assert not value.startswith("#") or value[1:] in ids
                uris += value.startswith("data:")
            if name == "srcset":
                assert re.fullmatch(r"data:image/svg\+xml;base64,[\w+/=]+", value)
            if name == "src":
                assert element.get("alt")
    assert uris == 4 + 3 * 2  # plots; two images of three samples
    assert "url(" not in page[0]
    assert "@import" not in page[0]
    assert len(page[0]) < 5e6


def test_page_says_what_the_manifest_says(page: tuple[str, dict[str, Any]]) -> None:
    html, manifest = page
    text = text_of(html)
    digests = [manifest["checkpoint"]["sha256"], *(part["sha256"] for part in manifest["parts"])]
    for shown in (*digests, manifest["created"], manifest["checkpoint"]["file"], manifest["backend"]["version"]):
        assert shown in text
    cells = [["".join(cell.itertext()) for cell in row] for row in parsed(html).iter("tr")]
    rows = {row[0]: row[1:] for row in cells}
    parity = manifest["validation"]["parity"]
    assert rows["answers equal"] == [f"{entry['decisions_equal']} of {entry['requests']}" for entry in parity]
    assert rows["token counts equal, layers"] == [f"{entry['layers_equal']} of {entry['layers']}" for entry in parity]
    worst = [f"{entry['worst']:.1e} of {entry['worst_output']} ({entry['tolerance']:.0e})" for entry in parity]
    assert rows["worst |difference| (allowed)"] == worst
    assert rows["verdict"] == ["passed", "passed"]
    assert f"{manifest['validation']['latency']['artifact dense']['median_ms']:.2f}" in rows["artifact dense"]
    assert "NOT RUN" not in text
    assert [row[1] for row in cells if row[0] == f"{TAU / 2:g}"] != []


def test_hostile_texts_are_shown_as_text(page: tuple[str, dict[str, Any]]) -> None:
    assert text_of(page[0]).count(f"“{HOSTILE} ") == 3
    assert "a<script>b" in text_of(page[0])


def test_every_token_is_followed() -> None:
    first, second, third = follow_tokens(IDS, 7)
    assert (first.kept, first.fresh, first.swallowed) == ({0, 1, 3, 4, 6}, {2, 5}, (2, 5))
    assert first.merged == {0: {2, 5}}
    assert (second.kept, second.fresh, second.merged) == (first.kept, frozenset(), first.merged)
    assert (third.kept, third.fresh, set(third.swallowed)) == ({0, 3, 4}, {1, 6}, {1, 6, -1})
    assert third.merged == {2: {1, 2, 5, 6}}
    assert [after.tokens for after in (first, second, third)] == [len(ids) for ids in IDS]
    assert [state(position, third) for position in range(7)] == [KEPT, FRESH, GONE, KEPT, KEPT, GONE, FRESH]


def test_a_merged_token_may_survive_beside_a_newer_one() -> None:
    flow = follow_tokens([[0, 1, 2, 3, -1], [0, 1, -1, -2]], 6)
    assert flow[1].merged == {0: {4, 5}, 1: {2, 3}}
    assert merge_text(1, flow[1], "abcdef".__getitem__, "letters") == "layer 2 merged c, d"
    assert merge_text(0, flow[0], "abcdef".__getitem__, "letters") == "layer 1 merged e, f"


@pytest.mark.parametrize("ids", [[0, 1, 2], [0, 1, 9, -1], [0, 1, -2], [0, 1, 1, -1], [0, 1, 2, 3, -1]])
def test_ids_that_do_not_follow_are_noticed(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="layer 0"):
        follow_tokens([ids], 4)


def test_merges_in_words() -> None:
    _, _, third = follow_tokens(IDS, 7)
    named = merge_text(2, third, "0abcdef".__getitem__, "letters")
    assert named == "layer 3 merged a, f and the merged token of layer 1; it stands for 4 tokens of the input"
    many = follow_tokens([[0, -1], [0, -2]], 20)
    assert merge_text(0, many[0], str, "patches") == "layer 1 merged 19 patches"
    assert merge_text(1, many[1], str, "patches") == (
        "layer 2 merged the merged token of layer 1; it stands for 19 tokens of the input"
    )


def covered(path: str) -> set[int]:
    """The patches of a grid of 3 that an SVG path of `patch_path` covers."""
    runs = re.findall(r"M(\d) (\d)h(\d)v1h-(\d)z", path)
    assert path == "".join("M{} {}h{}v1h-{}z".format(*run) for run in runs)
    return {
        1 + 3 * int(row) + int(column) + offset
        for column, row, length, back in runs
        for offset in range(int(length))
        if length == back
    }


@pytest.mark.parametrize("patches", [set(), {1}, {1, 2, 3, 4}, {3, 4}, {1, 3, 5, 7, 9}, set(range(1, 10))])
def test_paths_cover_exactly_the_patches(patches: set[int]) -> None:
    assert covered(patch_path(frozenset(patches | {0}), 3)) == patches
    assert patch_runs(frozenset({2, 3, 4}), 3) == [(1, 0, 2), (0, 1, 1)]


def test_words_are_struck_out_and_padding_is_left_out() -> None:
    view = text_view("text", ["[ENC]", "the", "sky", "[SEP]"], 7, IDS)
    assert [layer.caption for layer in view.layers] == ["layer 1: 3 kept", "layer 3: 2 kept"]
    assert [state for _, state in view.layers[0].words] == [KEPT, KEPT, FRESH, KEPT]
    assert [state for _, state in view.layers[1].words] == [KEPT, FRESH, GONE, KEPT]
    assert view.layers[0].merge == "layer 1 merged sky and 1 of padding"
    assert (view.unchanged, view.padding) == ([2], 3)


def test_examples_are_the_extremes_and_the_median() -> None:
    assert list(choose([5, 1, 9, 3, 7]).values()) == [1, 0, 2]
    assert list(choose([4, 4]).values()) == [0, 1]
    assert choose([4]) == {"the only sample": 0}


def test_ids_have_no_differences_and_numbers_that_are_not_finite_are_said_to_be() -> None:
    equal = OutputEntry("answer_ids", 0.0, 0.0, None, 0.0, 0.0, decided=3, decisions=3)
    nan = OutputEntry("logits", None, None, None, None, 1e-4, decided=0, decisions=0)
    pair = PairEntry("torch/onnx", 0.5, "failed", 3, 0, (equal, nan), layers=2, layers_equal=2)
    samples = SamplesEntry("demo", "the demo's", 3, "read")
    table = validated_table(VerdictEntry("2031-05-06T07:08:09+00:00", "failed", samples, (pair,), (), (), ""))
    assert table is not None
    assert [row for row in table.rows if row[0].startswith("answer_ids")] == [["answer_ids: answers equal", "3 of 3"]]
    assert ["logits: worst |difference|", "not finite"] in table.rows


def test_tokens_of_every_image_are_counted() -> None:
    counts = {"vision": np.array([[5, 4], [3, 3]]), "text": np.array([[3, 2], [1, 1]])}
    assert total_tokens(counts, 1).tolist() == [14, 8]
    assert total_tokens(counts, 2).tolist() == [23, 14]


def test_default_temperatures_lie_around_the_artifacts() -> None:
    assert temperatures_of(0.08, []) == [0.0, 0.02, 0.04, 0.08, 0.16, 0.32]
    assert temperatures_of(0.08, [1.0]) == [0.0, 0.08, 1.0]
    assert temperatures_of(0.0, []) == [0.0]


@pytest.mark.parametrize("task", ["nlvr", "retrieval"])
def test_graph_and_torch_give_the_same_source_ids(
    task: str, tiny_artifact: Path, task_artifacts: TaskArtifacts
) -> None:
    folder = tiny_artifact if task == "nlvr" else task_artifacts[task]
    artifact = Artifact.open(folder / "out.json")
    model = madtp.load(folder / "tiny.pt")
    files = artifact.part_files
    graph = record_artifact(artifact.manifest, files, show_onnx(files), artifact.open_runners(), "graph")
    torch_model = record_torch(parts_of(model), "torch")
    request = load_samples(None, folder / "tiny.pt", model.config).requests[0]
    inputs = alone(request, model.config, 2)
    expected = torch_model.source_ids(model.config, inputs, TAU)
    found = graph.source_ids(model.config, inputs, TAU)
    assert list(found) == list(expected) == (["vision", "text"] if task == "nlvr" else ["vision", "text", "match"])
    for encoder, layers in expected.items():
        assert len(layers) == len(found[encoder])
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found[encoder], layers, strict=True))
    pruned = [layer for layers in found.values() for layer in layers if int(layer.min()) < 0]
    assert pruned


def test_words_without_a_vocabulary_are_numbered(tiny_artifact: Path) -> None:
    config = madtp.load(tiny_artifact / "tiny.pt").config
    assert token_names([299, 170, 180, 3], config, None, "") == ["[ENC]", "word 1", "word 2", "[SEP]"]
    ids = hashed_ids("Both images, show", config)
    assert token_names(ids, config, None, "Both images, show") == ["[ENC]", "both", "images,", "show", "[SEP]"]


Command = Callable[..., Ran]


@pytest.fixture
def plan(exported: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The manifest of a plan that nothing here can run."""
    manifest = manifest_json(exported[0].with_suffix(".json"))
    (exported[0].parent / "out.plan").write_bytes(exported[0].read_bytes())
    manifest["artifact"] = manifest["parts"][0]["artifact"] = "out.plan"
    manifest["validation"] |= {"artifact": "not run", "validated": "onnx"}
    write_manifest(exported[0].with_suffix(".json"), manifest)
    cannot = Backend("tensorrt-rtx", "1.7", "there is no GPU", can_run=False)
    monkeypatch.setattr("export.runtime.artifact.backend_of", lambda manifest: cannot)
    return exported[0].with_suffix(".json")


def test_plan_that_cannot_run_needs_its_checkpoint(plan: Path, run_cli: Command, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    run_cli("report", plan, "-o", page).refused("no GPU of this machine can run the plan", "--ckpt")
    assert not page.exists()


def test_plan_that_cannot_run_is_said_not_to_have_run(plan: Path, run_cli: Command, tmp_path: Path) -> None:
    page, checkpoint = tmp_path / "page.html", plan.parent / "tiny.pt"
    assert run_cli("report", plan, "-o", page, "--ckpt", checkpoint, "--synthetic", "--temperature", TAU).status == 0
    text = text_of(page.read_text())
    assert "the plan was NOT RUN: no GPU of that machine could execute it" in text
    assert "at temperature 0, of the ONNX file that it was built from" in text
    assert "NOT RUN for this page: there is no GPU" in text
    assert "of the torch model, not of the plan" in text
    assert "Latencies are of the torch model, not of the plan." in text
    assert "the torch model of the checkpoint (no GPU of this machine can run the plan)" in text
    assert "word 1" in text


def test_plan_that_did_not_run_when_validated_is_said_not_to_have(plan: Path, run_cli: Command, tmp_path: Path) -> None:
    page, checkpoint = tmp_path / "page.html", plan.parent / "tiny.pt"
    manifest, bench = manifest_json(plan), tmp_path / "bench.json"
    bench.write_text(json.dumps(bench_result(manifest)))
    samples = {"kind": "demo", "origin": "the demo's", "count": 16, "words": "read"}
    found = {"created": "2031-05-06T07:08:09+00:00", "status": "not run", "samples": samples, "pairs": []}
    manifest["validation"]["verdict"] = {**found, "batch_mates": [], "failures": [], "bisected": ""}
    write_manifest(plan, manifest)
    arguments = ("-o", page, "--ckpt", checkpoint, "--synthetic", "--bench", bench)
    assert run_cli("report", plan, *arguments).status == 0
    text = text_of(page.read_text())
    assert "when it was validated on 2031-05-06, the plan was NOT RUN" in text
    assert "at temperature 0, of the plan or of the ONNX file that it was built from" in text
    assert "tokens (not latency, which bench measured) below are those of the torch model" in text
    assert "Latencies are of the torch model" not in text


def test_plan_that_runs_shows_what_it_pruned_itself(
    exported: tuple[Path, Path], run_cli: Command, quick: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """ONNX Runtime stands in for a GPU."""
    artifact, checkpoint = exported
    arguments = ("-o", tmp_path / "page.html", "--synthetic", "--temperature", TAU)

    def shown(given: Path, *more: object) -> tuple[str, list[str]]:
        """The text of a page, and what it strikes out and covers."""
        ran = run_cli("report", given, *arguments, *more)
        assert ran.status == 0, ran
        html = (tmp_path / "page.html").read_text()
        marks = [element.get("d") or "".join(element.itertext()) for element in parsed(html).iter() if pruned(element)]
        return text_of(html), marks

    _, expected = shown(artifact)
    assert expected
    plan = pass_for_plan(artifact, quick)
    assert "a plan does not give out which tokens it keeps. Give --ckpt" in shown(plan)[0]
    text, marks = shown(plan, "--ckpt", checkpoint)
    assert "source ids of the plan, built anew so that it gives out its source ids" in text
    assert marks == expected

    def fail(*given: object, **named: object) -> None:
        raise BackendError("it did not build")

    quick.setattr(export.validate.intermediates, "build_plan", fail)
    text, marks = shown(plan, "--ckpt", checkpoint)
    assert "the torch model of the checkpoint (a plan that gives out source ids failed: it did not build)" in text
    assert marks == expected


def pruned(element: ElementTree.Element) -> bool:
    return element.get("class") in (FRESH, GONE)


@pytest.fixture
def text_with(tiny_artifact: Path, run_cli: Command, tmp_path: Path) -> Callable[[dict[str, Any]], str]:
    """The page's text beside a bench result."""
    page, result = tmp_path / "page.html", tmp_path / "bench.json"

    def text(content: dict[str, Any]) -> str:
        result.write_text(json.dumps(content))
        ran = run_cli("report", tiny_artifact / "out.onnx", "-o", page, "--bench", result, "--synthetic")
        assert ran.status == 0
        assert "[5/5]" in ran.err
        return text_of(page.read_text())

    return text


def test_latencies_of_a_bench_result(tiny_artifact: Path, text_with: Callable[[dict[str, Any]], str]) -> None:
    content = bench_result(manifest_json(tiny_artifact / "out.json"))
    text = text_with(content)
    assert "1234.50 ms dense, 1234.50 ms pruned, p50; dense / pruned, call by call: undecided: too few calls" in text
    assert "made 2031-05-06 on " in text
    assert "cores 77" in text
    assert "other calls than those of the other sections" in text  # original.json was measured with other samples
    assert "Tokens stand in for GFLOPs, which the bench result lacks" in text
    tokens = content["measurement"]["cases"][0]["tokens"]["total"]
    assert f"dense (0){sum(tokens) / len(tokens):.0f}1234.50" in text


def test_gflops_of_a_bench_result(tiny_artifact: Path, text_with: Callable[[dict[str, Any]], str]) -> None:
    content = bench_result(manifest_json(tiny_artifact / "out.json"))
    content["summaries"] = [{"case": {"temperature": tau, "batch": 1}, "gflops": 4 / (1 + tau)} for tau in (0.0, TAU)]
    text = text_with(content)
    assert "3.00 times fewer GFLOPs there" in text
    assert "dense (0)41234.50" in text


def test_bench_result_of_the_same_samples(tiny_artifact: Path, text_with: Callable[[dict[str, Any]], str]) -> None:
    manifest = read_manifest(tiny_artifact / "out.json")
    content = bench_result(manifest.to_json())
    config = madtp.load(tiny_artifact / "tiny.pt").config
    samples = samples_of(manifest, tiny_artifact, config, DataOptions(synthetic=True))
    content["measurement"]["samples"]["sha256"] = samples_sha256(samples)
    text = text_with(content)
    assert "other calls" not in text
    assert "which are counted on the torch model: give --ckpt" in text


def test_refusals(tiny_artifact: Path, run_cli: Command, outputs: Outputs, tmp_path: Path) -> None:
    manifest, bench = tiny_artifact / "out.json", tmp_path / "bench.json"
    content = manifest_json(manifest)
    page = outputs / "page.html"
    outputs.earlier[page.name] = b'<meta name="generator" content="madtp-deploy report">'
    page.write_bytes(outputs.earlier[page.name])

    def refused(*arguments: object, says: str) -> None:
        run_cli("report", *arguments).refused(says)
        outputs.untouched()

    refused(tmp_path / "none.json", "-o", page, says="cannot read the manifest")
    refused(manifest, "-o", outputs / "none" / "page.html", says="It does not exist")
    refused(manifest, "-o", page, "--samples", tmp_path / "none", says="there is no folder")
    (tmp_path / "samples.json").write_text("[]")
    refused(manifest, "-o", page, "--samples", tmp_path, says="lists 0 samples")
    write_samples(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    refused(manifest, "-o", page, "--samples", tmp_path, says="there is no vocab.txt")
    refused(manifest, "-o", page, "--samples", tmp_path, "--synthetic", says="exclude each other")
    refused(manifest, "-o", page, "--temperature", "nan", says="finite")
    refused(manifest, "-o", page, "--temperature", 1, "--bench", bench, says="exclude each other")
    refused(manifest, "-o", page, "--bench", bench, says="cannot read the bench result")
    for changes, says in (
        ({"schema": 9}, "of schema 9"),
        ({"cases": []}, "malformed"),
        ({"ended": "interrupted"}, "malformed"),
        ({"partial": True, "ended": "interrupted"}, "is partial"),
        ({"artifact": bench_result({"parts": []})["measurement"]["artifact"]}, "of another artifact"),
    ):
        bench.write_text(json.dumps(bench_result(content, **changes)))
        refused(manifest, "-o", page, "--bench", bench, says=says)
    bench.write_text("[1]")
    refused(manifest, "-o", page, "--bench", bench, says="of schema None")


def test_damage_is_refused_and_inputs_are_not_overwritten(
    exported: tuple[Path, Path], run_cli: Command, tmp_path: Path
) -> None:
    manifest = exported[0].with_suffix(".json")
    run_cli("report", manifest, "-o", exported[0], "--synthetic").refused("would overwrite")
    exported[0].write_bytes(exported[0].read_bytes() + b"x")
    run_cli("report", manifest, "-o", tmp_path / "page.html", "--synthetic").refused("is not the file")
    assert not (tmp_path / "page.html").exists()


def test_interrupted_run_leaves_the_earlier_page(
    tiny_artifact: Path, run_cli: Command, outputs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "render", interrupt)
    ran = run_cli("report", tiny_artifact / "out.json", "-o", outputs / "new.html", "--synthetic")
    assert ran.status == 2
    assert "interrupted" in ran.err
    outputs.untouched()


def test_words_of_clip(task_artifacts: TaskArtifacts) -> None:
    manifest = read_manifest(task_artifacts["clip"] / "out.json")
    config = madtp.load(task_artifacts["clip"] / "tiny.pt").config
    samples = samples_of(manifest, task_artifacts["clip"], config, DataOptions())
    assert samples.texts[2] == "a red pagoda with orange roofs by a lake"
    names = token_names(samples.requests[2].ids, config, samples.processor, samples.texts[2])
    assert names == ["[start]", *["a", "red", "pagoda", "with", "orange", "roofs", "by", "a", "lake"], "[end]"]
