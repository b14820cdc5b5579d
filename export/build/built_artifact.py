"""The third stage: the files of an artifact. ONNX files are those that were traced, plans are built from them."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from calibration.tokens import Source
from export.artifact.manifest import LibraryEntry, Profile, TimingCache, Tokens
from export.artifact.schema import encode
from export.build.files import artifact_name, bucket_name, library_name, timing_name
from export.build.prepare import Prepared
from export.build.torch_results import TorchResults
from export.build.traced_part import TracedPart
from export.engine.builder import BuildResult, build_plan
from export.engine.capacities import CapacityPlan, EngineBucket, measured_buckets
from export.engine.plugin_build import plugin_library
from export.engine.plugin_library import PluginLibrary
from export.engine.profile import input_profile, part_sizes
from export.engine.range import Range
from export.engine.token_sizes import TokenPlan, token_plan
from export.graph.capacities import set_capacities
from export.graph.inline import inline_functions
from export.graph.token_sizes import set_token_sizes
from madtp.errors import InputError
from madtp.files.inputs import read_bytes, sha256
from madtp.files.staging import write_errors
from madtp.models.parts import Part
from madtp.tasks.requests import token_counts


@dataclass(frozen=True)
class BuiltBucket:
    """An engine of a part with less room than the part's own.

    Attributes:
        files: as of `BuiltPart`.
        runnable: what ONNX Runtime runs of it.
        onnx_sha256: of its graph.
        layers: as of `BuiltPart`.
    """

    bucket: EngineBucket
    files: tuple[str, ...]
    runnable: Path
    onnx_sha256: str
    profile: dict[str, Profile]
    layers: int | None = None


@dataclass(frozen=True)
class BuiltPart:
    """A part as it is shipped.

    Attributes:
        files: names of its files, the artifact first.
        buckets: in the order in which they are tried.
        tokens: token counts that TensorRT was told; None without plugins.
        layers: number of layers of the TensorRT network; `plugin_layers` of each plugin.
    """

    traced: TracedPart
    files: tuple[str, ...]
    profile: dict[str, Profile]
    tokens: Tokens | None = None
    layers: int | None = None
    plugin_layers: Mapping[str, int] = field(default_factory=dict)
    timing_cache: TimingCache | None = None
    buckets: tuple[BuiltBucket, ...] = ()

    @property
    def all_files(self) -> tuple[str, ...]:
        """Those of its buckets too."""
        return (*self.files, *(name for bucket in self.buckets for name in bucket.files))


@dataclass(frozen=True)
class BuiltArtifact:
    """All files of an artifact but its vocabulary and manifest, in the staging folder.

    Attributes:
        capacities: what the buckets are made of; None where sizes depend on data.
    """

    folder: Path
    parts: dict[str, BuiltPart]
    library: LibraryEntry | None = None
    capacities: CapacityPlan | None = None

    @property
    def library_path(self) -> Path | None:
        """The plugin library beside the plans; None without one, or where the plans carry it."""
        return None if self.library is None or self.library.file is None else self.folder / self.library.file


def keep_onnx(prepared: Prepared, traced: Mapping[str, TracedPart], folder: Path) -> BuiltArtifact:
    """The artifact for ONNX Runtime: the traced files, and those of buckets, on the same weights."""
    parts = {}
    for name, part in traced.items():
        built = BuiltPart(part, part.files, _profile(prepared, part.part, None))
        buckets = []
        for sized in _sized_parts(prepared, prepared.capacities, part):
            files = (sized.source.name, *part.files[1:])
            buckets.append(BuiltBucket(sized.bucket, files, sized.source, sha256(sized.source), sized.profile))
        parts[name] = replace(built, buckets=tuple(buckets))
    return BuiltArtifact(folder, parts, capacities=prepared.capacities)


def build_plans(
    prepared: Prepared,
    traced: Mapping[str, TracedPart],
    results: TorchResults,
    folder: Path,
    on_detail: Callable[[str], None],
) -> BuiltArtifact:
    """The artifact for TensorRT: a plan of every part, with the plugin library unless the plans carry it."""
    target, options = prepared.options.engine, prepared.options
    library = plugin_library(options.plugins, on_detail)
    cache = folder / timing_name(target)
    earlier = target.parent / cache.name
    tokens, entry, capacities = None, None, None
    with write_errors(target):
        if options.sized:
            capacities = prepared.capacities or _measured(prepared, traced, results, on_detail)
        if library is not None:
            tokens = None if options.sized else _token_plan(prepared, results, on_detail)
            results.free_model()  # nobody holds its weights while an engine is built, when memory is shortest
            shipped = None if options.embed_plugins else library_name(target)
            entry = library.entry(shipped)
            if shipped is not None:
                shutil.copyfile(library.path, folder / shipped)
        if earlier.is_file():
            try:
                cache.write_bytes(read_bytes(earlier))
            except ValueError as error:
                fix = "Delete it; it only saves time."
                raise InputError(f"'{earlier}' is not a timing cache", str(error), fix) from error
        parts = {}
        for name, part in traced.items():
            parts[name] = _build_part(prepared, part, library, tokens, capacities, cache, on_detail)
    return BuiltArtifact(folder, parts, entry, capacities)


def _measured(
    prepared: Prepared, traced: Mapping[str, TracedPart], results: TorchResults, on_detail: Callable[[str], None]
) -> CapacityPlan:
    on_detail("measuring capacities")
    source = Source(
        prepared.checkpoint.sha256, prepared.config.task, prepared.temperature, prepared.samples.origin, None
    )
    return measured_buckets(
        {name: part.part for name, part in traced.items()},
        prepared.config,
        prepared.samples,
        lambda: (token_counts(outputs) for outputs in results.outputs_alone(prepared.temperature)),
        source,
        prepared.batch,
        prepared.text,
    )


def _token_plan(prepared: Prepared, results: TorchResults, on_detail: Callable[[str], None]) -> TokenPlan:
    return token_plan(
        prepared.config,
        prepared.encoders,
        prepared.samples,
        prepared.tokens,
        lambda: (token_counts(outputs) for outputs in results.outputs_alone(prepared.temperature)),
        temperature=prepared.temperature,
        checkpoint_sha256=prepared.checkpoint.sha256,
        longest_text=prepared.text.max,
        usual_batch=prepared.batch.opt,
        on_detail=on_detail,
    )


def _build_part(
    prepared: Prepared,
    traced: TracedPart,
    library: PluginLibrary | None,
    tokens: TokenPlan | None,
    capacities: CapacityPlan | None,
    cache: Path,
    on_detail: Callable[[str], None],
) -> BuiltPart:
    part, source = traced.part, traced.source
    needs_plugins = library is not None and bool(traced.custom_nodes)
    network = source.with_name(f"network-{source.name}")
    if tokens is not None and needs_plugins:
        set_token_sizes(source, network, {name: tokens.sizes[name] for name in part.encoders})
    elif needs_plugins:
        network = source
    else:
        inline_functions(source, network)
    profile = _profile(prepared, part, None if tokens is None else tokens.usual_left(part))
    plan = source.with_name(artifact_name(prepared.options.engine, part.name, len(prepared.parts)))

    def build(network: Path, plan: Path, profile: dict[str, Profile]) -> BuildResult:
        return build_plan(
            prepared.backend,
            network,
            plan,
            cache,
            encode(profile),
            on_detail,
            library.path if library is not None and needs_plugins else None,
            prepared.options.embed_plugins and needs_plugins,
        )

    result = build(network, plan, profile)
    entry = None if tokens is None else tokens.entry(part)
    buckets = []
    for sized in _sized_parts(prepared, capacities, traced):
        on_detail(f"{part.name}: {sized.bucket.label}")
        smaller = plan.with_name(bucket_name(plan.name, sized.bucket.label))
        layers = build(sized.source, smaller, sized.profile).layers
        digest = sha256(sized.source)
        buckets.append(BuiltBucket(sized.bucket, (smaller.name,), sized.runnable, digest, sized.profile, layers))
    built = BuiltPart(traced, (plan.name,), profile, entry, result.layers, result.plugin_layers, buckets=tuple(buckets))
    if not cache.is_file():
        return built
    timing_cache = TimingCache(cache.name, reused=result.timing_cache_reused)
    return replace(built, files=(plan.name, cache.name), timing_cache=timing_cache)


@dataclass(frozen=True)
class _SizedPart:
    """A part with the room of a bucket as ONNX files, of which `runnable` is for ONNX Runtime."""

    bucket: EngineBucket
    source: Path
    runnable: Path
    profile: dict[str, Profile]


def _sized_parts(prepared: Prepared, capacities: CapacityPlan | None, traced: TracedPart) -> list[_SizedPart]:
    found = []
    for bucket in [] if capacities is None else capacities.of(traced.part):
        files = {
            path: path.with_name(bucket_name(path.name, bucket.label)) for path in (traced.source, traced.runnable)
        }
        for whole, sized in files.items():
            set_capacities(whole, sized, bucket.rows)
        batch = Range(bucket.least, bucket.batch, bucket.batch)
        profile = _profile(prepared, traced.part, None, batch)
        found.append(_SizedPart(bucket, files[traced.source], files[traced.runnable], profile))
    return found


def _graphs(traced: TracedPart) -> set[Path]:
    return {traced.source, traced.runnable}


def _profile(
    prepared: Prepared, part: Part, usual_source: int | None, batch: Range | None = None
) -> dict[str, Profile]:
    batch = batch or prepared.batch
    sizes = part_sizes(prepared.config.task, part, batch, prepared.text, usual_source, prepared.written)
    return {name: Profile(*map(tuple, shapes)) for name, shapes in input_profile(part, sizes).items()}
