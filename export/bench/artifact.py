"""An artifact, opened to be timed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.artifact.manifest import check_files, open_manifest
from export.errors import BackendError
from export.runtime.artifact import model_config, open_parts, runtime
from export.runtime.runner import CheckedRunner, RunnerOptions
from madtp.data.samples import Config
from madtp.ops.spec import TOKEN_COMPACT
from madtp.tasks.requests import Runner, Runners


@dataclass(frozen=True)
class Described:
    """An artifact whose files are those of its manifest; `path` is the manifest's."""

    path: Path
    manifest: Mapping[str, Any]
    config: Config

    @property
    def folder(self) -> Path:
        """The folder of the files."""
        return self.path.parent


def describe(path: Path) -> Described:
    """Read a manifest, or that of an artifact, and check the files.

    Raises:
        ManifestError: artifact and manifest do not belong together, or are damaged.
    """
    source, manifest = open_manifest(path)
    check_files(manifest, source.parent)
    return Described(source, manifest, model_config(manifest, source))


Opener = Callable[[Described, RunnerOptions], dict[str, Runner]]


def open_described(described: Described, options: RunnerOptions) -> dict[str, Runner]:
    """Runners of all parts.

    Raises:
        BackendError: a plan, and no GPU here can run it; or the runtime refuses a file.
    """
    backend = runtime(described.manifest)
    if not backend.can_run:
        raise BackendError(
            f"'{described.manifest['artifact']}' cannot run here",
            f"It is a plan of {backend.name}: {backend.reason}.",
            "Measure it on a machine with its GPU, or measure an .onnx of the same checkpoint here.",
        )
    return open_parts(described.manifest, described.folder, backend, options)


def runs_on_gpu(described: Described) -> bool:
    """Whether it is a plan."""
    return bool(described.manifest["backend"]["name"] != "onnxruntime")


def uncaptured(runners: Runners) -> list[str]:
    """Parts of a plan that TensorRT cannot replay as CUDA graphs; known after each has run."""
    return [name for name, runner in runners.items() if isinstance(runner, CheckedRunner) and not runner.capturable]


def identity(described: Described) -> dict[str, Any]:
    """What a saved measurement says of its artifact; the version is that of the installed runtime."""
    manifest = described.manifest
    backend = runtime(manifest)
    return {
        "path": str(described.path.resolve()),
        "task": manifest["task"],
        "precision": manifest["precision"],
        "layout": manifest["layout"],
        "batching": manifest["batching"],
        "backend": {"name": backend.name, "version": backend.version},
        "temperature": manifest["temperature"],
        "files": {part["artifact"]: part["sha256"] for part in manifest["parts"]},
    }


def synchronisations(manifest: Mapping[str, Any]) -> dict[str, int]:
    """How often the host waits for the device in one run of each part; from the manifest, not measured.

    In TensorRT's dynamic layout every TokenCompact layer copies its token count to the host, and the outputs are copied
    at the end. ONNX Runtime on a CPU has no device to wait for.
    """
    if manifest["backend"]["name"] == "onnxruntime":  # on a CPU
        return {part["name"]: 0 for part in manifest["parts"]}
    sizes = manifest["layout"] == "dynamic"
    return {
        part["name"]: 1 + (part["custom_nodes"].get(TOKEN_COMPACT.onnx_name, 0) if sizes else 0)
        for part in manifest["parts"]
    }
