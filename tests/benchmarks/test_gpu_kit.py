"""The GPU kit, packed and rehearsed here as it will run elsewhere; and what it says where it cannot run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from benchmarks.kit import pack, report, run
from benchmarks.kit.files import read_json, write_json
from benchmarks.kit.plan import MINUTES, PROBE, STAGES, Stage
from benchmarks.kit.stage import StageRun, WrongMachineError
from benchmarks.kit.stages import onnx_runtime, probe
from export.engine.plugin_build import SM_VARIABLE, architectures
from tests.helpers import bare_environment
from tests.helpers.paths import CARRIED, ROOT, golden_folders

SHORT_PATH = "/usr/bin:/bin"


@dataclass(frozen=True)
class Elsewhere:
    """A packed kit, and a Python that has what a GPU machine has."""

    kit: Path
    python: Path

    def run(self, results: Path, *arguments: str, prefix: tuple[str, ...] = (), **environment: str) -> Any:
        """run.sh in an empty environment, from another folder."""
        command = [*prefix, "bash", str(self.kit / "run.sh"), str(results), *arguments]
        clean = {"PATH": SHORT_PATH, "PYTHON": str(self.python), "HOME": str(results.parent), **environment}
        return subprocess.run(command, env=clean, cwd="/", capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Elsewhere:
    """Packed once for all workers of a test run; not to be changed."""
    base = tmp_path_factory.getbasetemp()
    root = base if worker_id == "master" else base.parent
    kit, environment = root / "gpu-kit", root / "bare"
    with FileLock(root / "gpu-kit.lock"):
        if not kit.is_dir():
            python = f"{sys.version_info.major}.{sys.version_info.minor}"
            with pytest.MonkeyPatch.context() as patch:  # the kernels that are there, not some compiled for it alone
                patch.setenv(SM_VARIABLE, ",".join(map(str, architectures())))
                packed = pack.pack(kit, python, flash_attention_3=False, say=lambda _: None)
            assert any("FlashAttention-3" in text for text in packed.left_out)
            bare_environment.make(environment)
    return Elsewhere(kit, environment / "bin" / "python")


@pytest.fixture
def copied(elsewhere: Elsewhere, tmp_path: Path) -> Elsewhere:
    """A kit to be changed; its libraries, packages and recordings are links."""
    kit = tmp_path / "kit"
    large = ("lib", "site", "golden")
    shutil.copytree(elsewhere.kit, kit, ignore=shutil.ignore_patterns(*large))
    for name in large:
        if (elsewhere.kit / name).is_dir():
            (kit / name).symlink_to(elsewhere.kit / name)
    return Elsewhere(kit, elsewhere.python)


def no_network() -> tuple[str, ...]:
    """A prefix that runs a command without any network, where that is permitted."""
    tried = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False)
    return ("unshare", "-n") if tried.returncode == 0 else ()


def complete(results: Path) -> dict[str, Any]:
    """results.json, which has to be there and whole; nothing may be left half written."""
    assert not [path for path in results.iterdir() if path.name.startswith(".")]
    content = json.loads((results / "results.json").read_text())
    assert (results / "results.md").read_text() == report.render(
        content, read_json(run.ROOT / "benchmarks/gpu/static.json")
    )
    return content


def small_folders() -> list[Path]:
    """What a rehearsal replays: the cases that the sources carry are among the recorded ones, where those are."""
    folders = [folder for folder in golden_folders() if folder.name != "base"]
    return folders if folders == [CARRIED] else [folder for folder in folders if folder != CARRIED]


def test_rehearsal_passes_where_nothing_of_ours_is_installed(elsewhere: Elsewhere, tmp_path: Path) -> None:
    """Every stage, from outside the checkout, in an empty environment, without a network."""
    done = elsewhere.run(tmp_path / "results", "--rehearse", prefix=no_network())
    assert done.returncode == 0, done.stdout + done.stderr
    content = complete(tmp_path / "results")
    assert [(stage["name"], stage["state"]) for stage in content["stages"]] == [(s.name, "passed") for s in STAGES]
    found = {stage["name"]: stage["result"] for stage in content["stages"]}
    recorded = {(case["folder"], case["case"]) for case in found["parity"]["cases"]}
    assert {folder for folder, _ in recorded} == {f"{folder.parent.name}/{folder.name}" for folder in small_folders()}
    if not torch.cuda.is_available():
        assert found["probe"]["call_without_a_driver"] in probe.NO_DRIVER
    assert (tmp_path / "results" / "results.md").read_text().startswith("# A rehearsal on a CPU: nothing here was")
    assert len(found["model"]["batches"]["1"]["candidates"]) == 5
    for packed in (found["packed"], found["onnx_runtime"]["packed"]):
        assert packed["exact"]["same_counts"] == packed["exact"]["requests"] > 0
        assert [goal["met"] for goal in packed["goals"]] == [True]  # nothing waits
    assert found["packed"]["batches"]["2"]["forced_overflow"]["noticed"] == 3
    assert set(found["onnx_runtime"]["ran"]) == {f"{op} on CPUExecutionProvider" for op in onnx_runtime.OPS}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused(elsewhere: Elsewhere, tmp_path: Path) -> None:
    done = elsewhere.run(tmp_path / "results")
    assert done.returncode == 2
    reason = "is a build for CPUs" if torch.version.cuda is None else "no GPU can be used"
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert [stage["state"] for stage in complete(tmp_path / "results")["stages"]] == ["refused"]


def test_without_torch_it_is_refused(elsewhere: Elsewhere, tmp_path: Path) -> None:
    empty = bare_environment.venv
    empty.create(tmp_path / "empty", with_pip=False)
    done = elsewhere.run(tmp_path / "results", PYTHON=str(tmp_path / "empty/bin/python"))
    assert done.returncode == 2
    assert "cannot import torch" in done.stderr
    assert "PYTHON=/path/to/python3" in done.stderr
    assert "Traceback" not in done.stderr
    complete(tmp_path / "results")


def test_a_missing_module_of_ours_is_named(copied: Elsewhere, tmp_path: Path) -> None:
    (copied.kit / "madtp" / "models" / "pruning.py").unlink()
    done = copied.run(tmp_path / "results", "--rehearse")
    assert done.returncode == 2
    assert "No module named 'madtp.models.pruning'" in done.stderr


def test_a_library_without_its_functions_is_named(copied: Elsewhere, tmp_path: Path) -> None:
    libraries = copied.kit / "lib"
    elsewhere = libraries.resolve()
    libraries.unlink()
    libraries.mkdir()
    shutil.copy(elsewhere / "libmadtp_kernels_host.so", libraries)
    source = tmp_path / "empty.c"
    source.write_text("void nothing(void) {}\n")
    subprocess.run(["gcc", "-shared", "-o", libraries / "libmadtp_kernels.so", source], check=True)
    done = copied.run(tmp_path / "results", "--rehearse")
    assert done.returncode == 2
    assert "lacks madtp_aligned_attention," in done.stderr


def test_another_python_is_refused(copied: Elsewhere, tmp_path: Path) -> None:
    about = read_json(copied.kit / "kit.json")
    write_json(copied.kit / "kit.json", {**about, "python": "3.99"})
    done = copied.run(tmp_path / "results", "--rehearse")
    assert done.returncode == 2
    assert "brings packages for 3.99" in done.stderr
    done = copied.run(tmp_path / "others", PYTHON="/no/python")
    assert done.returncode == 2
    assert "'/no/python' is missing" in done.stderr


@pytest.fixture
def stage_given(tmp_path: Path) -> StageRun:
    return StageRun(tmp_path / "stage.json", rehearse=False, deadline=time.monotonic() + 60)


class Driver:
    """torch.cuda as on some GPU."""

    def __init__(self, capability: tuple[int, int], error: str = "") -> None:
        self.capability, self.error = capability, error

    def init(self) -> None:
        if self.error:
            raise RuntimeError(self.error)

    def get_device_capability(self) -> tuple[int, int]:
        return self.capability

    def get_device_name(self) -> str:
        return "NVIDIA Something"


@pytest.mark.parametrize(
    ("driver", "sm", "says"),
    [
        (Driver((8, 9)), [90], "compute capability 8.9, and the kit holds code for 9.0. Pack one for it: MADTP_SM=89"),
        (Driver((9, 0)), [80, 86], "holds code for 8.0, 8.6"),
        (Driver((9, 0), "The NVIDIA driver on your\nsystem is too old (found version 12020)"), [90], "too old (found"),
    ],
)
def test_a_gpu_that_it_was_not_packed_for_is_refused(
    monkeypatch: pytest.MonkeyPatch, driver: Driver, sm: list[int], says: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch, "cuda", driver)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: torch.ones(1))
    with pytest.raises(WrongMachineError) as caught:
        probe._gpu({"sm": sm})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_refused(
    monkeypatch: pytest.MonkeyPatch, stage_given: StageRun, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(probe.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(WrongMachineError, match="has 0 MB left"):
        probe.run(stage_given)
    # A file may have no bytes at all: what the first write meets on a full disk.
    done = elsewhere.run(tmp_path / "results", "--rehearse", prefix=("bash", "-c", 'ulimit -f 0; exec "$@"', "limited"))
    assert done.returncode == 2, done.stderr
    assert "cannot write the results to" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "results").iterdir())


def slow_kit(kit: Elsewhere) -> None:
    """Its second stage takes for ever, and starts a process that does, too."""
    (kit.kit / "benchmarks/kit/stages/calls.py").write_text(
        "import os, subprocess, sys, time\n"
        "def run(stage):\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    stage.save(child=child.pid, stage=os.getpid())\n"
        "    time.sleep(600)\n"
    )


@pytest.fixture
def running(copied: Elsewhere, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path, int]]:
    """A rehearsal in its second stage, its results, and a process that the stage has started."""
    slow_kit(copied)
    results = tmp_path / "results"
    command = ["bash", str(copied.kit / "run.sh"), str(results), "--rehearse"]
    clean = {"PATH": SHORT_PATH, "PYTHON": str(copied.python), "HOME": str(tmp_path)}
    options: Any = {"env": clean, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, **options)  # where modules of the same names lie
    deadline = time.monotonic() + 120
    while not (results / "calls.json").is_file() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    assert process.poll() is None, process.communicate()
    child = json.loads((results / "calls.json").read_text())["child"]
    yield process, results, child
    process.kill()


def is_gone(pid: int) -> bool:
    """Within a few seconds."""
    for _ in range(50):
        try:
            if Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


def test_a_termination_leaves_the_results_so_far(running: tuple[subprocess.Popen[str], Path, int]) -> None:
    process, results, child = running
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "interrupted by SIGTERM" in errors
    content = complete(results)
    assert [stage["state"] for stage in content["stages"]] == ["passed"]
    assert content["cut_short"] == "interrupted by SIGTERM"
    assert is_gone(child)


def test_a_kill_leaves_the_results_so_far(running: tuple[subprocess.Popen[str], Path, int]) -> None:
    process, results, child = running
    process.kill()
    process.wait(timeout=30)
    assert [stage["state"] for stage in complete(results)["stages"]] == ["passed"]
    os.kill(child, signal.SIGKILL)  # of a group whose leader is dead with the run
    assert is_gone(read_json(results / "calls.json")["stage"])


@pytest.fixture
def stages(copied: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a kit's stages, to be written anew; `run` runs those."""
    slow_kit(copied)
    monkeypatch.setattr(run, "ROOT", copied.kit)
    monkeypatch.setattr(run.sys, "executable", str(copied.python))
    monkeypatch.setenv("PYTHONPATH", str(copied.kit))
    return copied.kit / "benchmarks" / "kit" / "stages"


