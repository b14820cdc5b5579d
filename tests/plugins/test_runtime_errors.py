"""What the engine for C and C++ cannot use is refused in a sentence, and the next request is answered."""

import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from madtp.files.inputs import sha256
from tests.helpers.artifact_files import plan_artifact
from tests.helpers.made_up_engines import write_counting_engine
from tests.helpers.manifests import edit_manifest
from tests.helpers.op_library import stand_in
from tests.helpers.runtime_library import CEngine, CSession, EngineError, library

ROW = np.array([[1, 2, 1]], np.float32)
Change = Callable[[Path], object]  # of a folder with out.onnx and out.json


def edit(change: Callable[[dict[str, Any]], object]) -> Change:
    return lambda folder: edit_manifest(folder / "out.json", change)


def write(name: str, content: str | bytes) -> Change:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def replace(name: str, make: Callable[[Path], object]) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


def bind(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path has to be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def take_weights_from(location: str) -> Change:
    def change(folder: Path) -> None:
        model = onnx.load(str(folder / "out.onnx"))
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == "unit")
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location
        (folder / "out.onnx").write_bytes(model.SerializeToString())
        vouch(folder)

    return change


def vouch(folder: Path) -> None:
    """Let the manifest describe the graph that is there."""
    edit_manifest(folder / "out.json", lambda content: content["parts"][0].update(sha256=sha256(folder / "out.onnx")))


