"""What a session may be shared by: threads, with the images they ask about; not processes, which are told so."""

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export import Session
from export.errors import BackendError
from export.runtime.plan_runner import PlanRunner
from madtp.data.images import check_image
from madtp.data.preprocess import image_tensor
from madtp.errors import InputError
from tests.helpers.artifacts import TaskArtifacts

THREADS = 4
SECONDS = 60  # until a child that hangs is killed
# A program of a user: it asks, forks, and the child does what is named on the command line.
PROGRAM = """
import os, signal, sys
import torch
from PIL import Image
from export import Session
from madtp.errors import InputError

torch.set_num_threads(2)
manifest, picture, act = sys.argv[1:]
image = Image.open(picture)
session = Session(manifest)
expected = session.caption([image])
(torch.ones(2000, 2000) @ torch.ones(2000, 2000)).softmax(0)  # so that torch has its threads
child = os.fork()
if child == 0:
    signal.alarm(40)
    if act == "ask":
        try:
            session.caption([image])
        except InputError as error:
            print(error)
    if act == "reopen":
        with Session(manifest) as own:
            print(own.caption([image]) == expected)
            (torch.ones(2000, 2000) + 1).softmax(0)
    if act == "close":
        session.close()
        del session
    sys.exit(7)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(session.caption([image]) == expected)
sys.exit(status)
"""

# Another, whose child is the first to import what opens sessions; torch and its threads were there before.
LATE_PROGRAM = """
import os, signal, sys
import torch
from PIL import Image

torch.set_num_threads(2)
(torch.ones(2000, 2000) @ torch.ones(2000, 2000)).softmax(0)
child = os.fork()
if child == 0:
    signal.alarm(40)
    from export import Session

    with Session(sys.argv[1]) as session:
        print(len(session.caption([Image.open(sys.argv[2])])))
        (torch.ones(2000, 2000) + 1).softmax(0)  # as a larger model's images are put together
    sys.exit(7)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Large enough that decoding it takes longer than a thread's turn."""
    pixels = np.random.default_rng(5).integers(0, 256, (1500, 1600, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", quality=95)
    return tmp_path / "photo.jpg"


def at_once(ask: Callable[[int], Any], threads: int = THREADS) -> list[Any]:
    """What several threads get that begin together."""
    barrier = threading.Barrier(threads)

    def begin(number: int) -> Any:
        barrier.wait()
        return ask(number)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(begin, range(threads)))


@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "webp", "tiff"])
def test_threads_decode_an_opened_image_once(ending: str, picture: Path, tmp_path: Path) -> None:
    path = tmp_path / f"photo.{ending}"
    if ending != "jpg":
        Image.open(picture).resize((700, 600)).save(path)
    expected = image_tensor(Image.open(path), 32)
    for _ in range(4):
        lazy = Image.open(path)
        for pixels in at_once(lambda _, lazy=lazy: image_tensor(check_image(lazy), 32)):
            assert (pixels == expected).all()


def test_an_image_in_memory_is_made_ready_by_one_thread_at_a_time() -> None:
    """Pillow puts a new palette in place when the image is first read, in pieces that others must not see."""
    from madtp.data import images

    image = Image.new("P", (4, 4))
    image.putpalette(range(48))
    with images._decoding.lock, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(check_image, image)
        assert not waiting.done()
        assert image.palette is not None
        assert image.palette.dirty
        images._decoding.lock.release()
        assert waiting.result(SECONDS) is image
        images._decoding.lock.acquire()


def test_threads_share_a_session_and_its_images(task_artifacts: TaskArtifacts, picture: Path) -> None:
    with Session(task_artifacts["caption"] / "out.json", threads=1) as session:
        expected = session.caption([Image.open(picture)], beams=1, max_length=7)
        for _ in range(4):
            lazy = Image.open(picture)
            products = at_once(lambda _, lazy=lazy: session.caption([lazy], beams=1, max_length=7))
            assert products == [expected] * THREADS


def test_a_child_can_decode_although_a_thread_of_its_parent_was_decoding(picture: Path) -> None:
    from madtp.data import images

    with images._decoding.lock:  # as a thread would hold it
        child = os.fork()
        if child == 0:
            threading.Timer(30, os._exit, (1,)).start()
            with Image.open(picture) as image:
                check_image(image)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("act", ["ask", "reopen", "close", "nothing"])
def test_a_fork_of_a_program_with_a_session_ends(
    act: str, task_artifacts: TaskArtifacts, picture: Path, tmp_path: Path
) -> None:
    """In a program of its own, as a child that hangs would keep the test from ending."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(task_artifacts["caption"] / "out.json"), str(picture), act]
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "2"}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS * 2, env=environment)
    assert ran.returncode == 7, ran
    said = {"ask": "the session was opened in another process\n", "reopen": "True\n"}
    assert said.get(act, "") in ran.stdout
    assert "Open a session in each process." in ran.stdout or act != "ask"
    assert ran.stdout.endswith("True\n")  # the parent's session is as it was


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells whether a process was forked")
def test_a_child_that_imports_everything_itself_ends(
    task_artifacts: TaskArtifacts, picture: Path, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(LATE_PROGRAM)
    command = [sys.executable, str(program), str(task_artifacts["caption"] / "out.json"), str(picture)]
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "2"}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS * 2, env=environment)
    assert (ran.returncode, ran.stdout) == (7, "1\n"), ran


def ask_inherited(session: Session, image: Image.Image, answers: Connection) -> None:
    try:
        session.caption([image])
    except InputError as error:
        answers.send(str(error))


def test_a_child_of_multiprocessing_is_told(task_artifacts: TaskArtifacts, picture: Path) -> None:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    with Session(task_artifacts["caption"] / "out.json", threads=1) as session:
        child = context.Process(target=ask_inherited, args=(session, Image.open(picture), sender))
        child.start()
        assert receiver.poll(SECONDS)
        assert "opened in another process" in receiver.recv()
        child.join(SECONDS)
        assert child.exitcode == 0


def test_a_session_is_not_sent_to_another_process(task_artifacts: TaskArtifacts) -> None:
    import pickle

    with (
        Session(task_artifacts["caption"] / "out.json", threads=1) as session,
        pytest.raises(InputError, match="cannot be sent to another process"),
    ):
        pickle.dumps(session)


def test_threads_take_turns_at_a_plan_and_one_closes_it() -> None:
    """The plan's runner around a stand-in for TensorRT's context, which runs one request at a time."""
    busy = threading.Lock()

    class Context:
        def infer(self, given: dict[str, Any]) -> dict[str, Any]:
            assert busy.acquire(blocking=False), "two requests at once"
            threading.Event().wait(0.02)
            busy.release()
            return {"y": given["x"]}

        def deactivate(self) -> None:
            assert busy.acquire(blocking=False), "freed while it ran"

    runner = object.__new__(PlanRunner)
    runner.__dict__ |= {
        "_path": Path("out.plan"),
        "_process": os.getpid(),
        "_lock": threading.Lock(),
        "_runner": Context(),
        "_kernels": None,
        "_kept_alive": [],
        "_input_names": {"x"},
        "_float16": set(),
    }
    import torch

    ran = at_once(lambda number: runner.run({"x": torch.tensor([number])}, 0.0)["y"].item())
    assert ran == list(range(THREADS))
    runner.close()
    with pytest.raises(BackendError, match="is closed"):
        runner.run({"x": torch.tensor([0])}, 0.0)
