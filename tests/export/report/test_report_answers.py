"""What a page says of answers, of doubtful latencies and in the dark."""

import base64
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import export.report.measure as measure
import madtp
from export.artifact.reader import read_manifest
from export.report.answers import Answer, _rank, answers_to
from export.report.plots import DARK, LIGHT, latency_plot, pareto_plot, tokens_plot
from export.runtime.artifact import Artifact
from export.samples.artifact import ArtifactSamples, artifact_samples
from madtp.data.samples import read_sample
from madtp.errors import InputError
from madtp.tasks.requests import run_request
from tests.helpers.artifacts import TaskArtifacts
from tests.helpers.checkpoints import TAU
from tests.helpers.command_line import Ran
from tests.helpers.manifests import edit_manifest, manifest_json
from tests.helpers.pages import bench_result, parsed, text_of

Command = Callable[..., Ran]
TIMES = {0.0: [10.0, 11.0, 12.0], 0.5: [5.0, 6.0, 30.0], 1.0: [4.0, 5.0, 6.0]}


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "LATENCY_SECONDS", 0.0)


def asked(folder: Path, chosen: list[int], change: Callable[[ArtifactSamples], ArtifactSamples]) -> list[list[Answer]]:
    """Answers of an artifact to the demo's samples."""
    manifest = read_manifest(folder / "out.json")
    config = madtp.load(folder / "tiny.pt").config
    samples = change(artifact_samples(manifest, folder, config, None, synthetic=False, demos=6))
    return answers_to(config, Artifact.open(folder / "out.json").open_runners(), samples, chosen, TAU, 1)


def test_a_judgement_has_its_probability_and_is_right_or_wrong(tiny_artifact: Path) -> None:
    def labelled(samples: ArtifactSamples) -> ArtifactSamples:
        request = samples.prepared.requests[0]
        requests = [replace(request, label=label) for label in (1, 0, None)]
        return replace(samples, prepared=replace(samples.prepared, requests=requests))

    (of_true,), (of_false,), (of_none,) = asked(tiny_artifact, [0, 1, 2], labelled)
    manifest = read_manifest(tiny_artifact / "out.json")
    config = madtp.load(tiny_artifact / "tiny.pt").config
    samples = artifact_samples(manifest, tiny_artifact, config, None, synthetic=False, demos=6)
    runners = Artifact.open(tiny_artifact / "out.json").open_runners()
    outputs = run_request(config, runners, measure.alone(samples.prepared.requests[0], config, 1), TAU)
    false, true = outputs["logits"][0].softmax(dim=0).tolist()
    assert of_true.text == of_false.text == ("true" if true > false else "false")
    assert of_true.score == f"probability {max(true, false):.3f}"
    assert {of_true.right, of_false.right} == {True, False}
    assert of_true.right == (of_true.text == "true")
    assert (of_true.label, of_false.label, of_none.label, of_none.right) == ("“true”", "“false”", "", None)


def test_an_answer_in_words_is_compared_with_all_that_are_known(task_artifacts: TaskArtifacts) -> None:
    (found,) = asked(task_artifacts["vqa"], [0], lambda samples: samples)[0]
    assert (found.right, found.label) == (None, "")
    assert 0 < float(found.score.removeprefix("probability ")) <= 1
    for known, right in (((found.text.upper(),), True), (("no", found.text), True), (("no", "no"), False)):
        ((answer,),) = asked(
            task_artifacts["vqa"], [0], lambda samples, known=known: replace(samples, answers=[known] * 6)
        )
        assert answer.right == right
    assert answer.label == "“no”"


def test_a_caption_stands_beside_the_known_one(task_artifacts: TaskArtifacts) -> None:
    ((answer,),) = asked(task_artifacts["caption"], [2], lambda samples: samples)
    assert (answer.what, answer.right) == ("caption", None)
    assert answer.label == "“a red pagoda with orange roofs by a lake”"
    assert re.match(r"probability of a word 0\.\d\d", answer.score)


@pytest.mark.parametrize("task", ["retrieval", "clip"])
def test_ranks_of_text_and_image(task: str, task_artifacts: TaskArtifacts) -> None:
    of_text, of_image = asked(task_artifacts[task], [3], lambda samples: samples)[0]
    assert re.fullmatch(r"number [1-6] of 6 texts", of_text.text)
    assert re.fullmatch(r"number [1-6] of 6 images", of_image.text)
    assert of_text.score == of_image.score
    assert of_text.right == (of_text.text == "number 1 of 6 texts")


def test_only_better_ones_come_first() -> None:
    assert _rank("", [0.2, 0.9, 0.5, 0.4], 2, "texts").text == "number 2 of 4 texts"
    assert _rank("", [0.2, 0.9, 0.5, 0.5], 1, "texts").right
    assert _rank("", [0.2], 0, "texts").right is None
    behind, first = (_rank("", [0.9, 0.9, 0.5, 0.5], own, "texts") for own in (2, 1))
    assert (behind.text, behind.right) == ("number 3 to 4, with equal scores, of 4 texts", False)
    assert (first.text, first.right) == ("number 1 to 2, with equal scores, of 4 texts", None)


