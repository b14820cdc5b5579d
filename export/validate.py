"""`python -m export validate`: hold an existing artifact to the checkpoint that it was made from."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import madtp
from export.backends import Backend, choose_backend
from export.check import Validation, validate_runner
from export.errors import BackendError, PluginError
from export.manifest import check_artifact, manifest_path, read_manifest, tensor_infos
from export.options import Range, check_suffix
from export.pipeline import Progress, check_samples
from export.runner import CheckedRunner, OnnxRunner, PlanRunner, Runner
from export.synthetic import synthetic_samples
from export.trace import save_onnx, trace_model
from madtp.files import write_errors
from madtp.samples import load_samples


def validate_artifact(
    artifact: Path, checkpoint: Path, config: Path | None, samples: Path | None, synthetic: bool, progress: Progress
) -> Validation:
    """Compare an artifact with torch, on the samples of a folder, the demo's, or generated ones.

    A plan that no GPU of this machine can execute is not run; the ONNX traced from the checkpoint is compared instead
    and `Validation.validated` says so.

    Raises:
        ManifestError: artifact, manifest and checkpoint do not belong together.
        MadtpError: unusable checkpoint, configuration or samples.
    """
    check_suffix(artifact)
    progress.stage("reading manifest and checkpoint")
    manifest = read_manifest(manifest_path(artifact))
    check_artifact(manifest, artifact, checkpoint)
    model = madtp.load_nlvr(checkpoint, config)
    part = manifest["parts"][0]
    batch, text = (Range(*(shape[dim] for shape in part["profile"]["input_ids"])) for dim in (0, 1))
    if synthetic:
        sample_set = synthetic_samples(model.config, batch, text)
    else:
        sample_set = load_samples(samples, checkpoint, model.config)
    check_samples(sample_set, model.config, batch, text)
    backend = _runtime(manifest, artifact)
    with tempfile.TemporaryDirectory() as scratch:
        runner: Runner
        if backend.can_run:
            runner = _load(artifact, backend, manifest)
        else:
            progress.stage("tracing: no GPU here can run the plan")
            source = Path(scratch) / "model.onnx"
            with write_errors(source):
                save_onnx(trace_model(model), source, external_data=True)
            runner = OnnxRunner(source)
        progress.stage("checking answers, tokens and latency")
        checked = CheckedRunner(runner, tensor_infos(part["inputs"]), part["profile"])
        result = validate_runner(model, checked, sample_set, manifest["temperature"], batch, progress.detail)
    result.validated = "artifact" if backend.can_run else "onnx"
    return result


def _runtime(manifest: Mapping[str, Any], artifact: Path) -> Backend:
    """The backend that the artifact was made with; where it is not installed or has no GPU, one that cannot run."""
    made = manifest["backend"]
    try:
        return choose_backend(made["name"] if artifact.suffix == ".plan" else "auto", artifact.suffix)
    except BackendError as error:
        return Backend(made["name"], made["version"], error.what, can_run=False)


def _load(artifact: Path, backend: Backend, manifest: Mapping[str, Any]) -> Runner:
    library = manifest["plugins"]["library"]
    embedded = library is not None and library["embedded"]
    beside = None if library is None or embedded else artifact.parent / library["file"]
    try:
        return PlanRunner(artifact, backend, beside, embedded) if artifact.suffix == ".plan" else OnnxRunner(artifact)
    except PluginError:
        raise
    except Exception as error:  # the runtimes have no common type for a file that they refuse
        raise BackendError(
            f"{backend.name} {backend.version} cannot load '{artifact}'",
            (str(error).strip().splitlines() or [type(error).__name__])[0],
            "It was made with another version or for another GPU; export again on this machine.",
        ) from error