def truncate(folder: Path) -> None:
    content = (folder / "out.onnx").read_bytes()
    (folder / "out.onnx").write_bytes(content[: len(content) // 2])


def truncate_and_reseal(folder: Path) -> None:
    truncate(folder)
    vouch(folder)


MANIFEST_DEFECTS: dict[str, tuple[Change, str]] = {
    "missing": (lambda folder: (folder / "out.json").unlink(), "No such file"),
    "empty": (write("out.json", ""), "parse error"),
    "no JSON": (write("out.json", "{nonsense"), "parse error"),
    "not UTF-8": (write("out.json", b'{"schema": "\xff"}'), "parse error|UTF-8"),
    "signs that a terminal obeys": (
        edit(lambda content: content.update(task="\x1b[2J\u202e\ud83d\ude00")),
        r"'\\x1b\[2J\\u202e\U0001f600' is none of",
    ),
    "a list": (write("out.json", "[4]"), "it is no object"),
    "nested": (write("out.json", "[" * 100_000), "too deep"),
    "a name twice": (write("out.json", '{"schema": 4, "schema": 4}'), "'schema' stands twice"),
    "large": (write("out.json", b" " * (2**20 + 1)), "at most 1048576"),
    "another schema": (edit(lambda content: content.update(schema=99)), "schema"),
    "changed": (lambda f: write("out.json", (f / "out.json").read_text().replace("0.5", "0.6"))(f), "was changed"),
    "a number for a text": (edit(lambda content: content.update(task=1)), r"\$.task: it is no text"),
    "another task": (edit(lambda content: content.update(task="poetry")), "'poetry' is none of"),
    "another task's parts": (edit(lambda content: content.update(task="clip")), "not the parts of a clip model"),
    "another backend's artifact": (edit(lambda c: c["backend"].update(name="tensorrt")), "artifact and backend differ"),
    "a path": (edit(lambda content: content["parts"][0].update(artifact="../out.onnx")), "not a bare file name"),
    "no hash": (edit(lambda content: content["parts"][0].update(sha256="zz")), "no sha256"),
    "another rank": (edit(lambda content: content["parts"][0]["profile"]["x"][0].pop()), "profile and inputs differ"),
    "negative sizes": (edit(lambda content: content["parts"][0]["profile"]["x"][0].__setitem__(0, -1)), "whole number"),
    "huge sizes": (edit(lambda content: content["parts"][0]["profile"]["x"][2].__setitem__(0, 2**63)), "whole number"),
    "no requests at all": (
        edit(lambda content: [shape.__setitem__(0, 0) for shape in content["parts"][0]["profile"]["x"]]),
        "the shapes of 'x' in the profile are none of it",
    ),
    "a usual size beyond": (
        edit(lambda content: content["parts"][0]["profile"]["x"][1].__setitem__(0, 99)),
        "the shapes of 'x' in the profile are none of it",
    ),
    "no batch": (
        edit(lambda content: content["parts"][0]["inputs"][0]["shape"].__setitem__(0, "rows")),
        "none of its inputs has a batch",
    ),
    "another checkpoint": (edit(lambda c: c["parts"][0].update(checkpoint_sha256="0" * 64)), "another checkpoint"),
    "buckets that cannot say": (edit(lambda content: content["parts"][0].update(buckets=[])), "no output that says"),
    "a pipe": (replace("out.json", os.mkfifo), "It is a pipe"),
    "a device": (replace("out.json", lambda path: path.symlink_to("/dev/zero")), "It is a device"),
    "a folder": (replace("out.json", os.mkdir), "It is a folder"),
}
FILE_DEFECTS: dict[str, tuple[Change, str]] = {
    "missing": (lambda folder: (folder / "out.onnx").unlink(), "No such file"),
    "truncated": (truncate, "Its sha256 is another"),
    "another": (write("out.onnx", "something"), "Its sha256 is another"),
    "another vocabulary": (write("out.vocab.txt", "[CLS]\n"), "Its sha256 is another"),
    "a pipe": (replace("out.onnx", os.mkfifo), "It is a pipe"),
    "a device": (replace("out.onnx", lambda path: path.symlink_to("/dev/urandom")), "It is a device"),
    "a socket": (replace("out.onnx", bind), "It is a socket"),
    "no graph": (truncate_and_reseal, "It is truncated, or no ONNX model"),
    "weights elsewhere": (take_weights_from("../secret"), "takes weights from '../secret'"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest; not to be changed."""
    return write_counting_engine(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def session(made: Path) -> CSession:
    return CEngine(made).session()


@pytest.fixture
def damaged(made: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be damaged."""
    return shutil.copytree(made.parent, tmp_path / "damaged")


def assert_sentence(error: EngineError, code: str, words: str) -> None:
    assert error.code == code, error
    assert error.summary
    assert error.summary[0] not in "[{", error
    assert re.search(words, str(error), re.DOTALL), error


def assert_answers(session: CSession) -> None:
    found = session.infer("model", {"x": ROW}, temperature=1)
    np.testing.assert_array_equal(found["logits"], 2 * ROW)


@pytest.mark.parametrize("defect", MANIFEST_DEFECTS)
def test_a_manifest_that_is_none(damaged: Path, session: CSession, defect: str) -> None:
    change, words = MANIFEST_DEFECTS[defect]
    change(damaged)
    with pytest.raises(EngineError) as error:
        CEngine(damaged / "out.json")
    assert_sentence(error.value, "manifest", words)
    assert_answers(session)


@pytest.mark.parametrize("defect", FILE_DEFECTS)
def test_a_file_that_is_not_the_manifests(damaged: Path, session: CSession, defect: str) -> None:
    change, words = FILE_DEFECTS[defect]
    change(damaged)
    with pytest.raises(EngineError) as error:
        CEngine(damaged / "out.json")
    assert_sentence(error.value, "file", words)
    assert_answers(session)


def test_an_artifact_under_another_name(damaged: Path) -> None:
    (damaged / "out.onnx").rename(damaged / "other.onnx")
    (damaged / "out.json").rename(damaged / "other.json")
    with pytest.raises(EngineError) as error:
        CEngine(damaged / "other.onnx")
    assert_sentence(error.value, "manifest", "is the manifest of 'out.onnx', not of 'other.onnx'")


def test_a_file_that_onnx_runtime_cannot_load(damaged: Path) -> None:
    model = onnx.load(str(damaged / "out.onnx"))
    model.graph.node[0].op_type = "Poetry"
    (damaged / "out.onnx").write_bytes(model.SerializeToString())
    vouch(damaged)
    with pytest.raises(EngineError) as error:
        CEngine(damaged / "out.json")
    assert_sentence(error.value, "backend", "cannot load.*Poetry.*export again")


def test_outputs_that_are_not_the_manifests(damaged: Path) -> None:
    edit_manifest(damaged / "out.json", lambda content: content["parts"][0]["outputs"][0].update(shape=["batch", 4]))
    with pytest.raises(EngineError) as error:
        CEngine(damaged / "out.json").session().infer("model", {"x": ROW})
    assert_sentence(error.value, "backend", r"'logits' is float32 \[1, 3\].*lists float32 \[batch, 4\]")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"runtime_library": "/nowhere/libonnxruntime.so"}, "ONNX Runtime cannot be loaded.*/nowhere"),
        ({"runtime_library": "libm.so.6"}, "is not ONNX Runtime.*OrtGetApiBase"),
        ({"device": 1}, "cannot run on GPUs.*no CUDA provider"),
        ({"op_library": "/nowhere/ops.so"}, "cannot read the op library '/nowhere/ops.so'.*No such file"),
        ({"op_library": "/dev/zero"}, "It is a device"),
        ({"op_library": "/etc/passwd"}, "is not the op library of this project"),
    ],
)
def test_a_library_that_cannot_be_used(made: Path, session: CSession, options: dict[str, Any], words: str) -> None:
    with pytest.raises(EngineError) as error:
        CEngine(made, **options)
    assert_sentence(error.value, "library", words)
    assert_answers(session)


