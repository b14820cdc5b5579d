"""From ONNX to a TensorRT plan. The build runs in a process of its own (`export/engine/worker.py`).

That keeps the builder's gigabytes and its aborts out of ours, makes Ctrl-C immediate, and is what lets us set the
library path that the parser of TensorRT for RTX needs.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from export.engine.backends import Backend
from export.errors import BackendError
from export.graph.custom_nodes import custom_nodes
from madtp.files.scratch import scratch_folder
from madtp.files.staging import write_errors
from madtp.ops.spec import ALL_OPS

WORKER = "export.engine.worker"
LOG_LINES = 12  # of the builder, shown when it fails


@dataclass(frozen=True)
class BuildSpec:
    """The worker's task.

    Attributes:
        module: the backend's Python module.
        profile: {input: [min, opt, max] shapes}.
        plugin_layers: how many layers of each plugin the network has to have.
        embed_plugins: whether the plan embeds the library.
        shown: values inside the network that become outputs too.
    """

    module: str
    onnx: str
    plan: str
    timing_cache: str
    profile: dict[str, list[list[int]]]
    plugin_library: str | None = None
    plugin_layers: dict[str, int] = field(default_factory=dict)
    embed_plugins: bool = False
    shown: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class BuildResult:
    """The worker's result.

    Attributes:
        plugin_layers: plugin -> number of layers.
        timing_cache_reused: whether there was one before.
        shown: values inside that became outputs; constants, which the parser folds, do not.
    """

    layers: int
    plugin_layers: dict[str, int]
    timing_cache_reused: bool
    shown: list[str]


def build_plan(
    backend: Backend,
    source: Path,
    plan: Path,
    timing_cache: Path,
    profile: Mapping[str, list[list[int]]],
    on_phase: Callable[[str], None],
    plugin_library: Path | None = None,
    embed_plugins: bool = False,
    shown: Iterable[str] = (),
) -> BuildResult:
    """Build `plan` from the ONNX file `source`.

    Args:
        timing_cache: read if it exists, written after the build.
        on_phase: called with the builder's phases as they begin.
        plugin_library: has a plugin for every custom node of `source`; None: it has no such nodes.
        shown: values inside the network, by their ONNX names, that become outputs too. TensorRT fuses nothing across
            them, so such a plan is for validation, not for shipping.

    Raises:
        BackendError: the parser or builder failed; the message ends with its log.
        OSError: the plan could not be written.
        OutputError: nor could the builder's log.
    """
    spec = BuildSpec(
        backend.module,
        str(source),
        str(plan),
        str(timing_cache),
        dict(profile),
        None if plugin_library is None else str(plugin_library),
        custom_nodes(source),
        embed_plugins,
        sorted(shown),
    )
    with write_errors(Path(tempfile.gettempdir())), scratch_folder() as scratch:
        spec_path = scratch / "spec.json"
        spec_path.write_text(json.dumps(asdict(spec)))
        with (scratch / "log").open("w+", errors="replace") as log:
            worker = subprocess.Popen(
                [sys.executable, "-P", "-m", WORKER, str(spec_path)],  # -P: not what lies where the user stands
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=_worker_environment(backend, scratch),
            )
            try:
                result = _follow(worker, on_phase)
            finally:
                worker.kill()
                worker.wait()
            log.seek(0)
            lines = log.read().splitlines()
    if "errno" in result:
        raise OSError(result["errno"], os.strerror(result["errno"]))
    if "layers" not in result:
        reports, others = _by_plugins(lines)
        raise BackendError(
            f"{backend.name} {backend.version} did not build the engine",
            "\n".join(reports + others[-LOG_LINES:]) or f"Its process ended with status {worker.returncode}.",
            "Fix what the plugin reports; --plugins none builds without plugins."
            if reports
            else "Report this with the log above; --engine out.onnx builds for ONNX Runtime meanwhile.",
        )
    return BuildResult(**result)


def _by_plugins(log: Sequence[str]) -> tuple[list[str], list[str]]:
    """Messages of plugins in the builder's log, each once, and the other lines."""
    # through TensorRT's logger, or where the library found none, straight to standard error
    beginnings = tuple(f"{letter}{spec.onnx_name}: " for spec in ALL_OPS for letter in ("[E] ", ""))
    reports = dict.fromkeys(line.removeprefix("[E] ") for line in log if line.startswith(beginnings))
    return list(reports), [line for line in log if not line.startswith(beginnings)]


def _follow(worker: "subprocess.Popen[str]", on_phase: Callable[[str], None]) -> dict[str, Any]:
    """Read the worker's lines (one JSON object each) until it ends; the last `result` is the answer."""
    result: dict[str, Any] = {}
    assert worker.stdout is not None
    for line in worker.stdout:
        try:
            message = json.loads(line)
        except json.JSONDecodeError:
            continue  # a library's own print
        if "phase" in message:
            on_phase(message["phase"])
        result = message.get("result", result)
    return result if worker.wait() == 0 else {key: value for key, value in result.items() if key == "errno"}


def _worker_environment(backend: Backend, scratch: Path) -> dict[str, str]:
    """The worker's environment.

    The RTX parser opens `libtensorrt_rtx.so`, but the wheel ships only `libtensorrt_rtx.so.1`; without a library of
    that name on the path the parser aborts the process.
    """
    environment = dict(os.environ)
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    if backend.name == "tensorrt-rtx":
        environment["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"
        package = find_spec("tensorrt_rtx_libs")
        for folder in (package.submodule_search_locations or []) if package else []:
            (scratch / "libtensorrt_rtx.so").symlink_to(Path(folder) / "libtensorrt_rtx.so.1")
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(
            filter(None, [str(scratch), environment.get("LD_LIBRARY_PATH")])
        )
    return environment
