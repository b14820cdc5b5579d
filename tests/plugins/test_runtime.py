"""The engine for C and C++ gives what Python's runners give, to the last bit, however requests are batched."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from export.artifact.reader import read_manifest
from export.engine.op_library import OP_LIBRARY
from export.runtime.artifact import Artifact
from export.runtime.runner import RunnerOptions
from madtp.tasks.requests import Runner
from tests.helpers.artifacts import TaskArtifacts
from tests.helpers.made_up_engines import write_bucket_engine, write_counting_engine, write_half_engine
from tests.helpers.op_library import real_library
from tests.helpers.runtime_library import CEngine, EngineError

RNG = np.random.default_rng(7)
ROWS = np.array([[1, 10, 3], [2, 20, 1], [4, 40, 2], [5, 50, 4], [6, 60, 1]], np.float32)


def runners(path: Path, library: str | Path | None = "none") -> dict[str, Runner]:
    artifact = Artifact.open(path)
    return artifact.open_runners(RunnerOptions(threads=1, execution=artifact.execution(library)))


def drawn(engine_inputs: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """Random pixels, ids and masks of these shapes."""
    integers = {name: RNG.integers(1, 30, shape) for name, shape in engine_inputs.items() if "image" not in name}
    pixels = {name: RNG.random(shape, np.float32) for name, shape in engine_inputs.items() if "image" in name}
    masks = {name: np.ones_like(value) for name, value in integers.items() if name.endswith("mask")}
    return pixels | integers | masks


def assert_same(found: Mapping[str, NDArray[Any]], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.numpy().dtype, name
        np.testing.assert_array_equal(found[name], value.numpy(), err_msg=name)


@pytest.mark.parametrize("kernels", ["bodies", "kernels"])
def test_outputs_are_those_of_the_python_runner(tiny_artifact: Path, kernels: str) -> None:
    library = "none" if kernels == "bodies" else str(real_library().path)
    engine = CEngine(tiny_artifact / "out.json", op_library=library)
    assert (f"kernels of {OP_LIBRARY.file}" in engine.execution) == (kernels == "kernels")
    session, model = engine.session(), runners(tiny_artifact / "out.json", library)["model"]
    for batch, words in ((1, 5), (3, 9), (8, 2)):
        shapes = {"image0": (batch, 3, 32, 32), "image1": (batch, 3, 32, 32)}
        inputs = drawn(shapes | {"input_ids": (batch, words), "attention_mask": (batch, words)})
        for temperature in (None, 0.0, 0.7):
            tau = engine.temperature if temperature is None else temperature
            expected = model.run({name: torch.from_numpy(value) for name, value in inputs.items()}, tau)
            assert_same(session.infer("model", inputs, temperature, batch=batch), expected)


def test_the_parts_of_a_task_follow_each_other(task_artifacts: TaskArtifacts) -> None:
    path = task_artifacts["vqa"] / "out.json"
    session, parts = CEngine(path, op_library="none").session(), runners(path)
    image, words = (1, 3, 32, 32), (1, 7)
    inputs = drawn({"image": image, "input_ids": words, "attention_mask": words})
    encoded = session.infer("encoder", inputs)
    tau = Artifact.open(path).manifest.temperature
    assert_same(encoded, parts["encoder"].run({name: torch.from_numpy(value) for name, value in inputs.items()}, tau))
    layers, _, _, heads, _, size = encoded["source_cache"].shape
    step = {
        "input_ids": np.full((1, 2, 1), 9),
        "rows": np.array([[0, 1]]),
        "past": np.zeros((layers, 2, 1, 2, heads, 0, size), np.float32),
        "source_cache": encoded["source_cache"],
    }
    for _ in range(2):
        written = session.infer("decoder", step)
        assert_same(written, parts["decoder"].run({name: torch.from_numpy(value) for name, value in step.items()}, 0.0))
        step["past"] = written["present"]


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> CEngine:
    return CEngine(write_counting_engine(tmp_path_factory.mktemp("dynamic")))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> CEngine:
    folder = tmp_path_factory.mktemp("packed")
    return CEngine(write_counting_engine(folder, layout="packed", batching="per-request"))


def test_a_dynamic_artifact_is_asked_one_by_one_unless_told_otherwise(dynamic: CEngine) -> None:
    assert (dynamic.usual_batch, dynamic.max_batch) == (1, 4)
    session = dynamic.session()
    rows = np.where([True, True, False], ROWS, 2).astype(np.float32)  # all of one length
    found = session.infer("model", {"x": rows})
    np.testing.assert_array_equal(found["states"][:, :, 0], np.repeat(rows[:, :1], 2, axis=1))
    assert session.statistics == (1, 5, 0, 0)
    together = session.infer("model", {"x": rows}, batch=4)
    assert session.statistics == (2, 7, 0, 0)
    for name, value in found.items():
        np.testing.assert_array_equal(value, together[name])


def test_lengths_that_differ_cannot_be_put_together_in_a_dynamic_artifact(dynamic: CEngine) -> None:
    with pytest.raises(EngineError, match=r"(?s)'states' has another length.*one request at a time") as error:
        dynamic.session().infer("model", {"x": ROWS})
    assert error.value.code == "input"
    together = dynamic.session().infer("model", {"x": ROWS[:4]}, batch=4)
    assert together["states"].shape == (4, 4, 1)


def test_a_packed_artifact_runs_its_usual_batch_and_fills_up_lengths_with_zeros(packed: CEngine) -> None:
    session = packed.session()
    found = session.infer("model", {"x": ROWS}, temperature=1)
    assert session.statistics == (1, 3, 0, 0)
    np.testing.assert_array_equal(found["logits"], 2 * ROWS)
    np.testing.assert_array_equal(found["vision_token_counts"][:, 0], [*ROWS[:, 0], *ROWS[:, 1]])
    lengths = [3, 3, 4, 4, 1]  # of its batch of two
    expected = np.array(
        [[value] * length + [0] * (4 - length) for value, length in zip(ROWS[:, 0], lengths, strict=True)]
    )
    np.testing.assert_array_equal(found["states"][:, :, 0], expected)
    np.testing.assert_array_equal(found["cache"][0], expected)


def test_a_batch_that_has_no_room_runs_on_the_next_bucket(tmp_path: Path) -> None:
    path = write_bucket_engine(tmp_path)
    assert len(read_manifest(path).parts[0].buckets or ()) == 2
    session = CEngine(path).session()
    runs = overflows = 0
    for needed, rows, temperature, room, tried in (
        (1, 1, 0.5, 2, 1),
        (3, 2, 0.5, 4, 2),
        (9, 2, 0.5, 1000, 3),
        (1, 3, 0.5, 4, 1),
        (9, 3, 0.5, 1000, 2),
        (1, 4, 0.5, 1000, 1),
        (3, 1, 0.5, 1000, 2),  # the second takes two at least
        (1, 1, 0.0, 1000, 1),  # dense: nothing else has room
    ):
        x = np.array([[7, 8, needed]] * rows, np.float32)
        found = session.infer("model", {"x": x}, temperature)
        assert found.keys() == {"logits"}
        np.testing.assert_array_equal(found["logits"], x + room)
        runs, overflows = runs + tried, overflows + tried - 1
    assert session.statistics == (8, runs, overflows, 0)
    with pytest.raises(EngineError, match="room for everything says that there was not enough"):
        session.infer("model", {"x": np.array([[0, 0, 2000]], np.float32)})


def test_fewer_rows_than_the_artifact_takes_run_beside_copies(tmp_path: Path) -> None:
    engine = CEngine(write_counting_engine(tmp_path, batch=(3, 3, 4)))
    for rows in (ROWS[1:2], ROWS[:2], ROWS[:3]):
        found = engine.session().infer("model", {"x": rows}, temperature=0, batch=4)
        np.testing.assert_array_equal(found["logits"], rows)
        np.testing.assert_array_equal(found["vision_token_counts"][:, 0], [*rows[:, 0], *rows[:, 1]])
        np.testing.assert_array_equal(found["cache"][0], np.repeat(rows[:, :1], int(rows[:, 2].max()), axis=1))


def test_float16_is_given_and_taken_as_float32(tmp_path: Path) -> None:
    session = CEngine(write_half_engine(tmp_path)).session()
    values = np.array([[0.1, -6e-8, 1.7e4], [1e-7, 65504 / 2, 1 + 2**-11]], np.float32)
    expected = (2 * values.astype(np.float16)).astype(np.float32)
    for given in (values, values.astype(np.float16)):
        found = session.infer("model", {"x": given})["y"]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


def test_a_manifest_of_schema_3_is_read(tmp_path: Path) -> None:
    path = write_counting_engine(tmp_path)
    content = path.read_text().replace('"schema": 4', '"schema": 3')
    path.write_text(content)
    np.testing.assert_array_equal(CEngine(path).session().infer("model", {"x": ROWS[:1]}, 0.0)["logits"], ROWS[:1])


def test_an_artifact_is_opened_by_its_own_name_and_through_links(tmp_path: Path) -> None:
    path = write_counting_engine(tmp_path / "folder")
    (tmp_path / "link.onnx").symlink_to(path.with_suffix(".onnx"))
    (tmp_path / "link.json").symlink_to(path)
    for name in (path.with_suffix(".onnx"), tmp_path / "link.json"):
        assert CEngine(name).task == "nlvr"
