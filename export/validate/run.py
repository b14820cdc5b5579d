"""`python -m export validate`: hold an existing artifact to the checkpoint that it was made from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

import madtp
from export.artifact.manifest import Manifest, tool_versions
from export.artifact.reader import ARTIFACTS
from export.console import Progress
from export.engine.profile import batch_and_text
from export.errors import BackendError, ManifestError, OptionError
from export.graph.custom_nodes import custom_nodes
from export.graph.inline import inline_functions
from export.graph.onnx_graph import OnnxGraph
from export.runtime.artifact import Artifact
from export.runtime.runner import CheckedRunner, OnnxRunner
from export.samples.choice import DataOptions, choose_samples
from export.samples.profile import check_samples
from export.validate.bisect import Culprit, calls_of, check_repro, find_culprit, save_repro
from export.validate.contestants import Contestant, RuntimeContestant, TorchContestant
from export.validate.intermediates import PlanBuilder, show_onnx, trace_parts, watched_parts
from export.validate.invariance import measure_dependence
from export.validate.pairs import Comparison, Failure, compare_samples
from export.validate.plan import look_into_plan
from export.validate.tolerances import Bounds, tolerance_of
from export.validate.verdict import Verdict, update_manifest
from madtp.data.preprocess import IMAGE_MEAN, IMAGE_STD
from madtp.data.samples import Config
from madtp.errors import OutputError, listing
from madtp.files.scratch import scratch_folder
from madtp.models.config import MAX_TEMPERATURE
from madtp.tasks.requests import Runner

STAGES = 5
NO_IDS = (
    "tokens were only counted, not told apart: the graph does not show which it keeps, e.g. because a tool renamed "
    "values, or put the TokenCompact nodes in another order"
)
NOTHING_PRUNED = "pruning was not compared: the default temperature is 0, and --temperature named no other"


@dataclass(frozen=True)
class ValidateOptions:
    """One validation.

    Attributes:
        engine: the manifest, or what --engine of the export named.
        checkpoint: that it was made from.
        config: JSON of sizes that win over the checkpoint's.
        data: what to compare on.
        tolerances: output -> largest |error|, in place of the rule's.
        repro: folder for the node at fault and its inputs.
        temperatures: to compare at, beside the manifest's and zero.
        changed: judge files that were changed since the export, too; the manifest then stays as it is.
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
        for temperature in self.temperatures:
            if not 0 <= temperature <= MAX_TEMPERATURE:
                raise OptionError(
                    f"--temperature is {temperature}", "It has to be a finite number, zero or more.", "E.g. 0.5."
                )

    def compared_at(self, default: float) -> list[float]:
        """All temperatures, the one that matters most first: the default, unless that prunes nothing."""
        others = sorted({*self.temperatures, 0.0} - {default}, reverse=True)
        return [default, *others] if default > 0 else [*others, default]


def validate_artifact(options: ValidateOptions, progress: Progress) -> tuple[Verdict, str]:
    """Compare torch, ONNX and (where a GPU can run it) the plan, and put the verdict into the manifest.

    Returns:
        The verdict, and why the manifest was not updated (empty where it was).

    Raises:
        ManifestError: artifact, manifest and checkpoint do not belong together.
        MadtpError: unusable checkpoint, configuration, samples or options.
    """
    _check_name(options.engine)
    if options.repro is not None:
        check_repro(options.repro)
    progress.stage("reading manifest, checkpoint and samples")
    with Artifact.open(options.engine, checkpoint=options.checkpoint, changed=options.changed) as artifact:
        return _validate(options, artifact, progress)


