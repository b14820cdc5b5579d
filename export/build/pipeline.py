"""The main job: prepare -> trace -> build -> validate -> commit. Every stage makes a value and changes no other's.

`export` is public, as `export.export`: see docs/python.md.
"""

import gc
import shutil
import time
from dataclasses import dataclass, replace

from calibration.ranges import write_ranges
from export.artifact.manifest import Manifest
from export.artifact.outputs import check_export, stale_files
from export.artifact.reader import manifest_path
from export.artifact.seal import dump_manifest, sealed
from export.build.built_artifact import BuiltArtifact, build_plans, keep_onnx
from export.build.files import ranges_name, vocabulary_name
from export.build.manifest import manifest_of
from export.build.options import ExportOptions
from export.build.prepare import Prepared, input_files, prepare
from export.build.quantization import measure_ranges
from export.build.torch_results import torch_results
from export.build.traced_part import trace_parts
from export.build.validation import ExportValidation, validate
from export.console import Progress, Silence
from madtp.files.staging import Staging, write_errors


@dataclass(frozen=True)
class ExportResult:
    """What an export made.

    Attributes:
        prepared: every input as it was read, with the options.
        validation: what was compared with torch, and how that ended.
        manifest: what lies beside the artifact; None where validation failed and nothing was written.
    """

    prepared: Prepared
    validation: ExportValidation
    manifest: Manifest | None = None

    @property
    def written(self) -> bool:
        """Whether validation passed, and so the artifact was written."""
        return self.manifest is not None


def export(options: ExportOptions, progress: Progress | None = None) -> ExportResult:
    """Read and check the inputs, build the artifact, validate it, and put it and its manifest in place if it passes.

    Does what `python -m export` does with the same options; prints nothing. `progress` is told of every stage.

    Raises:
        MadtpError: an input, the output or this machine is at fault, or an engine could not be built; earlier outputs
            are untouched.
    """
    progress = progress or Silence()
    progress.stage("reading checkpoint and samples")
    prepared = prepare(options)
    target, backend = prepared.options.engine, prepared.backend
    clock = _StageClock(progress)
    with Staging(target, prepared.needed_bytes) as staging:
        if prepared.options.quantization.measures:
            clock.start("measuring ranges of activations")
            prepared = _with_ranges(prepared, progress)
        clock.start("tracing the model to ONNX")
        traced = trace_parts(prepared, staging.folder, progress.detail)
        gc.collect()  # traced programs hold reference cycles and, through them, the weights
        results = torch_results(prepared, traced)
        if target.suffix == ".plan":
            clock.start(f"building the engine with {backend.name} {backend.version}")
            built = build_plans(prepared, traced, results, staging.folder, progress.detail)
        else:
            built = keep_onnx(prepared, traced, staging.folder)
        clock.start("checking answers, tokens and latency")
        validation = validate(prepared, built, results, progress.detail)
        seconds = clock.stop()
        if not validation.passed:
            return ExportResult(prepared, validation)
        return ExportResult(prepared, validation, commit(prepared, built, validation, seconds, staging))


def _with_ranges(prepared: Prepared, progress: Progress) -> Prepared:
    """With the range table measured that static quantization needs."""
    if prepared.quantization is None:
        return prepared
    model, checkpoint = prepared.load_model(), prepared.checkpoint.sha256
    measured = measure_ranges(prepared.quantization, model, checkpoint, prepared.temperature, progress.detail)
    return replace(prepared, quantization=measured)


def commit(
    prepared: Prepared, built: BuiltArtifact, validation: ExportValidation, seconds: dict[str, float], staging: Staging
) -> Manifest:
    """Write the manifest, and move all files to where they belong."""
    target, vocabulary = prepared.options.engine, prepared.samples.vocabulary
    with write_errors(target):
        names = [] if vocabulary is None else [vocabulary_name(target)]  # the manifest alone is enough to ask
        if vocabulary is not None:
            shutil.copyfile(vocabulary, staging.folder / names[0])
        manifest = sealed(manifest_of(prepared, built, validation, names[0] if vocabulary else None, seconds))
        quantization = prepared.quantization
        if quantization is not None and quantization.data is not None and quantization.table is not None:
            names.append(ranges_name(target))
            write_ranges(quantization.table, staging.folder / names[-1])
        described = manifest_path(target).name
        (staging.folder / described).write_text(dump_manifest(manifest))
    if built.library_path is not None:
        names.append(built.library_path.name)
    names += [name for part in built.parts.values() for name in reversed(part.all_files)]
    names = list(dict.fromkeys(names))
    inputs = input_files(prepared.options, vocabulary)
    check_export(target, names, inputs)  # others may have written since
    staging.commit([*names, described], stale=stale_files(target, names, inputs))
    return manifest


class _StageClock:
    """Seconds that each stage took."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._seconds, self._name = progress, dict[str, float](), ""

    def start(self, name: str) -> None:
        self.stop()
        self._name, self._begin = name, time.perf_counter()
        self._progress.stage(name)

    def stop(self) -> dict[str, float]:
        if self._name:
            self._seconds[self._name] = round(time.perf_counter() - self._begin, 2)
            self._name = ""
        return self._seconds
