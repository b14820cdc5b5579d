"""What is known about an artifact without timing it: its identity, and its host synchronisations."""

from typing import Any

from export.artifact.manifest import Manifest
from export.runtime.artifact import Artifact
from madtp.ops.spec import TOKEN_COMPACT


def identity(artifact: Artifact) -> dict[str, Any]:
    """The `artifact` of a saved measurement; the version is that of the installed runtime."""
    manifest, backend = artifact.manifest, artifact.backend
    return {
        "path": str(artifact.path.resolve()),
        "task": manifest.task,
        "precision": manifest.precision,
        "layout": manifest.layout,
        "batching": manifest.batching,
        "backend": {"name": backend.name, "version": backend.version},
        "temperature": manifest.temperature,
        "files": manifest.part_hashes,
    }


def synchronisations(manifest: Manifest) -> dict[str, int]:
    """How often the host waits for the device in one run of each part; from the manifest, not measured.

    In TensorRT's dynamic layout every TokenCompact layer copies its token count to the host, and the outputs are copied
    at the end. ONNX Runtime on a CPU has no device to wait for.
    """
    if not manifest.is_plan:
        return {part.name: 0 for part in manifest.parts}
    sizes = manifest.layout == "dynamic"
    return {
        part.name: 1 + (part.custom_nodes.get(TOKEN_COMPACT.onnx_name, 0) if sizes else 0) for part in manifest.parts
    }