def test_overlong_and_broken_stages_do_not_stop_the_next(stages: Path, tmp_path: Path) -> None:
    (stages / "parity.py").write_text("import os\ndef run(stage): os.abort()\n")
    (stages / "model.py").write_text("def run(stage): raise ValueError('no\\nmodel')\n")
    (stages / "precision.py").write_text("def run(stage):\n    stage.save(seen=1)\n    return False\n")
    (stages / "graphs.py").write_text("def run(stage): return True\n")
    names = ("calls", "parity", "model", "precision", "graphs")
    results = run.Results(tmp_path, rehearse=False, minutes=1)
    assert run.run_all(results, [Stage(name, 8 if name == "calls" else 30, "") for name in names]) == 1
    content = complete(tmp_path)
    states = {stage["name"]: (stage["state"], stage["why"]) for stage in content["stages"]}
    assert states["calls"] == ("overlong", "it took more than the 8 s that it had")
    assert states["parity"] == ("crashed", f"it ended with signal {int(signal.SIGABRT)}")
    assert states["model"] == ("failed", "ValueError: no model")
    assert states["precision"] == ("failed", "")
    assert states["graphs"] == ("passed", "")
    assert is_gone(content["stages"][0]["result"]["child"])


def test_stages_that_the_time_does_not_reach_are_left_open(stages: Path, tmp_path: Path) -> None:
    late = run.Results(tmp_path, rehearse=False, minutes=0.01)
    assert run.run_all(late, STAGES[:2]) == run.OPEN
    assert [stage["state"] for stage in complete(tmp_path)["stages"]] == ["not begun", "not begun"]


