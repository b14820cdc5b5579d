"""The third stage: the files of an artifact. ONNX files are those that were traced, plans are built from them."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from export.artifact.manifest import LibraryEntry, Profile, TimingCache, Tokens
from export.artifact.schema import encode
from export.build.files import artifact_name, library_name, timing_name
from export.build.prepare import Prepared
from export.build.torch_results import TorchResults
from export.build.traced_part import TracedPart
from export.engine.builder import build_plan
from export.engine.plugin_build import plugin_library
from export.engine.plugin_library import PluginLibrary
from export.engine.profile import input_profile, part_sizes
from export.engine.token_sizes import TokenPlan, token_plan
from export.graph.inline import inline_functions
from export.graph.token_sizes import set_token_sizes
from madtp.errors import InputError
from madtp.files.inputs import read_bytes
from madtp.files.staging import write_errors
from madtp.models.parts import Part
from madtp.tasks.requests import token_counts


@dataclass(frozen=True)
class BuiltPart:
    """A part as it is shipped.

    Attributes:
        files: names of its files, the artifact first.
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


@dataclass(frozen=True)
class BuiltArtifact:
    """All files of an artifact but its vocabulary and manifest, in the staging folder."""

    folder: Path
    parts: dict[str, BuiltPart]
    library: LibraryEntry | None = None

    @property
    def library_path(self) -> Path | None:
        """The plugin library beside the plans; None without one, or where the plans carry it."""
        return None if self.library is None or self.library.file is None else self.folder / self.library.file


def keep_onnx(prepared: Prepared, traced: Mapping[str, TracedPart], folder: Path) -> BuiltArtifact:
    """The artifact for ONNX Runtime: the traced files."""
    parts = {name: BuiltPart(part, part.files, _profile(prepared, part.part, None)) for name, part in traced.items()}
    return BuiltArtifact(folder, parts)


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
    tokens, entry = None, None
    with write_errors(target):
        if library is not None:
            tokens = _token_plan(prepared, results, on_detail)
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
        parts = {name: _build_plan(prepared, part, library, tokens, cache, on_detail) for name, part in traced.items()}
    return BuiltArtifact(folder, parts, entry)


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


def _build_plan(
    prepared: Prepared,
    traced: TracedPart,
    library: PluginLibrary | None,
    tokens: TokenPlan | None,
    cache: Path,
    on_detail: Callable[[str], None],
) -> BuiltPart:
    part, source = traced.part, traced.source
    network = source.with_name(f"network-{source.name}")
    needs_plugins = library is not None and bool(traced.custom_nodes)
    if tokens is not None and needs_plugins:
        set_token_sizes(source, network, {name: tokens.sizes[name] for name in part.encoders})
    else:
        inline_functions(source, network)
    profile = _profile(prepared, part, None if tokens is None else tokens.usual_left(part))
    plan = source.with_name(artifact_name(prepared.options.engine, part.name, len(prepared.parts)))
    result = build_plan(
        prepared.backend,
        network,
        plan,
        cache,
        encode(profile),
        on_detail,
        library.path if library is not None and needs_plugins else None,
        prepared.options.embed_plugins and needs_plugins,
    )
    entry = None if tokens is None else tokens.entry(part)
    built = BuiltPart(traced, (plan.name,), profile, entry, result.layers, result.plugin_layers)
    if not cache.is_file():
        return built
    timing_cache = TimingCache(cache.name, reused=result.timing_cache_reused)
    return replace(built, files=(plan.name, cache.name), timing_cache=timing_cache)


def _profile(prepared: Prepared, part: Part, usual_source: int | None) -> dict[str, Profile]:
    sizes = part_sizes(prepared.config.task, part, prepared.batch, prepared.text, usual_source, prepared.written)
    return {name: Profile(*map(tuple, shapes)) for name, shapes in input_profile(part, sizes).items()}
