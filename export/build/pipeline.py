"""The main job: checkpoint -> ONNX -> engine -> check -> artifact and manifest. Stages are named for what they make."""

import gc
import shutil
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from calibration.tokens import Source, TokenStatistics, check_source, read_tokens
from export.artifact.manifest import Manifest, TensorInfo
from export.artifact.outputs import check_export, stale_files
from export.artifact.reader import manifest_path
from export.artifact.schema import decode, encode
from export.artifact.seal import dump_manifest, seal
from export.build.check import Validation, validate_runners
from export.build.describe import artifact_name, describe_export, describe_files, describe_part
from export.build.options import ExportOptions
from export.console import Progress
from export.engine.backends import Backend, choose_backend
from export.engine.builder import build_plan
from export.engine.plugin_build import check_tools, plugin_library
from export.engine.plugin_library import PluginLibrary, loadable_library
from export.engine.profile import DEFAULT_BATCH, Written, input_profile, part_sizes, text_range, written_sizes
from export.engine.range import Range
from export.engine.token_sizes import TokenPlan, check_encoders, depths, token_plan
from export.graph.inline import inline_functions
from export.graph.token_sizes import set_token_sizes
from export.graph.trace import EXTERNAL_DATA_LIMIT, save_onnx, trace_part
from export.runtime.runner import CheckedRunner, OnnxRunner, PlanRunner
from export.samples.profile import check_samples
from madtp.checkpoint.loading import Loaded, read_model
from madtp.data.samples import INDEX, Config, SampleSet, load_samples
from madtp.errors import InputError
from madtp.files.inputs import read_bytes, sha256
from madtp.files.staging import Staging, check_writable, write_errors
from madtp.models.parts import Part, parts_of
from madtp.tasks.requests import Runner


@dataclass(frozen=True)
class Prepared:
    """Everything an export needs, read and checked; nothing written yet."""

    options: ExportOptions
    config: Config
    backend: Backend
    batch: Range
    text: Range
    written: Written | None
    temperature: float
    samples: SampleSet
    weight_bytes: int
    checkpoint: dict[str, Any]  # the manifest's entry
    tokens: TokenStatistics | None  # of --tokens
    parts: tuple[str, ...]
    encoders: dict[str, int]  # that are pruned, and their layers

    def load_parts(self) -> dict[str, Part]:
        """The model's parts, anew: nobody holds its weights while an engine is built, when memory is shortest."""
        return parts_of(read_model(self.options.checkpoint, self.options.config).model)


@dataclass
class ExportResult:
    """What an export made. `manifest` is None when parity failed and nothing was written."""

    validation: Validation
    backend: Backend
    artifact: Path
    manifest: Manifest | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def prepare(options: ExportOptions) -> Prepared:
    """Read and check every input of an export; the preflight. Writes nothing.

    Raises:
        MadtpError: whatever is wrong with the options, the checkpoint, the samples, the output or this machine.
    """
    check_export(options.engine, [], _inputs(options, None))
    backend = choose_backend(options.backend, options.engine.suffix)
    loaded = read_model(options.checkpoint, options.config)
    model = loaded.model
    parts = parts_of(model)
    text = text_range(model.config, options.text)
    written = written_sizes(model.config, options.beams, options.max_length)
    batch = options.batch or DEFAULT_BATCH
    samples = load_samples(options.samples, options.checkpoint, model.config, allow_outside=options.allow_outside)
    check_samples(samples, model.config, batch, text)
    weight_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    check_writable(options.engine, _needed_bytes(options, weight_bytes))
    outputs = _outputs(options, parts, weight_bytes, samples.vocabulary)
    check_export(options.engine, outputs, _inputs(options, samples.vocabulary))
    temperature = model.temperature if options.temperature is None else options.temperature
    checkpoint = _checkpoint_entry(options.checkpoint, loaded)
    tokens = None
    if options.tokens is not None:
        tokens = read_tokens(options.tokens)
        here = Source(checkpoint["sha256"], model.task, temperature, "", None)
        check_source(tokens.source, here, options.tokens)
        check_encoders(tokens, parts, options.tokens)
    if options.plugins not in ("auto", "none"):
        loadable_library(Path(options.plugins))
    elif options.plugins == "auto" and options.engine.suffix == ".plan":
        check_tools()
    return Prepared(
        options,
        model.config,
        backend,
        batch,
        text,
        written,
        temperature,
        samples,
        weight_bytes,
        checkpoint,
        tokens,
        tuple(parts),
        depths(parts),
    )


def _checkpoint_entry(path: Path, loaded: Loaded) -> dict[str, Any]:
    return {
        "file": path.name,
        "sha256": sha256(path),
        "bytes": path.stat().st_size,
        "epoch": loaded.epoch,
        **({"notes": list(loaded.notes)} if loaded.notes else {}),
    }


