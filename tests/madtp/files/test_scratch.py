"""Folders that processes work in: gone with their process, however it ends, or when the next one works there."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from madtp.files.outputs import Kind, write_output
from madtp.files.scratch import MARK, PREFIX, remove_leftovers, scratch_folder
from madtp.files.staging import Staging
from tests.helpers.checkpoints import TINY, save_checkpoint, state_of
from tests.helpers.command_line import WITHOUT_TRACE, run_export
from tests.helpers.paths import ROOT

PATIENCE = 120  # seconds; far more than anything here takes
TEXT = Kind("text", lambda content: True)
WORKING = """
import sys, time
from pathlib import Path
from madtp.files.staging import Staging
with Staging(Path(sys.argv[1])) as staging:
    (staging.folder / "weights").write_bytes(b"0" * 1000)
    print("working", flush=True)
    sys.stdin.read()
    (staging.folder / Path(sys.argv[1]).name).write_text("finished")
    staging.commit([Path(sys.argv[1]).name])
"""


class Worker:
    """A process that stages an output until its standard input ends."""

    def __init__(self, target: Path) -> None:
        command = [sys.executable, "-c", WORKING, str(target)]
        self.popen = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.popen.stdout is not None
        assert self.popen.stdout.readline() == "working\n"

    def kill(self) -> None:
        self.popen.kill()
        self.popen.communicate()

    def finish(self) -> int:
        self.popen.communicate("")
        return self.popen.returncode


@pytest.fixture
def worker() -> Iterator[Callable[[Path], Worker]]:
    started: list[Worker] = []

    def start(target: Path) -> Worker:
        started.append(Worker(target))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def hidden(folder: Path) -> list[str]:
    ours = (path.name for path in folder.iterdir() if path.name != ".ses")  # ONNX Runtime's, in any temporary folder
    return sorted(name for name in ours if name.startswith((".", PREFIX)))


@pytest.mark.parametrize("target", ["out.plan", "other.json"])
def test_what_a_killed_run_left_goes_with_the_next_run_into_the_folder(
    target: str, worker: Callable[[Path], Worker], tmp_path: Path
) -> None:
    killed = worker(tmp_path / "out.plan")
    (left,) = hidden(tmp_path)
    assert (tmp_path / left / "weights").is_file()
    killed.kill()
    assert hidden(tmp_path) == [left]
    write_output(tmp_path / target, "new", TEXT)
    assert [path.name for path in tmp_path.iterdir()] == [target]


def test_runs_that_live_are_left_alone_and_finish(worker: Callable[[Path], Worker], tmp_path: Path) -> None:
    target = tmp_path / "out.plan"
    alive, stopped, killed = worker(target), worker(target), worker(target)
    os.kill(stopped.popen.pid, signal.SIGSTOP)
    killed.kill()
    assert len(hidden(tmp_path)) == 3
    write_output(target, "mine", TEXT)
    assert len(hidden(tmp_path)) == 2
    assert target.read_text() == "mine"
    os.kill(stopped.popen.pid, signal.SIGCONT)
    assert (alive.finish(), stopped.finish()) == (0, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["out.plan"]
    assert target.read_text() == "finished"


def test_one_process_may_stage_an_output_twice_at_once(tmp_path: Path) -> None:
    with Staging(tmp_path / "out.plan") as one, Staging(tmp_path / "out.plan") as other:
        assert one.folder.is_dir()
        assert other.folder.is_dir()
    assert not hidden(tmp_path)


def test_folders_of_others_stay(tmp_path: Path) -> None:
    kept = [tmp_path / ".out.plan.abcd1234", tmp_path / "madtp-abcd1234", tmp_path / "results"]
    for folder in kept:
        folder.mkdir()
        (folder / "mine").write_text("mine")
    (kept[2] / MARK).touch()  # no name that we give
    (tmp_path / ".link").symlink_to(kept[2])
    (kept[1] / MARK).symlink_to(kept[1] / "mine")
    (kept[0] / MARK).mkdir()
    remove_leftovers(tmp_path)
    assert all((folder / "mine").is_file() for folder in kept)
    remove_leftovers(tmp_path / "missing")


def test_a_removal_that_was_cut_short_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever dies while deleting leaves the mark: it goes last."""
    left = tmp_path / ".out.plan.abcd1234"
    (left / "deep").mkdir(parents=True)
    for name in (MARK, "a", "z"):
        (left / name).touch()
    unlink, seen = Path.unlink, []

    def watched(path: Path, missing_ok: bool = False) -> None:
        seen.append(path.name)
        assert (left / MARK).exists()
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", watched)
    remove_leftovers(tmp_path)
    assert sorted(seen) == ["a", "z"]
    assert not left.exists()


def test_scratch_folders_of_killed_processes_go_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import os, signal\nfrom madtp.files.scratch import scratch_folder\n"
        "with scratch_folder(): os.kill(os.getpid(), 9)"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, check=False)
    assert len(hidden(tmp_path)) == 1
    with scratch_folder(tmp_path) as folder:
        assert hidden(tmp_path) == [folder.name]


def test_names_as_long_as_can_be(tmp_path: Path) -> None:
    for name in ("x" * 255, "\N{GRINNING FACE}" * 63):
        write_output(tmp_path / name, "text", TEXT)
        assert (tmp_path / name).read_text() == "text"


def killed_export(folder: Path, scratch: Path, until: Callable[[], object], *command: object) -> psutil.Process | None:
    """Start an export and kill it once something is there; its builder, if it had one by then."""
    scratch.mkdir(exist_ok=True)
    environment = os.environ | {"TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + PATIENCE
    while not until():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = [child for child in psutil.Process(process.pid).children() if "export.engine.worker" in child.cmdline()]
    process.kill()
    process.communicate()
    return children[0] if children else None


def test_a_killed_export_leaves_nothing_once_the_next_has_run(
    traced: Path,
    quick: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The folder beside the output, the scratch folder, and the builder."""
    folder, scratch = tmp_path / "outputs", tmp_path / "scratch"
    folder.mkdir()
    checkpoint = save_checkpoint(tmp_path / "tiny.pt", state_of(TINY))
    arguments = (
        "--ckpt",
        checkpoint,
        "--engine",
        folder / "out.plan",
        "--backend",
        "tensorrt-rtx",
        "--plugins",
        "none",
    )
    begun = lambda: list(folder.glob(".out.plan.*/out.plan"))  # noqa: E731
    builder = killed_export(folder, scratch, begun, "-c", WITHOUT_TRACE, traced, *arguments)
    assert builder is not None
    psutil.wait_procs([builder], timeout=30)
    assert not builder.is_running() or builder.status() == psutil.STATUS_ZOMBIE
    assert hidden(folder)
    assert hidden(scratch)
    quick.setattr("tempfile.tempdir", str(scratch))
    with scratch_folder():  # as any later run has
        pass
    assert run_export(quick, "--ckpt", checkpoint, "--engine", folder / "other.onnx") == 0
    assert sorted(path.name for path in folder.iterdir()) == ["other.json", "other.onnx"]
    assert not hidden(scratch)
