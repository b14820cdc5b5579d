"""`python -m export validate`: compare an existing artifact with the checkpoint that it was made from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

import madtp
from export.artifact.manifest import Manifest, SamplesEntry
from export.artifact.reader import ARTIFACTS
from export.console import Progress
from export.engine.op_library import Provider
from export.engine.profile import batch_and_text
from export.errors import ManifestError, OptionError
from export.runtime.artifact import Artifact
from export.samples.choice import DataOptions, choose_samples
from export.validate.artifact_runners import open_runners
from export.validate.batch_invariance import measure_batch_invariance
from export.validate.bisection import bisect_failures
from export.validate.comparator import Comparator, compare_samples
from export.validate.intermediates import traced_model
from export.validate.model_runner import TorchModelRunner
from export.validate.quantization import in_torch, smooth_as
from export.validate.repro import check_repro
from export.validate.result import ValidationResult, update_manifest
from export.validate.tolerances import Bounds, tolerance_of
from madtp.data.preprocess import IMAGE_MEAN, IMAGE_STD
from madtp.data.samples import Config, SampleSet
from madtp.errors import listing
from madtp.files.scratch import scratch_folder
from madtp.models.config import MAX_TEMPERATURE

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
        config: JSON of model sizes that override the checkpoint's.
        tolerances: output -> largest |error|, instead of the precision's.
        repro: folder for the first divergent node and its inputs.
        temperatures: additional ones; the manifest's and zero are always compared.
        changed: also validate files that were changed since the export; the manifest then stays as it is.
        library, provider: of ONNX Runtime, see `Artifact.execution`.
    """

    engine: Path
    checkpoint: Path
    config: Path | None = None
    data: DataOptions = field(default_factory=DataOptions)
    tolerances: Mapping[str, float] = field(default_factory=dict)
    repro: Path | None = None
    temperatures: Sequence[float] = ()
    changed: bool = False
    library: str | Path | None = None
    provider: Provider = "cpu"

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


def validate_artifact(options: ValidateOptions, progress: Progress) -> tuple[ValidationResult, str]:
    """Compare torch, ONNX and (where they can run) the op library's kernels or the plan, and put the result into the
    manifest.

    Returns:
        The result, and why the manifest was not updated (empty where it was).

    Raises:
        ManifestError: artifact, manifest and checkpoint do not belong together.
        MadtpError: unusable checkpoint, configuration, samples or options.
    """
    if options.repro is not None:
        check_repro(options.repro)
    progress.stage("reading manifest, checkpoint and samples")
    with (
        Artifact.open(options.engine, checkpoint=options.checkpoint, changed=options.changed) as artifact,
        scratch_folder() as scratch,
    ):
        manifest, execution = artifact.manifest, artifact.execution(options.library, options.provider)
        bounds = Bounds(tolerance_of(manifest.precision), options.tolerances)
        model = madtp.load(options.checkpoint, options.config)
        model.set_keep_margin(manifest.keep_margin or 0.0)
        if artifact.path.name not in artifact.changed:
            _check_described(manifest, model.config, artifact.path)
        batch, text = batch_and_text(manifest)
        samples = choose_samples(options.data, options.checkpoint, artifact.vocabulary, model.config, batch, text)
        if artifact.changed:
            artifact.check_runs("A changed plan has to run: validate it on a machine whose GPU runs it.")
        smooth_as(manifest, model)
        reference = TorchModelRunner("torch", model, bounds.tolerance.dtype, in_torch(manifest, model))
        opened = open_runners(artifact, reference, scratch, progress, execution)
        exact = TorchModelRunner("torch fp64", model, torch.float64)
        comparator = Comparator(reference, exact, opened.runners, bounds, packed=manifest.is_packed)
        result = _compare(options, artifact, samples, comparator, bounds, opened.notes, progress)
        result = replace(result, execution=execution)
        if not result.passed:
            progress.stage("looking for the first divergent node")
            if manifest.is_packed:  # the graph's nodes are those of the packed layout
                packed = traced_model(manifest, model)
                reference = TorchModelRunner("torch", packed, bounds.tolerance.dtype, in_torch(manifest, packed))
            found = bisect_failures(result, manifest, reference, opened, options.repro, scratch, progress)
            result = replace(result, bisection=found)
    return result, update_manifest(result, artifact.path, manifest)


def _check_described(manifest: Manifest, config: Config, path: Path) -> None:
    """Refuse a manifest that has images or ids prepared in another way than those that are compared here."""
    sizes = json.loads(json.dumps(asdict(config)))
    names = [name for name in sizes | manifest.config if manifest.config.get(name) != sizes.get(name)]
    image = manifest.preprocessing.image
    names += [name for name, other in (("mean", image.mean != IMAGE_MEAN), ("std", image.std != IMAGE_STD)) if other]
    if names:
        raise ManifestError(
            f"the manifest '{path}' does not describe the model of this checkpoint",
            f"Requests would be prepared in another way, by other values of: {listing(names)}.",
            "Name the --config of the export, or export again.",
        )


def _compare(
    options: ValidateOptions,
    artifact: Artifact,
    samples: SampleSet,
    comparator: Comparator,
    bounds: Bounds,
    notes: tuple[str, ...],
    progress: Progress,
) -> ValidationResult:
    """Compare samples at every temperature, and measure batch invariance at the first."""
    manifest, config = artifact.manifest, comparator.config
    batch, text = batch_and_text(manifest)
    temperatures = options.compared_at(manifest.temperature)
    first = temperatures[0]
    progress.stage("comparing outputs, answers and kept tokens")
    counts = compare_samples(comparator, config, samples, temperatures, batch, progress.detail)
    progress.stage("measuring batch invariance")
    invariance = measure_batch_invariance(comparator, config, samples, first, batch, text, progress.detail)
    pairs = list(comparator.results.values())
    pruned = [pair.selection for pair in pairs if pair.pair == "torch/onnx" and pair.temperature > 0]
    no_ids = any(selection.layers and not selection.shows_ids for selection in pruned)
    return ValidationResult(
        artifact=manifest.artifact,
        task=manifest.task,
        precision=manifest.precision,
        layout=manifest.layout,
        samples=SamplesEntry(**samples.to_json()),
        bounds=bounds,
        pairs=pairs,
        token_counts=counts[first],
        batch_invariance=invariance,
        runs_plan=artifact.backend.can_run if manifest.is_plan else None,
        notes=[*notes, *([NOTHING_PRUNED] if first <= 0 else []), *([NO_IDS] if no_ids else [])],
        changed=list(artifact.changed),
    )