def test_an_op_library_of_another_version_is_not_loaded(made: Path, tmp_path: Path) -> None:
    other = stand_in(tmp_path / "ops.so", version="9.9.9")
    with pytest.raises(EngineError) as error:
        CEngine(made, op_library=str(other))
    assert_sentence(error.value, "library", "is of version '9.9.9'")


def test_an_artifact_that_needs_a_newer_onnx_runtime(damaged: Path) -> None:
    edit_manifest(damaged / "out.json", lambda content: content["backend"].update(oldest="99.1"))
    with pytest.raises(EngineError) as error:
        CEngine(damaged / "out.json")
    assert_sentence(error.value, "library", "is too old for this artifact.*99.1")


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_a_plan_does_not_run_in_onnx_runtime(tmp_path: Path, backend: str) -> None:
    with pytest.raises(EngineError) as error:
        CEngine(plan_artifact(tmp_path, backend))
    assert_sentence(error.value, "library", "TensorRT")


@pytest.mark.parametrize(
    ("inputs", "options", "words"),
    [
        ({}, {}, "the inputs of part model are none.*It takes x"),
        ({"x": ROW, "y": ROW}, {}, "are x, y"),
        ({"x": ROW, "temperature": ROW}, {}, "the temperature is an option"),
        ({"x": ROW.astype(np.int64)}, {}, "'x' is int64.*takes float32"),
        ({"x": ROW[0]}, {}, r"has shape \[3\].*built for \[1, 3\] to"),
        ({"x": ROW[:, :2]}, {}, r"has shape \[1, 2\]"),
        ({"x": ROW[:0]}, {}, r"has shape \[0, 3\]"),
        ({"x": ROW}, {"shapes": {"x": (2**62, 3)}}, "has shape"),
        ({"x": ROW}, {"shapes": {"x": (-1, 3)}}, r"has shape \[-1, 3\]"),
        ({"x": ROW}, {"shapes": {"x": (2**62,) * 9}}, "has shape"),
        ({"x": ROW}, {"temperature": float("nan")}, "the temperature is nan"),
        ({"x": ROW}, {"temperature": float("inf")}, "the temperature is inf"),
        ({"x": ROW}, {"temperature": -0.1}, "the temperature is -0.1"),
        ({"x": ROW}, {"batch": 5}, "the batch is 5.*up to 4 requests"),
        ({"x": ROW}, {"batch": -1}, "the batch is -1"),
        ({"x": ROW}, {"part": "decoder"}, "there is no part 'decoder'.*The artifact has model"),
        ({"x": ROW}, {"batch": 2**62}, "the batch is"),
        ({"x": ROW}, {"null": ("x",)}, "'x' has no data"),
    ],
)
def test_inputs_that_the_artifact_cannot_take(
    session: CSession, inputs: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(EngineError) as error:
        session.infer(options.pop("part", "model"), inputs, **options)
    assert_sentence(error.value, "input", words)
    assert_answers(session)


def test_numbers_that_are_none_spoil_their_own_request_alone(session: CSession) -> None:
    with pytest.raises(EngineError) as error:
        session.infer("model", {"x": np.array([[np.nan, 1, 1]], np.float32)})
    assert_sentence(error.value, "backend", "of part model is not finite")
    assert_answers(session)


def test_more_memory_than_there_is(session: CSession) -> None:
    with pytest.raises(EngineError) as error:
        session.infer("model", {"x": np.array([[1, 1, 1e14]], np.float32)})
    assert_sentence(error.value, "memory", "Memory is short|memory")
    assert_answers(session)


def test_a_session_answers_one_thread_at_a_time(session: CSession) -> None:
    rows = np.repeat(ROW, 20_000, axis=0)  # one by one: a while
    started, results = threading.Barrier(2), list[Any]()

    def ask() -> None:
        started.wait()
        try:
            results.append(session.infer("model", {"x": rows}, temperature=1)["logits"])
        except EngineError as error:
            results.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (refused,) = (result for result in results if isinstance(result, EngineError))
    (answered,) = (result for result in results if not isinstance(result, EngineError))
    assert_sentence(refused, "busy", "answering another thread.*a session for each thread")
    np.testing.assert_array_equal(answered, 2 * rows)
    assert_answers(session)


def test_sessions_of_one_engine_answer_side_by_side(made: Path) -> None:
    engine = CEngine(made)
    results = dict[int, bool]()

    def ask(number: int) -> None:
        own, rows = engine.session(), np.array([[number, 1, 1]] * 50, np.float32)
        results[number] = all(
            (own.infer("model", {"x": rows}, temperature=1)["logits"] == 2 * rows).all() for _ in range(20)
        )

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(4), True)


