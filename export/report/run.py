"""One report from options to page: measure, follow the tokens of examples, write."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import madtp
from export.artifact.manifest import Manifest
from export.artifact.outputs import files_of
from export.bench.calls import samples_sha256
from export.bench.comparison import STAGES as COMPARISON_STAGES
from export.bench.comparison import Comparison, compare
from export.bench.environment import Neighbours, activity, machine, warnings
from export.bench.measurement import ONE_SAMPLE
from export.bench.run import BenchOptions
from export.build.gflops import mean_gflops
from export.console import Progress
from export.engine.op_library import Provider
from export.engine.profile import batch_and_text
from export.errors import BackendError, OptionError
from export.report.answers import answers_to
from export.report.bench_file import BenchFile, read_bench
from export.report.examples import Example, choose, picture, text_view
from export.report.measurements import (
    EVERY_IMAGE,
    Counts,
    alone,
    latencies,
    temperatures_of,
    tokens_of,
    total_tokens,
)
from export.report.operating_points import read_points
from export.report.page import PAGE, Measurements, render
from export.report.source_ids import SourceIdRecorder, record_artifact, record_torch
from export.report.token_names import token_names
from export.runtime.artifact import CANNOT_RUN, Artifact
from export.runtime.execution import BODIES, Execution
from export.runtime.runner import RunnerOptions
from export.samples.choice import DataOptions, choose_samples
from export.validate.intermediates import (
    IntermediatesPlanBuilder,
    PassesOf,
    open_onnx_intermediates,
    trace_parts,
    traced_model,
)
from export.validate.quantization import passes_of
from madtp.data.samples import SampleSet
from madtp.files.outputs import check_outputs, write_output
from madtp.files.scratch import scratch_folder
from madtp.models.config import MAX_TEMPERATURE
from madtp.models.parts import Part, parts_of
from madtp.tasks.requests import Runner, torch_runners

STAGES = 5
MAX_SAMPLES = 32  # each runs at every temperature
COMPARED = 30.0  # seconds for the comparison with other artifacts


@dataclass(frozen=True)
class ReportOptions:
    """Options of one report."""

    artifact: Path  # or its manifest
    output: Path  # the page to write
    checkpoint: Path | None = None  # needed for GFLOPs, and to show what a plan prunes
    samples: Path | None = None  # folder; None for the default samples
    synthetic: bool = False  # random pixels and ids instead
    bench: Path | None = None  # result of `python -m export bench`; None measures now
    temperatures: tuple[float, ...] = ()  # to compare; empty for some around the default
    allow_outside: bool = False  # images of samples may lie outside their folder
    others: tuple[Path, ...] = ()  # artifacts of the same checkpoint, to compare with it
    library: str | Path | None = None  # op library, or "none"; see `Artifact.execution`
    provider: Provider = "cpu"  # of ONNX Runtime
    points: Path | None = None  # result of `python -m calibration temperature`, to show

    @property
    def stages(self) -> int:
        """How many are shown."""
        return STAGES + (COMPARISON_STAGES if self.others else 0)


@dataclass(frozen=True)
class _Opened:
    """The artifact, and what runs in its place where it cannot run."""

    artifact: Artifact
    parts: Mapping[str, Part] | None
    runners: Mapping[str, Runner]
    least: int
    traced: Mapping[str, Part] | None = None  # what a plan was traced from
    passes: PassesOf | None = None  # that the export ran over graphs
    execution: Execution | None = None  # in ONNX Runtime; None for a plan


Show = Callable[[Manifest, Measurements], None]


def report(options: ReportOptions, progress: Progress, show: Show = lambda _, __: None) -> None:
    """Write the page.

    `progress` shows `options.stages` stages. `show` gets the manifest and the measurements before the page is written,
    which may fail.

    Raises:
        MadtpError: manifest, files, checkpoint, bench result, samples or output cannot be used, or nothing here can run
            the artifact and there is no checkpoint to run instead. Nothing was written.
    """
    progress.stage("reading manifest, files and samples")
    _check_options(options)
    data = DataOptions(
        options.samples, synthetic=options.synthetic, limit=MAX_SAMPLES, allow_outside=options.allow_outside
    )
    inputs = [path for artifact in (options.artifact, *options.others) for path in files_of(artifact)]
    check_outputs([(options.output, PAGE)], [options.checkpoint, options.bench, options.points, *inputs])
    with Artifact.open(options.artifact, checkpoint=options.checkpoint) as artifact:
        manifest, config = artifact.manifest, artifact.config
        bench = None if options.bench is None else read_bench(options.bench, manifest)
        points = None if options.points is None else read_points(options.points, manifest.checkpoint.sha256)
        samples = choose_samples(data, options.checkpoint, artifact.vocabulary, config, *batch_and_text(manifest))
        comparison = _comparison(options, progress)
        measured = replace(
            _measure(options, _opened(options, artifact), samples, bench, progress),
            comparison=comparison,
            points=points,
        )
    try:
        show(manifest, measured)
    finally:  # a closed pipe is no reason not to write
        progress.stage("writing the page")
        write_output(options.output, render(manifest, measured), PAGE)


def _comparison(options: ReportOptions, progress: Progress) -> Comparison | None:
    """With the other artifacts, if there are some.

    Raises:
        KeyboardInterrupt: also if measuring was cut short.
    """
    if not options.others:
        return None
    how = BenchOptions(
        options.artifact,
        options.samples,
        options.synthetic,
        allow_outside=options.allow_outside,
        seconds=COMPARED,
        library=options.library,
        provider=options.provider,
    )
    comparison = compare(how, options.others, progress)
    if comparison.measurement.partial:
        raise KeyboardInterrupt
    return comparison


def _check_options(options: ReportOptions) -> None:
    if options.bench is not None and options.temperatures:
        raise OptionError(
            "--bench and --temperature exclude each other", "The temperatures are those of the bench result."
        )
    for temperature in options.temperatures:
        if not 0 <= temperature <= MAX_TEMPERATURE:
            raise OptionError(f"--temperature is {temperature}", "It has to be a finite number, zero or more.")


def _opened(options: ReportOptions, artifact: Artifact) -> _Opened:
    if options.checkpoint is None:
        artifact.check_runs("Give --ckpt to show what its torch model does, or run this on a machine with such a GPU.")
    parts, passes, traced = None, None, None
    if options.checkpoint is not None:
        model = madtp.load(options.checkpoint, artifact.manifest.config)
        model.set_keep_margin(artifact.manifest.keep_margin or 0.0)
        parts, passes = parts_of(model), passes_of(artifact.manifest, model)
        traced = parts_of(traced_model(artifact.manifest, model))
    least = batch_and_text(artifact.manifest)[0].min
    if artifact.backend.can_run:
        execution = artifact.execution(options.library, options.provider)
        runners = artifact.open_runners(RunnerOptions(execution=execution))
        return _Opened(artifact, parts, runners, least, traced, passes, execution)
    assert parts is not None
    return _Opened(artifact, parts, torch_runners(parts), least)


def _measure(
    options: ReportOptions, opened: _Opened, samples: SampleSet, bench: BenchFile | None, progress: Progress
) -> Measurements:
    config, backend, runners = opened.artifact.config, opened.artifact.backend, opened.runners
    default = float(opened.artifact.manifest.temperature)
    temperatures = temperatures_of(default, options.temperatures)
    if bench is not None:
        temperatures = sorted({0.0, default, *bench.milliseconds})
    progress.stage("counting tokens")
    counts: dict[float, Counts] = {}
    for temperature in temperatures:
        progress.detail(f"temperature {temperature:g}")
        counts[temperature] = tokens_of(config, runners, samples, temperature, opened.least)
    gflops = None
    if opened.parts is not None:
        progress.detail("counting GFLOPs")
        gflops = {tau: mean_gflops(config, opened.parts, samples, tau) for tau in temperatures}
    progress.stage("timing" if bench is None else "taking latencies from the bench result")
    if bench is None:
        before, neighbours = activity(), Neighbours()
        times = latencies(config, runners, samples, temperatures, opened.least)
        caveats = warnings(machine(None), before, activity(), neighbours.share())
        caveats += [ONE_SAMPLE] if len(samples) == 1 else []
    else:
        times, caveats = bench.milliseconds, bench.caveats
    progress.stage("following tokens through the layers")
    shown = default if default > 0 else next((tau for tau in temperatures if tau > 0), None)
    watched = None
    with scratch_folder() as scratch:
        if shown is not None:
            watched = _watched(opened, scratch, progress)
        examples = _examples(opened, samples, counts, watched, shown or 0.0, progress)
    ran = "torch" if not backend.can_run else f"{backend.name} {backend.version}"
    ran += "" if opened.execution is None else f", {opened.execution}"
    return Measurements(
        samples=samples.origin,
        images=len(samples.requests[0].images),
        alike=bench is None or (bench.batch, bench.samples_sha256) == (1, samples_sha256(samples)),
        ran=ran,
        backend=backend,
        least=opened.least,
        counts=counts,
        gflops=gflops,
        times=times,
        bench=bench,
        shown=shown,
        watched=None if watched is None else watched.description,
        examples=examples,
        words_fit=samples.fits,
        caveats=caveats,
    )


def _watched(opened: _Opened, scratch: Path, progress: Progress) -> SourceIdRecorder | None:
    """The artifact, made to give out source ids; else the torch model; without a checkpoint nothing."""
    artifact, manifest, runners = opened.artifact, opened.artifact.manifest, opened.runners
    if not manifest.is_plan:
        files = artifact.part_files
        description = "the exported ONNX graph, whose TokenCompact nodes were made to give out their source ids"
        opener = open_onnx_intermediates(files, opened.execution or BODIES)
        return record_artifact(manifest, files, opener, runners, description)
    if opened.parts is None:
        return None
    why = CANNOT_RUN
    if artifact.backend.can_run and opened.traced is not None and opened.passes is not None:
        progress.detail("building a plan that shows the tokens it keeps")
        form = manifest.graph_form
        files = trace_parts(opened.traced, scratch, progress.detail, *form, runnable=False, passes_of=opened.passes)
        builder = IntermediatesPlanBuilder.of_artifact(artifact, files, progress.detail)
        description = "the plan, built anew so that it gives out its source ids"
        try:
            return record_artifact(manifest, files, builder, runners, description)
        except BackendError as error:
            why = f"a plan that gives out source ids failed: {error.what}"
    return record_torch(opened.parts, f"the torch model of the checkpoint ({why})")


def _examples(
    opened: _Opened,
    samples: SampleSet,
    counts: Mapping[float, Counts],
    watched: SourceIdRecorder | None,
    temperature: float,
    progress: Progress,
) -> list[Example]:
    config, settings = opened.artifact.config, opened.artifact.manifest.preprocessing.image
    images = len(samples.requests[0].images)
    totals, dense_totals = total_tokens(counts[temperature], images), total_tokens(counts[0.0], images)
    grid = config.image_size // config.patch_size
    chosen = choose(totals.tolist())
    progress.detail("answering")
    answers = answers_to(config, opened.runners, samples, list(chosen.values()), temperature, opened.least)
    examples = []
    for (title, index), answered in zip(chosen.items(), answers, strict=True):
        request = samples.requests[index]
        inputs = alone(request, config, opened.least)
        names = ("left image", "right image") if len(request.images) == 2 else ("image",)
        pictures, texts = [], []
        if watched is None:
            pictures = [picture(*named, [], grid, settings) for named in zip(names, request.images, strict=True)]
        ids = {} if watched is None else watched.source_ids(config, inputs, temperature)
        for encoder, layers in ids.items():
            if encoder == EVERY_IMAGE:
                for number, name in enumerate(names):  # all first images come before all second ones
                    rows = [layer[number * opened.least].tolist() for layer in layers]
                    pictures.append(picture(name, request.images[number], rows, grid, settings))
            else:
                words = token_names(request.ids, config, samples.processor, samples.texts[index])
                rows = [layer[0].tolist() for layer in layers]
                texts.append(text_view(encoder, words, inputs["input_ids"].shape[1], rows))
        total, most = int(totals[index]), int(dense_totals[index])
        examples.append(Example(title, samples.texts[index], answered, total, most, pictures, texts))
    return examples