def _validate(options: ValidateOptions, artifact: Artifact, progress: Progress) -> tuple[Verdict, str]:
    manifest, backend = artifact.manifest, artifact.backend
    bounds = Bounds(tolerance_of(manifest.precision), options.tolerances)
    model = madtp.load(options.checkpoint, options.config)
    config = model.config
    if artifact.path.name not in artifact.changed:
        _check_described(manifest, config, artifact.path)
    batch, text = batch_and_text(manifest)
    chosen = choose_samples(options.data, options.checkpoint, artifact.vocabulary, config, batch, text)
    check_samples(chosen.samples, config, batch, text)
    if artifact.changed:
        artifact.check_runs("A changed plan has to run: validate it on a machine whose GPU runs it.")
    reference = TorchContestant("torch", model, bounds.tolerance.dtype)
    yardstick = TorchContestant("torch in float64", model, torch.float64)
    with scratch_folder() as scratch:
        compared = _contestants(artifact, reference, scratch, progress)
        comparison = Comparison(reference, yardstick, compared.others, bounds)
        progress.stage("checking answers and tokens")
        temperatures = options.compared_at(manifest.temperature)
        if temperatures[0] <= 0:
            compared.notes.append(NOTHING_PRUNED)
        counts = compare_samples(comparison, config, chosen.samples, temperatures, batch, progress.detail)
        progress.stage("checking batch mates")
        dependences = measure_dependence(
            comparison, config, chosen.samples, temperatures[0], batch, text, progress.detail
        )
        seen = [result for (pair, at), result in comparison.results.items() if pair == "torch/onnx" and at > 0]
        if any(result.selection.layers and not result.selection.shows_ids for result in seen):
            compared.notes.append(NO_IDS)
        verdict = Verdict(
            artifact=manifest.artifact,
            task=config.task,
            precision=manifest.precision,
            layout=manifest.layout,
            samples=chosen.to_json(),
            bounds=bounds,
            results=list(comparison.results.values()),
            token_counts=counts,
            dependences=dependences,
            runs_plan=backend.can_run if manifest.is_plan else None,
            notes=compared.notes,
            changed=list(artifact.changed),
        )
        if not verdict.passed:
            progress.stage("looking for the node at fault")
            _bisect(verdict, options, manifest, reference, compared, scratch, progress)
    return verdict, update_manifest(verdict, artifact.path, manifest)


def _check_name(engine: Path) -> None:
    """Refuse what by its name is no artifact and no manifest."""
    if engine.suffix not in (*ARTIFACTS, ".json"):
        raise OptionError(
            f"--engine '{engine}' is no artifact and no manifest",
            "Its name does not end in .json, .onnx or .plan.",
            "Name out.json, out.onnx or out.plan.",
        )


def _check_described(manifest: Manifest, config: Config, path: Path) -> None:
    """Refuse a manifest that has images or ids prepared in another way than those that are compared here."""
    sizes = json.loads(json.dumps(asdict(config)))
    names = [name for name in sizes | manifest.config if manifest.config.get(name) != sizes.get(name)]
    image = manifest.preprocessing.image
    names += [name for name, other in (("mean", image.mean != IMAGE_MEAN), ("std", image.std != IMAGE_STD)) if other]
    if names:
        raise ManifestError(
            f"the manifest '{path}' does not describe the model of this checkpoint",
            f"It gives another {listing(names)}, by which requests are prepared: answers would be others.",
            "Name the --config of the export, or export again.",
        )


@dataclass
class _Compared:
    """What is held to torch.

    Attributes:
        files: ONNX of every part: the artifact's, or of a plan traced from the checkpoint.
        others: ONNX Runtime, and the plan where it can run.
        shows: opens the plan's parts so that values inside are seen; None where no plan runs.
        notes: see `Verdict`.
    """

    files: dict[str, Path]
    others: list[Contestant] = field(default_factory=list)
    shows: PlanBuilder | None = None
    notes: list[str] = field(default_factory=list)


def _contestants(artifact: Artifact, reference: TorchContestant, scratch: Path, progress: Progress) -> _Compared:
    manifest, config, parts = artifact.manifest, reference.config, reference.parts
    if not manifest.is_plan:
        progress.stage("opening the artifact")
        compared = _Compared(artifact.part_files)
        runners = artifact.open_runners()
    else:
        progress.stage("tracing the checkpoint to ONNX")
        compared = _Compared(trace_parts(parts, scratch, progress.detail))
        runners = _open(manifest, compared.files)
    watched = watched_parts(compared.files, show_onnx(compared.files))
    compared.others.append(RuntimeContestant("onnx", config, parts, runners, watched))
    if not manifest.is_plan or not artifact.backend.can_run:
        return compared
    plan = artifact.open_runners()
    if artifact.changed:  # a plan built anew would show what that one keeps, and where that one is wrong
        compared.others.append(RuntimeContestant("plan", config, parts, plan, {}))
        compared.notes.append("of the changed plan tokens were only counted: it does not show which it keeps")
        return compared
    compared.shows = PlanBuilder.of_artifact(artifact, compared.files, progress.detail)
    progress.detail("building a plan that shows the tokens it keeps")
    try:
        watched = watched_parts(compared.files, compared.shows)
    except BackendError as error:  # no reason not to compare the plan that there is
        watched = {}
        why = f"because one that shows them failed: {error.what}"
        compared.notes.append(f"of the plan tokens were only counted, {why}")
    compared.others.append(RuntimeContestant("plan", config, parts, plan, watched))
    return compared


