"""`python -m export validate`: hold an existing artifact to the checkpoint that it was made from."""

import tempfile
from pathlib import Path

import madtp
from export.backends import choose_backend
from export.check import Validation, validate_runner
from export.manifest import check_artifact, manifest_path, read_manifest, tensor_infos
from export.options import Range
from export.pipeline import Progress
from export.runner import CheckedRunner, OnnxRunner, PlanRunner, Runner
from export.samples import load_samples, synthetic_samples
from export.trace import save_onnx, trace_model


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
    progress.stage("reading manifest and checkpoint")
    manifest = read_manifest(manifest_path(artifact))
    check_artifact(manifest, artifact, checkpoint)
    model = madtp.load(checkpoint, config)
    part = manifest["parts"][0]
    sizes = part["profile"]["input_ids"]
    batch = Range(*(shape[0] for shape in sizes))
    sample_set = synthetic_samples(model.config) if synthetic else load_samples(samples, checkpoint, model.config)
    backend = choose_backend(manifest["backend"]["name"] if artifact.suffix == ".plan" else "auto", artifact.suffix)
    with tempfile.TemporaryDirectory() as scratch:
        runner: Runner
        if backend.can_run:
            runner = PlanRunner(artifact, backend) if artifact.suffix == ".plan" else OnnxRunner(artifact)
        else:
            progress.stage("tracing: no GPU here can run the plan")
            source = Path(scratch) / "model.onnx"
            save_onnx(trace_model(model), source, external_data=True)
            runner = OnnxRunner(source)
        progress.stage("checking answers, tokens and latency")
        checked = CheckedRunner(runner, tensor_infos(part["inputs"]), part["profile"])
        result = validate_runner(model, checked, sample_set, manifest["temperature"], batch, progress.detail)
    result.validated = "artifact" if backend.can_run else "onnx"
    return result