def _inputs(options: ExportOptions, vocabulary: Path | None) -> list[Path | None]:
    """Files that an export reads; images are none that it could write over."""
    library = None if options.plugins in ("auto", "none") else Path(options.plugins)
    index = None if options.samples is None else options.samples / INDEX
    return [options.checkpoint, options.config, options.tokens, library, index, vocabulary]


def _outputs(options: ExportOptions, parts: Collection[str], weight_bytes: int, vocabulary: Path | None) -> list[str]:
    """Names of the files that an export may write beside its manifest."""
    engine = options.engine
    names = [artifact_name(engine, part, len(parts)) for part in parts]
    if engine.suffix == ".onnx":
        names += [] if _is_single_file(options, weight_bytes) else [f"{name}.data" for name in names]
    else:
        ships = options.plugins != "none" and not options.embed_plugins
        names += [_timing_name(engine), *([_library_name(engine)] if ships else [])]
    return names + ([] if vocabulary is None else [_vocabulary_name(engine)])


def _timing_name(engine: Path) -> str:
    return f"{engine.stem}.timing"


def _library_name(engine: Path) -> str:
    """A name of its own: another plan in the same folder may need another library."""
    return f"{engine.stem}.plugins.so"


def _vocabulary_name(engine: Path) -> str:
    return f"{engine.stem}.vocab.txt"


def _is_single_file(options: ExportOptions, weight_bytes: int) -> bool:
    """Whether an ONNX file holds its weights itself."""
    return options.engine.suffix == ".onnx" and weight_bytes <= EXTERNAL_DATA_LIMIT


def _needed_bytes(options: ExportOptions, weight_bytes: int) -> int:
    """Least room that an export takes: a plan is built from an ONNX file that lies beside it meanwhile."""
    return weight_bytes * (2 if options.engine.suffix == ".plan" else 1)


def export(prepared: Prepared, progress: Progress) -> ExportResult:
    """Build the artifact, check it, and put it and its manifest in place if the check passes.

    Raises:
        MadtpError: the output could not be written or an engine could not be built; earlier outputs are untouched.
    """
    options, backend = prepared.options, prepared.backend
    target = options.engine
    clock = _Stages(progress)
    with Staging(target, _needed_bytes(options, prepared.weight_bytes)) as staging:
        clock.start("tracing the model to ONNX")
        traced = _trace(prepared, staging.folder, progress)
        gc.collect()  # traced programs hold reference cycles and, through them, the weights
        files = {name: part.files for name, part in traced.items()}
        library: dict[str, Any] | None = None
        can_run = True
        if target.suffix == ".plan":
            clock.start(f"building the engine with {backend.name} {backend.version}")
            library = _build(prepared, traced, staging, progress)
            files = {name: part.files for name, part in traced.items()}
            can_run = backend.can_run
        clock.start("checking answers, tokens and latency")
        beside = None if library is None or library["embedded"] else staging.folder / library["file"]
        runners: dict[str, Runner] = {}
        for name, part in traced.items():
            runs_plan = target.suffix == ".plan" and can_run
            runner: Runner = (
                PlanRunner(staging.folder / part.files[0], backend, beside, options.embed_plugins)
                if runs_plan
                else OnnxRunner(part.source)
            )
            runners[name] = CheckedRunner(
                runner,
                [decode(TensorInfo, entry) for entry in part.entry["inputs"]],
                [decode(TensorInfo, entry) for entry in part.entry["outputs"]],
                part.entry["profile"],
            )
        validation = validate_runners(
            prepared.config,
            prepared.load_parts(),
            runners,
            prepared.samples,
            prepared.temperature,
            prepared.batch,
            progress.detail,
        )
        validation.validated = "artifact" if can_run else "onnx"
        result = ExportResult(validation, backend, target, seconds=clock.stop())
        if validation.passed:
            with write_errors(target):
                vocabulary = _ship_vocabulary(prepared.samples, target, staging.folder)
                entries = [part.entry | describe_files(staging.folder, files[name]) for name, part in traced.items()]
                described = describe_export(prepared, entries, library, vocabulary, result)
                result.manifest = Manifest.from_json(seal(described))
                (staging.folder / manifest_path(target).name).write_text(dump_manifest(result.manifest))
            shipped = [name for names in files.values() for name in reversed(names)]
            beside_it = [name for name in (vocabulary, beside and beside.name) if name is not None]
            names = list(dict.fromkeys([*beside_it, *shipped]))
            inputs = _inputs(options, prepared.samples.vocabulary)
            check_export(target, names, inputs)  # others may have written since
            staging.commit([*names, manifest_path(target).name], stale=stale_files(target, names, inputs))
    return result