@pytest.mark.parametrize("task", ["nlvr", "vqa", "caption", "retrieval", "clip"])
@pytest.mark.parametrize("temperature", [None, 0.0])
def test_every_example_of_a_page_has_its_answer(
    task: str,
    temperature: float | None,
    tiny_artifact: Path,
    task_artifacts: TaskArtifacts,
    run_cli: Command,
    tmp_path: Path,
) -> None:
    folder = tiny_artifact if task == "nlvr" else task_artifacts[task]
    manifest = folder / "out.json"
    if temperature == 0:  # nothing is pruned, and nothing is shown to be
        manifest = shutil.copytree(folder, tmp_path / "dense") / "out.json"
        edit_manifest(manifest, lambda content: content.update(temperature=0.0))
    at = TAU if temperature is None else temperature
    ran = run_cli("report", manifest, "-o", tmp_path / "page.html", "--temperature", at)
    assert ran.status == 0, ran.err
    root = parsed((tmp_path / "page.html").read_text())
    examples = list(root.iter("article"))
    assert examples
    for example in examples:
        lines = [element for element in example.iter("p") if (element.get("class") or "").startswith("answer")]
        assert len(lines) == (2 if task in ("retrieval", "clip") else 1)
        for line in lines:
            said = "".join(line.itertext())
            marks = {"answer yes": "✓ right", "answer no": "✗ wrong"}
            assert said.lstrip().startswith(marks.get(line.get("class") or "", "○ no"))
            assert re.search(r"\((score|probability) ", said)
        assert [element for element in example.iter() if element.tag.endswith("svg")]


def test_answers_of_words_that_mean_nothing_are_said_to(tiny_artifact: Path, run_cli: Command, tmp_path: Path) -> None:
    assert run_cli("report", tiny_artifact / "out.json", "-o", tmp_path / "page.html", "--synthetic").status == 0
    assert "The answers mean little" in text_of((tmp_path / "page.html").read_text())


def test_caveats_and_doubts_of_a_bench_result(tiny_artifact: Path, run_cli: Command, tmp_path: Path) -> None:
    manifest, result, page = manifest_json(tiny_artifact / "out.json"), tmp_path / "bench.json", tmp_path / "page.html"

    def page_of(**changes: Any) -> tuple[str, list[str]]:
        """Its text, and what its plots say."""
        content = bench_result(manifest, **changes)
        rng = np.random.default_rng(0)
        for case in content["measurement"]["cases"]:
            case["milliseconds"] = rng.lognormal(2, 1.5, 200).tolist()
            for name in ("device_milliseconds", "waited_milliseconds", "yardstick_milliseconds"):
                case[name] = None
            case["yardstick_repetitions"] = None
        content["measurement"]["yardstick"] = None
        result.write_text(json.dumps(content))
        ran = run_cli("report", tiny_artifact / "out.onnx", "-o", page, "--bench", result, "--synthetic")
        assert ran.status == 0, ran.err
        html = page.read_text()
        return text_of(html), [image.get("alt") or "" for image in parsed(html).iter("img")]

    half = "Caveat: other processes took 50 % of the CPUs while this was measured."
    text, alts = page_of(neighbours=0.5, caveats=["the room was hot"])
    assert text.count(half) == 3  # at the top, and wherever latencies are shown
    assert text.count("Caveat: the room was hot.") == 3
    assert "dense / pruned, call by call: undecided: too noisy" in text
    assert any(f"{TAU:g}: " in alt and "(dense / pruned undecided: too noisy)" in alt for alt in alts)
    assert "times as fast" not in text
    ran = run_cli("report", tiny_artifact / "out.onnx", "-o", page, "--bench", result, "--synthetic")
    for said in (half.replace("Caveat", "note").rstrip("."), "note: the room was hot", "undecided: too noisy"):
        assert said in " ".join(ran.out.split())
    assert "note: latencies are of other calls than tokens are: of " in ran.out
    quiet, _ = page_of(neighbours=0.0)
    assert half not in quiet


def svg(uri: str) -> str:
    return base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,")).decode()


def test_plots_follow_the_scheme_of_the_page() -> None:
    counts = np.array([[5, 4, 3], [6, 4, 2]])
    plots = [
        latency_plot(TIMES, 0.5, "milliseconds", {0.5: "2.00x (1.90 to 2.10)", 1.0: "undecided: too noisy"}),
        tokens_plot("vision", counts, counts),
        pareto_plot({0.0: 3.0, 0.5: 2.0, 1.0: 1.0}, TIMES, 0.5, "GFLOPs", "milliseconds"),
    ]
    assert "1: 5.00 ms (dense / pruned undecided: too noisy)" in plots[0].alt
    for plot in plots:
        light, dark = svg(plot.light), svg(plot.dark)
        assert LIGHT.text in light
        assert DARK.text in dark
        for colour in (LIGHT.text, LIGHT.back, LIGHT.dense, LIGHT.pruned, LIGHT.default, "#000000", "black", "white"):
            assert colour not in dark, "unreadable in the dark"
        assert "#000000" not in light


def test_known_answers_of_a_sample(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    entry: dict[str, Any] = {"question": "what", "image": "a.png"}
    for given, expected in ((None, ()), ("a sky", ("a sky",)), (["sky", "a sky"], ("sky", "a sky"))):
        assert read_sample(tmp_path, 0, entry | {"answer": given}, "vqa").answers == expected
    assert read_sample(tmp_path, 0, entry, "vqa").answers == ()
    with pytest.raises(InputError, match="has the answer 7"):
        read_sample(tmp_path, 0, entry | {"answer": 7}, "vqa")
    assert read_sample(tmp_path, 0, {"image": "a.png", "caption": "a sky"}, "caption").answers == ("a sky",)