def test_a_stage_that_lacks_its_tool_is_skipped(stages: Path, tmp_path: Path) -> None:
    (stages / "graphs.py").write_text(
        "from benchmarks.kit.stage import SKIPPED\n"
        "def run(stage):\n    stage.save(error='no tool')\n    return SKIPPED\n"
    )
    lacking = run.Results(tmp_path, rehearse=False, minutes=1)
    assert run.run_all(lacking, [Stage("graphs", 30, "")]) == 0
    assert [(stage["state"], stage["why"]) for stage in complete(tmp_path)["stages"]] == [("skipped", "no tool")]


def test_a_stage_may_use_what_others_left_and_not_what_others_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    def ran(stage: Stage, folder: Path, rehearse: bool, seconds: float) -> dict[str, Any]:
        given.append(seconds)
        return {"name": stage.name, "state": "passed", "seconds": 0.0, "why": "", "result": {}}

    monkeypatch.setattr(run, "run_stage", ran)
    assert run.run_all(run.Results(tmp_path, rehearse=False, minutes=2), [Stage(name, 40, "") for name in "abc"]) == 0
    assert given == pytest.approx([40, 80, 120], abs=1)
    given.clear()
    assert run.run_all(run.Results(tmp_path, rehearse=False, minutes=0.5), [Stage(name, 40, "") for name in "ab"]) == 0
    assert given == pytest.approx([30, 30], abs=1)


