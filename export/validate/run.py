"""`python -m export validate`: compare an existing artifact with the checkpoint that it was made from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import madtp
from export.artifact.files import check_artifact
from export.artifact.manifest import SamplesEntry
from export.artifact.reader import ARTIFACTS, open_manifest
from export.artifact.seal import is_sealed
from export.console import Progress
from export.engine.backends import Backend
from export.engine.profile import batch_and_text
from export.errors import BackendError, ManifestError, OptionError
from export.runtime.artifact import runtime
from export.samples.choice import DataOptions, ValidationSamples, choose_samples
from export.samples.profile import check_samples
from export.validate.artifact_runners import open_runners
from export.validate.batch_invariance import measure_batch_invariance
from export.validate.bisection import bisect_failures
from export.validate.comparator import Comparator, compare_samples
from export.validate.model_runner import TorchModelRunner
from export.validate.repro import check_repro
from export.validate.result import ValidationResult, update_manifest
from export.validate.tolerances import Bounds, tolerance_of
from madtp.checkpoint.loading import MAX_TEMPERATURE, Model
from madtp.data.preprocess import IMAGE_MEAN, IMAGE_STD
from madtp.data.samples import Config
from madtp.errors import listing
from madtp.files.scratch import scratch_folder

STAGES = 5
NO_IDS = (
    "compared token counts only: kept-token ids are unavailable here (TokenCompact nodes inlined or reordered, or "
    "values renamed)"
)
NOTHING_PRUNED = "pruning was not compared: the default temperature is 0, and --temperature named no other"


@dataclass(frozen=True)
class ValidateOptions:
    """One validation.

    Attributes:
        engine: the manifest, or the file that --engine of the export named.
        checkpoint: that it was made from.
        config: JSON of model sizes that win over the checkpoint's.
        data: samples to compare on.
        tolerances: output -> largest |error|, instead of the rule's.
        repro: folder for the first divergent node and its inputs.
        temperatures: to compare at, besides the manifest's and zero.
        changed: also validate files that were changed since the export; the manifest then stays as it is.
    """

    engine: Path
    checkpoint: Path
    config: Path | None = None
    data: DataOptions = field(default_factory=DataOptions)
    tolerances: Mapping[str, float] = field(default_factory=dict)
    repro: Path | None = None
    temperatures: Sequence[float] = ()
    changed: bool = False

    def __post_init__(self) -> None:
        if self.engine.suffix not in (*ARTIFACTS, ".json"):
            raise OptionError(
                f"--engine '{self.engine}' is neither an artifact nor a manifest",
                "Its name does not end in .json, .onnx or .plan.",
                "Name out.json, out.onnx or out.plan.",
            )
        for temperature in self.temperatures:
            if not 0 <= temperature <= MAX_TEMPERATURE:
                raise OptionError(
                    f"--temperature is {temperature}", "It has to be a finite number, zero or more.", "Use e.g. 0.5."
                )

    def compared_at(self, default: float) -> list[float]:
        """All temperatures; the default first, unless it prunes nothing."""
        others = sorted({*self.temperatures, 0.0} - {default}, reverse=True)
        return [default, *others] if default > 0 else [*others, default]


@dataclass(frozen=True)
class _Inputs:
    """Everything that a validation reads, checked; nothing run yet."""

    manifest_path: Path
    manifest: dict[str, Any]
    artifact: Path
    changed: list[str]
    bounds: Bounds
    model: Model
    samples: ValidationSamples
    backend: Backend


def validate_artifact(options: ValidateOptions, progress: Progress) -> tuple[ValidationResult, str]:
    """Compare torch, ONNX and (where a GPU can run it) the plan, and put the result into the manifest.

    Returns:
        The result, and why the manifest was not updated (empty where it was).

    Raises:
        ManifestError: artifact, manifest and checkpoint do not belong together.
        MadtpError: unusable checkpoint, configuration, samples or options.
    """
    progress.stage("reading manifest, checkpoint and samples")
    given = _read(options)
    manifest = given.manifest
    reference = TorchModelRunner("torch", given.model, given.bounds.tolerance.dtype)
    fp64 = TorchModelRunner("torch fp64", given.model, torch.float64)
    with scratch_folder() as scratch:
        opened = open_runners(
            given.artifact, manifest, reference, given.backend, scratch, bool(given.changed), progress
        )
        comparator = Comparator(reference, fp64, opened.runners, given.bounds)
        result = _compare(given, comparator, options.compared_at(manifest["temperature"]), opened.notes, progress)
        if not result.passed:
            progress.stage("looking for the first divergent node")
            found = bisect_failures(result, manifest, reference, opened, options.repro, scratch, progress)
            result = replace(result, bisection=found)
    return result, update_manifest(result, given.manifest_path, manifest)


def _read(options: ValidateOptions) -> _Inputs:
    """Read and check everything that was named."""
    if options.repro is not None:
        check_repro(options.repro)
    path, manifest = open_manifest(options.engine, changed=options.changed)
    artifact = path.parent / manifest["artifact"]
    changed = check_artifact(manifest, artifact, options.checkpoint, changed=options.changed)
    if not is_sealed(manifest):
        changed.append(path.name)
    bounds = Bounds(tolerance_of(manifest["precision"]), options.tolerances)
    model = madtp.load(options.checkpoint, options.config)
    if path.name not in changed:
        _check_described(manifest, model.config, path)
    batch, text = batch_and_text(manifest["parts"])
    vocabulary = manifest["preprocessing"]["text"]["vocabulary"]
    own = artifact.parent / vocabulary["file"] if vocabulary and vocabulary["file"] else None
    samples = choose_samples(options.data, options.checkpoint, own, model.config, batch, text)
    check_samples(samples.samples, model.config, batch, text)
    backend = runtime(manifest)
    if changed and artifact.suffix == ".plan" and not backend.can_run:
        raise BackendError(
            f"the changed plan '{artifact}' cannot be validated here",
            f"It has to run for that, and {backend.reason}.",
            "Validate it on a machine whose GPU runs it.",
        )
    return _Inputs(path, manifest, artifact, changed, bounds, model, samples, backend)


def _check_described(manifest: Mapping[str, Any], config: Config, path: Path) -> None:
    """Refuse a manifest that has images or ids prepared in another way than those that are compared here."""
    sizes = json.loads(json.dumps(asdict(config)))
    names = [name for name in sizes | manifest["config"] if manifest["config"].get(name) != sizes.get(name)]
    image = manifest["preprocessing"]["image"]
    names += [name for name, value in (("mean", IMAGE_MEAN), ("std", IMAGE_STD)) if tuple(image[name]) != value]
    if names:
        raise ManifestError(
            f"the manifest '{path}' does not describe the model of this checkpoint",
            f"Its {listing(names)} differ: requests would be prepared in another way.",
            "Name the --config of the export, or export again.",
        )


def _compare(
    given: _Inputs, comparator: Comparator, temperatures: list[float], notes: tuple[str, ...], progress: Progress
) -> ValidationResult:
    """Compare samples at every temperature, and measure batch invariance at the first."""
    manifest, config, samples = given.manifest, given.model.config, given.samples.samples
    batch, text = batch_and_text(manifest["parts"])
    progress.stage("comparing outputs, answers and kept tokens")
    counts = compare_samples(comparator, config, samples, temperatures, batch, progress.detail)
    progress.stage("measuring batch invariance")
    first = temperatures[0]
    invariance = measure_batch_invariance(comparator, config, samples, first, batch, text, progress.detail)
    pairs = list(comparator.results.values())
    pruned = [pair.selection for pair in pairs if pair.pair == "torch/onnx" and pair.temperature > 0]
    no_ids = any(selection.layers and not selection.shows_ids for selection in pruned)
    return ValidationResult(
        artifact=given.artifact.name,
        task=config.task,
        precision=manifest["precision"],
        layout=manifest["layout"],
        samples=SamplesEntry(**given.samples.to_json()),
        bounds=given.bounds,
        pairs=pairs,
        token_counts=counts[first],
        batch_invariance=invariance,
        runs_plan=given.backend.can_run if given.artifact.suffix == ".plan" else None,
        notes=[*notes, *([NOTHING_PRUNED] if first <= 0 else []), *([NO_IDS] if no_ids else [])],
        changed=given.changed,
    )
