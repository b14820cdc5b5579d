"""The kit's stage of programs in C++: what counts as an equal answer, and what its page says. The rehearsal runs it."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks.kit.embedded_report import embedded_section
from benchmarks.kit.stage import SKIPPED, StageRun
from benchmarks.kit.stages import embedded

REQUEST = {"images": ["left.png", "right.png"], "sentence": "a digit", "ids": [2, 5, 3]}
RIGHT = "true (probability of true 0.881)\n    tokens vision 9 7, text 3 3\n    runs kernels on a GPU\n"


class Session:
    """Answers with a probability of 0.881."""

    def __init__(self, *_: Any) -> None:
        pass

    def run(self, inputs: dict[str, torch.Tensor], temperature: float) -> dict[str, torch.Tensor]:
        assert inputs["image0"].shape == (1, 3, 8, 8)
        assert inputs["input_ids"].tolist() == [[2, 5, 3]]
        assert temperature == 0.5
        counts = {"vision_token_counts": torch.tensor([[9, 7], [9, 7]]), "text_token_counts": torch.tensor([[3, 3]])}
        return {"logits": torch.tensor([[0.0, 2.0]]), **counts}


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StageRun:
    (tmp_path / "samples").mkdir()
    for name in ("left.png", "right.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "samples" / name)
    (tmp_path / "requests.json").write_text(json.dumps([REQUEST]))
    (tmp_path / "out.json").write_text(json.dumps({"temperature": 0.5, "preprocessing": {"image": {"size": 8}}}))
    monkeypatch.setattr(embedded, "FOLDER", tmp_path)
    monkeypatch.setattr(embedded, "OnnxSession", Session)
    monkeypatch.setattr(embedded, "take_onnxruntime", lambda *_: None)
    monkeypatch.setattr(embedded, "measure_throughput", lambda _: True)
    return StageRun(tmp_path / "found.json", True, time.monotonic() + 60)


def printing(status: int, out: str, error: str = "") -> Any:
    return lambda *_: subprocess.CompletedProcess([], status, out, error)


@pytest.mark.parametrize(
    ("change", "passed"),
    [(("", ""), True), (("0.881", "0.890"), False), (("9 7", "9 8"), False), (("tokens", "sum"), False)],
)
def test_an_answer_is_equal_with_its_tokens(
    stage: StageRun, monkeypatch: pytest.MonkeyPatch, change: tuple[str, str], passed: bool
) -> None:
    monkeypatch.setattr(embedded, "program", printing(0, RIGHT.replace(*change) if change[0] else RIGHT))
    assert embedded.run(stage) is passed


def test_a_machine_without_the_decoders_is_skipped(stage: StageRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "program", printing(127, "", "error while loading shared libraries: libpng16.so"))
    assert embedded.run(stage) == SKIPPED
    assert "libpng16.so" in stage.found["error"]


def test_the_page_shows_both_answers(stage: StageRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "program", printing(0, RIGHT))
    embedded.run(stage)
    stage.save(threads=4, requests_per_second={"1": 99.5})
    page = embedded_section("embedded", stage.found)
    assert "| 0.881 | 0.881 | vision 9 7, text 3 3 | yes |" in page
    assert "| 1 | 99.5 |" in page
    assert "not finite" in embedded_section("", {"answers": [{**stage.found["answers"][0], "python": None}]})