def test_stages_share_the_time() -> None:
    assert sum(stage.seconds for stage in STAGES) == 60 * MINUTES


@pytest.mark.parametrize("name", ["results.json", "results.md", f"{STAGES[0].name}.json", f"{STAGES[-1].name}.log"])
def test_no_file_of_a_run_is_there_when_it_begins(name: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError):
        run.Results(tmp_path, rehearse=True, minutes=1).begin()
    assert (tmp_path / name).read_text() == "mine"
    (tmp_path / name).unlink()
    run.Results(tmp_path, rehearse=True, minutes=1).begin()


def test_results_of_another_run_are_not_overwritten(elsewhere: Elsewhere, tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (results / "results.json").write_text("{}")
    done = elsewhere.run(results, "--rehearse")
    assert done.returncode == 2
    assert "holds the results of another run already" in done.stderr
    assert [path.name for path in results.iterdir()] == ["results.json"]
    (tmp_path / "file").write_text("")
    done = elsewhere.run(tmp_path / "file", "--rehearse")
    assert done.returncode == 2
    assert "is not a folder" in done.stderr
    for minutes in ("0", "inf", "nan", "-1"):
        assert elsewhere.run(tmp_path / "other", f"--minutes={minutes}").returncode == 2
    assert not (tmp_path / "other").exists()


def test_a_kit_in_a_folder_that_python_cannot_import_from_is_refused(copied: Elsewhere, tmp_path: Path) -> None:
    moved = copied.kit.rename(tmp_path / "a:b")
    done = Elsewhere(moved, copied.python).run(tmp_path / "results", "--rehearse")
    assert done.returncode == 2
    assert "a folder with a colon in its name" in done.stderr


def test_the_probe_comes_first() -> None:
    assert STAGES[0] == PROBE