def test_a_forked_child_is_told_to_load_its_own(session: CSession) -> None:
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            session.infer("model", {"x": ROW})
        except EngineError as error:
            os.write(writer, json.dumps([error.code, error.summary]).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert json.loads(os.read(reader, 1000)) == ["input", "the engine was opened in another process"]
    os.close(reader)
    os.close(writer)
    assert_answers(session)


def test_a_library_that_is_a_pipe_is_not_waited_for(made: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "libonnxruntime.so")
    with pytest.raises(EngineError) as error:
        CEngine(made, runtime_library=str(tmp_path / "libonnxruntime.so"))
    assert_sentence(error.value, "library", "ONNX Runtime cannot be loaded.*It is a pipe")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 0}, "the size of the options is 0"),
        ({"device": 7}, "device is 7, no device"),
        ({"threads": -1}, "the number of threads is negative"),
    ],
)
def test_options_that_say_nothing_are_refused(made: Path, options: dict[str, int], words: str) -> None:
    with pytest.raises(EngineError) as error:
        CEngine(made, **options)
    assert_sentence(error.value, "input", words)


def test_null_is_refused_everywhere() -> None:
    api = library()
    for call in (
        lambda: api.madtp_engine_load(None, None, None),
        lambda: api.madtp_session_open(None, None),
        lambda: api.madtp_session_infer(None, None, None, 0, None, None),
        lambda: api.madtp_outputs_at(None, 0, None),
        lambda: api.madtp_outputs_find(None, None, None),
    ):
        error = call()
        assert b"is NULL" in api.madtp_error_summary(error)
        api.madtp_error_free(error)
    for name in ("error", "engine", "session", "outputs"):
        getattr(api, f"madtp_{name}_free")(None)