@dataclass
class _Traced:
    """A part on its way: its ONNX file, the manifest's entry, the files that will be shipped (the artifact first)."""

    part: Part
    source: Path
    entry: dict[str, Any]
    files: list[str]


def _trace(prepared: Prepared, folder: Path, progress: Progress) -> dict[str, _Traced]:
    """Every part as an ONNX file in `folder`."""
    target = prepared.options.engine
    parts = prepared.load_parts()
    single_file = _is_single_file(prepared.options, prepared.weight_bytes)
    traced = {}
    for name, part in parts.items():
        progress.detail(name)
        source = folder / Path(artifact_name(target, name, len(parts))).with_suffix(".onnx")
        with write_errors(target):
            save_onnx(trace_part(part), source, external_data=not single_file)
            if target.suffix == ".onnx" and prepared.options.plugins == "none":
                inline_functions(source, source)
        sizes = part_sizes(prepared.config.task, part, prepared.batch, prepared.text, None, prepared.written)
        profile = input_profile(part, sizes)
        entry = describe_part(name, source, profile, prepared.checkpoint["sha256"])
        files = [source.name] + ([] if single_file else [f"{source.name}.data"])
        # The module is let go of: with it, every weight of the model would stay in memory while engines are built.
        traced[name] = _Traced(replace(part, module=nn.Module()), source, entry, files)
    return traced


def _ship_vocabulary(samples: SampleSet, target: Path, folder: Path) -> str | None:
    """Put the vocabulary beside the artifact, so that the manifest alone is enough to ask; its name, None without."""
    if samples.vocabulary is None:
        return None
    name = _vocabulary_name(target)
    shutil.copyfile(samples.vocabulary, folder / name)
    return name


class _Stages:
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


def _build(
    prepared: Prepared, traced: Mapping[str, _Traced], staging: Staging, progress: Progress
) -> dict[str, Any] | None:
    """Build a plan of every part into the staging folder; completes their entries and files.

    Returns:
        The manifest's entry of the plugin library, None without one.
    """
    target, options = prepared.options.engine, prepared.options
    library = plugin_library(options.plugins, progress.detail)
    shipped = staging.folder / _library_name(target)
    cache = Path(_timing_name(target))
    tokens = None
    with write_errors(target):
        if library is not None:
            tokens = token_plan(
                prepared.config,
                prepared.load_parts(),
                prepared.samples,
                prepared.tokens,
                temperature=prepared.temperature,
                checkpoint_sha256=prepared.checkpoint["sha256"],
                longest_text=prepared.text.max,
                usual_batch=prepared.batch.opt,
                on_detail=progress.detail,
            )
            if not options.embed_plugins:
                shutil.copyfile(library.path, shipped)
        if (earlier := target.parent / cache).is_file():
            (staging.folder / cache).write_bytes(_read_cache(earlier))
    for name, part in traced.items():
        part.files = [artifact_name(target, name, len(traced))]
        _build_part(prepared, part, library, tokens, staging.folder / cache, progress)
    return None if library is None else encode(library.entry(None if options.embed_plugins else shipped.name))


def _read_cache(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except ValueError as error:
        raise InputError(f"'{path}' is no timing cache", str(error), "Delete it; it only saves time.") from error


def _build_part(
    prepared: Prepared,
    part: _Traced,
    library: PluginLibrary | None,
    tokens: TokenPlan | None,
    cache: Path,
    progress: Progress,
) -> None:
    target, options, entry = prepared.options.engine, prepared.options, part.entry
    network = part.source.with_name(f"network-{part.source.name}")
    needs_plugins = library is not None and bool(entry["custom_nodes"])
    with write_errors(target):
        if tokens is not None:
            entry["tokens"] = tokens.to_manifest(part.part)
            usual = tokens.usual_left(part.part)
            sizes = part_sizes(prepared.config.task, part.part, prepared.batch, prepared.text, usual, prepared.written)
            entry["profile"] = input_profile(part.part, sizes)
        if tokens is not None and needs_plugins:
            set_token_sizes(part.source, network, {name: tokens.sizes[name] for name in part.part.encoders})
        else:
            inline_functions(part.source, network)
        result = build_plan(
            prepared.backend,
            network,
            part.source.with_name(part.files[0]),
            cache,
            entry["profile"],
            progress.detail,
            library.path if library is not None and needs_plugins else None,
            options.embed_plugins and needs_plugins,
        )
    entry["layers"] = result.layers
    entry["plugin_layers"] = result.plugin_layers
    if cache.is_file():
        entry["timing_cache"] = {"file": cache.name, "reused": result.timing_cache_reused}
        part.files.append(cache.name)
