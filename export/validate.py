"""`python -m export validate`: hold an existing artifact to the checkpoint that it was made from."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import madtp
from export.artifact import open_parts, runtime
from export.check import Validation, validate_runners
from export.manifest import check_artifact, manifest_path, read_manifest, tensor_infos
from export.options import check_suffix
from export.pipeline import Progress, check_samples
from export.profile import batch_and_text
from export.runner import CheckedRunner, OnnxRunner
from export.synthetic import synthetic_samples
from export.trace import save_onnx, trace_part
from madtp.files import write_errors
from madtp.parts import Part, parts_of
from madtp.samples import load_samples
from madtp.tasks import Runner


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
    model = madtp.load(checkpoint, config)
    parts = parts_of(model)
    batch, text = batch_and_text(manifest["parts"])
    if synthetic:
        sample_set = synthetic_samples(model.config, batch, text)
    else:
        sample_set = load_samples(samples, checkpoint, model.config)
    check_samples(sample_set, model.config, batch, text)
    backend = runtime(manifest)
    with tempfile.TemporaryDirectory() as scratch:
        if backend.can_run:
            runners = open_parts(manifest, artifact.parent, backend)
        else:
            progress.stage("tracing: no GPU here can run the plan")
            runners = _traced_parts(parts, manifest, Path(scratch), progress)
        progress.stage("checking answers, tokens and latency")
        result = validate_runners(
            model.config, parts, runners, sample_set, manifest["temperature"], batch, progress.detail
        )
    result.validated = "artifact" if backend.can_run else "onnx"
    return result


def _traced_parts(
    parts: Mapping[str, Part], manifest: Mapping[str, Any], scratch: Path, progress: Progress
) -> dict[str, Runner]:
    """The parts, traced anew, in ONNX Runtime."""
    runners: dict[str, Runner] = {}
    for entry in manifest["parts"]:
        progress.detail(entry["name"])
        source = scratch / f"{entry['name']}.onnx"
        with write_errors(source):
            save_onnx(trace_part(parts[entry["name"]]), source, external_data=True)
        runners[entry["name"]] = CheckedRunner(OnnxRunner(source), tensor_infos(entry["inputs"]), entry["profile"])
    return runners
