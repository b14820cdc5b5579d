"""What a person sees: stages while an export runs, the table at its end."""

from collections.abc import Callable
from functools import partial

from rich.table import Table

from export.artifact.manifest import Manifest
from export.artifact.reader import manifest_path
from export.bench.latency import Latency
from export.bench.words import milliseconds, times
from export.build.check import Validation
from export.build.describe import artifact_name
from export.build.pipeline import ExportResult, Prepared
from export.validate.parity import ParityResult

EXPORT_STAGES = {".plan": 3, ".onnx": 2}


def preflight_table(prepared: Prepared) -> Table:
    """What an export would do, for `check`."""
    options, config = prepared.options, prepared.config
    table = Table(title="Preflight: everything an export needs is there; nothing was written", show_header=False)
    table.add_row("checkpoint", f"{options.checkpoint} ({prepared.weight_bytes / 1e6:.1f} MB of weights)")
    for note in prepared.checkpoint.get("notes", ()):
        table.add_row("note on it", note)
    table.add_row("task", config.task)
    table.add_row("layers", ", ".join(f"{layers} {name}" for name, layers in prepared.encoders.items()))
    table.add_row("image", f"{config.image_size} x {config.image_size} pixels, {config.vision_tokens} tokens")
    table.add_row("temperature", f"{prepared.temperature:g}")
    names = [artifact_name(options.engine, part, len(prepared.parts)) for part in prepared.parts]
    table.add_row("output", ", ".join(str(options.engine.parent / name) for name in names))
    table.add_row("backend", f"{prepared.backend.name} {prepared.backend.version}: {prepared.backend.reason}")
    table.add_row("runs here", "yes" if prepared.backend.can_run else "no: the plan would be built, not run")
    table.add_row("batch", str(prepared.batch))
    if prepared.text.max > 1:
        table.add_row("text tokens", str(prepared.text))
    table.add_row("samples", prepared.samples.origin)
    return table


def validation_table(validation: Validation, title: str) -> Table:
    """The table at the end: parity, GFLOPs and latency, dense beside pruned."""
    table = Table(title=title, caption=f"samples: {validation.samples}")
    table.add_column("")
    pruned, dense = validation.parity[0], validation.parity[-1]
    table.add_column("dense (temperature 0)", justify="right")
    table.add_column(f"pruned (temperature {pruned.temperature:g})", justify="right")
    table.add_column("dense / pruned", justify="right")
    rows: list[tuple[str, Callable[[ParityResult], str]]] = [
        ("worst |difference|", lambda r: f"{r.worst_output} {r.worst:.1e} (allowed {r.tolerance:.0e})".strip()),
        ("decisions equal", lambda r: f"{r.decisions_equal}/{r.requests - r.explained}"),
        ("token counts equal, layers", lambda r: f"{r.layers_equal}/{r.layers}"),
        ("left out: rounding decides a token", lambda r: str(r.explained)),
        *((f"{encoder} tokens after the last layer", partial(_last_tokens, encoder)) for encoder in pruned.mean_tokens),
        ("parity", _verdict),
    ]
    for label, cell in rows:
        table.add_row(label, cell(dense), cell(pruned), "")
    gflops = validation.gflops
    table.add_row(
        "GFLOPs a request",
        f"{gflops['dense']:.3f}",
        f"{gflops['pruned']:.3f}",
        _ratio(gflops["dense"], gflops["pruned"]),
    )
    names = {"torch": "torch, eager", "artifact": "artifact" if validation.validated == "artifact" else "its ONNX"}
    for key, name in names.items():
        slow, fast = validation.latency[f"{key} dense"], validation.latency[f"{key} pruned"]
        table.add_row(
            f"latency of {name}, ms: p50 / p90 / p99 of {slow.calls} calls",
            _percentiles(slow),
            _percentiles(fast),
            times(validation.speed_ups[key], slow.p50, fast.p50),
        )
    return table


def _percentiles(latency: Latency) -> str:
    return " / ".join(map(milliseconds, (latency.p50, latency.p90, latency.p99)))


def _last_tokens(encoder: str, result: ParityResult) -> str:
    return f"{result.mean_tokens[encoder][-1]:.1f}"


def _verdict(result: ParityResult) -> str:
    return "passed" if result.passed else "FAILED"


def _ratio(dense: float, pruned: float) -> str:
    return f"{dense / pruned:.2f}x"


def closing_lines(result: ExportResult) -> list[str]:
    """One line each: what was written, on which backend, and what was not done."""
    backend = result.backend
    lines = [f"backend: {backend.name} {backend.version} ({backend.reason})"]
    lines += [f"note on latency: {caveat}" for caveat in result.validation.caveats]
    if result.manifest is None:
        failures = [failure for parity in result.validation.parity for failure in parity.failures]
        shown = failures[:5] + ([f"and {len(failures) - 5} more"] if len(failures) > 5 else [])
        return [*lines, "parity FAILED, nothing was written:", *(f"  {failure}" for failure in shown)]
    if result.validation.validated == "onnx":
        lines.append(
            "the plan was built, not run: no GPU here can execute it; the ONNX it was built from was validated"
        )
    lines.extend(f"checkpoint: {note}" for note in result.manifest.checkpoint.notes or ())
    lines.extend(plugin_lines(result.manifest))
    if result.manifest.backend.oldest is not None:
        custom = any(part.custom_nodes for part in result.manifest.parts)
        kind = "custom ops with function bodies (--plugins none inlines them)" if custom else "standard ONNX alone"
        lines.append(f"file: {kind}; runs in ONNX Runtime {result.manifest.backend.oldest} and newer")
    folder = result.artifact.parent
    artifacts = ", ".join(str(folder / part.artifact) for part in result.manifest.parts)
    lines.append(f"wrote {artifacts} and {manifest_path(result.artifact)}")
    return lines


def plugin_lines(manifest: Manifest) -> list[str]:
    """One line each on the plugin library and on what the token sizes rest on; none for a plan without plugins."""
    library, parts = manifest.plugins.library, manifest.parts
    tokens = parts[0].tokens
    if library is None or tokens is None:
        return []
    count = sum(layers for part in parts for layers in part.plugin_layers.values())
    place = "in the plan; its loader has to allow host code" if library.embedded else f"{library.file} beside it"
    architectures = ", ".join(f"{number // 10}.{number % 10}" for number in library.sm)
    basis = {"file": "from the file of", "measured": "measured on", "guessed": "GUESSED from"}[tokens.source]
    return [
        f"plugins: {count} layers; library {place} (for compute capability {architectures})",
        f"token sizes tuned for: {basis} {tokens.origin}",
    ]