def _open(manifest: Manifest, files: Mapping[str, Path]) -> dict[str, Runner]:
    """ONNX files in ONNX Runtime, held to the profile of the artifact."""
    return {
        part.name: CheckedRunner(OnnxRunner(files[part.name]), part.inputs, part.outputs, part.profile)
        for part in manifest.parts
    }


def _bisect(
    verdict: Verdict,
    options: ValidateOptions,
    manifest: Manifest,
    reference: TorchContestant,
    compared: _Compared,
    scratch: Path,
    progress: Progress,
) -> None:
    """Name the node at fault in the verdict, as far as that can be told."""
    failures = [(result.pair == "torch/onnx", failure) for result in verdict.results for failure in result.failures]
    if not failures:
        return
    of_onnx = [failure for is_onnx, failure in failures if is_onnx]
    if verdict.runs_plan is not None:
        if of_onnx:
            verdict.bisected = (
                "the ONNX traced from the checkpoint differs from torch: report this defect of the export"
            )
        elif compared.shows is not None:
            try:
                _bisect_plan(verdict, options, reference, compared.files, compared.shows, failures[0][1], progress)
            except BackendError as error:
                verdict.bisected = f"the plan could not be looked into: {error.what}"
        return
    failure, tolerance = of_onnx[0], verdict.bounds.tolerance.node
    traced = trace_parts(reference.parts, scratch, progress.detail)
    for part, path in traced.items():
        if not custom_nodes(compared.files[part]):  # --plugins none, or a tool: what is compared are then their bodies
            inline_functions(path, path)
    references = {part: OnnxGraph.read(path) for part, path in traced.items()}
    artifacts = {part: OnnxGraph.read(path) for part, path in compared.files.items()}
    calls = calls_of(reference.config, reference.runners, failure.inputs, failure.temperature)
    culprit = find_culprit(calls, references, artifacts, tolerance, progress.detail)
    verdict.culprit = culprit
    verdict.bisected = str(culprit or "no single node differs from the checkpoint's given identical inputs")
    versions = {name: (manifest.tools.get(name), here) for name, here in tool_versions().items()}
    others = [f"{name} {made}, not {here}" for name, (made, here) in versions.items() if made != here]
    if culprit is not None and others:
        verdict.bisected += f" (the artifact was made with {', '.join(others)}: nodes may have other names)"
    if culprit is not None:
        verdict.repro = _repro(culprit, options, tolerance)


def _bisect_plan(
    verdict: Verdict,
    options: ValidateOptions,
    reference: TorchContestant,
    files: Mapping[str, Path],
    shows: PlanBuilder,
    failure: Failure,
    progress: Progress,
) -> None:
    """Name the nodes that the plan computes otherwise than ONNX Runtime does."""
    calls = calls_of(reference.config, reference.runners, failure.inputs, failure.temperature)
    references = {part: OnnxGraph.read(path) for part, path in files.items()}
    tolerance = verdict.bounds.tolerance.segment
    look = look_into_plan(calls, references, shows, tolerance, progress.detail)
    verdict.culprit, verdict.bisected = look.culprit, str(look)
    if look.culprit is not None:
        verdict.repro = _repro(look.culprit, options, tolerance)


def _repro(culprit: Culprit, options: ValidateOptions, tolerance: float) -> str:
    if options.repro is None:
        return "with --repro DIR the node and its inputs are saved, and a command that shows the difference is printed"
    try:
        return save_repro(culprit, options.repro, tolerance)
    except OutputError as error:  # no reason to lose the verdict
        return f"the node was not saved: {error.what}"
