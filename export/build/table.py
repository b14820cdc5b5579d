"""The tables of a preflight and of an export, and the lines below them."""

from collections import Counter
from collections.abc import Callable
from functools import partial

from rich.table import Table

from export.artifact.manifest import BucketEntry, Manifest, Parity
from export.artifact.reader import manifest_path
from export.bench.latency import Latency, ratio_of, summarize
from export.bench.words import milliseconds, times
from export.build.files import artifact_name
from export.build.pipeline import ExportResult
from export.build.prepare import Prepared
from export.build.validation import ExportValidation

PACKED = "packed: every request is pruned by itself (--layout dynamic has the published rule for batches)"
DYNAMIC = "dynamic: a batch is pruned together, as published, so an answer depends on the rest of its batch"
EXPORT_STAGES = {".plan": 3, ".onnx": 2}


def preflight_table(prepared: Prepared) -> Table:
    """What an export would do, for `check`."""
    options, config = prepared.options, prepared.config
    table = Table(title="Preflight passed: everything an export needs is available; nothing written", show_header=False)
    table.add_row("checkpoint", f"{options.checkpoint} ({prepared.weight_bytes / 1e6:.1f} MB of weights)")
    for note in prepared.checkpoint.notes or ():
        table.add_row("checkpoint note", note)
    table.add_row("task", config.task)
    table.add_row("layers", ", ".join(f"{layers} {name}" for name, layers in prepared.encoders.items()))
    table.add_row("image", f"{config.image_size} x {config.image_size} pixels, {config.vision_tokens} tokens")
    table.add_row("temperature", f"{prepared.temperature:g}")
    if options.keep_margin:
        table.add_row("keep margin", f"{options.keep_margin:g}")
    names = [artifact_name(options.engine, part, len(prepared.parts)) for part in prepared.parts]
    table.add_row("output", ", ".join(str(options.engine.parent / name) for name in names))
    table.add_row("backend", f"{prepared.backend.name} {prepared.backend.version}: {prepared.backend.reason}")
    table.add_row("runs here", "yes" if prepared.backend.can_run else "no: the plan would be built, not run")
    table.add_row("precision", f"{options.precision}, inputs and outputs {options.io_dtype}")
    table.add_row("layout", PACKED if options.packed else DYNAMIC)
    found = prepared.quantization
    if found is not None:
        table.add_row("quantization", f"{found.mode}: {found.why}")
        table.add_row("stays float32", f"{len(found.kept)} of {len(found.products)} weight products ({found.kept_by})")
    table.add_row("batch", str(prepared.batch))
    if prepared.text.max > 1:
        table.add_row("text tokens", str(prepared.text))
    table.add_row("samples", prepared.samples.origin)
    return table


def validation_table(validation: ExportValidation, title: str) -> Table:
    """Parity, GFLOPs and latency, dense beside pruned."""
    table = Table(title=title, caption=f"samples: {validation.samples}")
    table.add_column("")
    pruned, dense = validation.parity[0], validation.parity[-1]
    table.add_column("dense (temperature 0)", justify="right")
    table.add_column(f"pruned (temperature {pruned.temperature:g})", justify="right")
    table.add_column("dense / pruned", justify="right")
    rows: list[tuple[str, Callable[[Parity], str]]] = [
        ("max |difference| (allowed)", lambda r: f"{r.worst_output} {r.worst:.1e} ({r.tolerance:.0e})".strip()),
        ("equal answers", lambda r: f"{r.decisions_equal}/{r.requests - r.explained}"),
        ("layers with equal tokens", lambda r: f"{r.layers_equal}/{r.layers}"),
        ("excluded: a score within rounding of the threshold", lambda r: str(r.explained)),
        *((f"{encoder} tokens after the last layer", partial(_last_tokens, encoder)) for encoder in pruned.mean_tokens),
    ]
    for label, cell in rows:
        table.add_row(label, cell(dense), cell(pruned), "")
    table.add_row("parity", _passed(validation, -1), _passed(validation, 0), "")
    gflops = validation.gflops
    ratio = f"{gflops.dense / gflops.pruned:.2f}x"
    table.add_row("GFLOPs per request", f"{gflops.dense:.3f}", f"{gflops.pruned:.3f}", ratio)
    if gflops.without_margin is not None:
        table.add_row(
            "GFLOPs without the margin",
            f"{gflops.dense:.3f}",
            f"{gflops.without_margin:.3f}",
            f"{gflops.dense / gflops.without_margin:.2f}x",
        )
    names = {"torch": "torch, eager", "artifact": "artifact" if validation.validated == "artifact" else "its ONNX"}
    for key, name in names.items():
        slow, fast = validation.times[f"{key} dense"], validation.times[f"{key} pruned"]
        dense_latency, pruned_latency = summarize(slow), summarize(fast)
        table.add_row(
            f"latency of {name}, ms: p50 / p90 / p99 of {len(slow)} calls",
            _percentiles(dense_latency),
            _percentiles(pruned_latency),
            times(ratio_of(slow, fast), dense_latency.p50, pruned_latency.p50),
        )
    return table


def _percentiles(latency: Latency) -> str:
    return " / ".join(map(milliseconds, (latency.p50, latency.p90, latency.p99)))


def _last_tokens(encoder: str, parity: Parity) -> str:
    return f"{parity.mean_tokens[encoder][-1]:.1f}"


def _passed(validation: ExportValidation, index: int) -> str:
    return "passed" if validation.pairs[index].passed else "FAILED"


def closing_lines(result: ExportResult) -> list[str]:
    """One line each: what was written, on which backend, and what was not done."""
    backend, target, manifest = result.prepared.backend, result.prepared.options.engine, result.manifest
    lines = [f"backend: {backend.name} {backend.version} ({backend.reason})"]
    lines += [f"note on latency: {caveat}" for caveat in result.validation.caveats]
    lines += [f"cost at {pair.temperature:g}: {pair.cost}" for pair in result.validation.pairs if pair.cost is not None]
    if manifest is None:
        failures = [failure for parity in result.validation.parity for failure in parity.failures]
        shown = failures[:5] + ([f"and {len(failures) - 5} more"] if len(failures) > 5 else [])
        return [*lines, "parity FAILED, nothing was written:", *(f"  {failure}" for failure in shown)]
    lines.append(f"layout {PACKED if manifest.is_packed else DYNAMIC}")
    if result.validation.validated == "onnx":
        lines.append("the plan was built, not run: no GPU here can run it; the ONNX it was built from was validated")
    lines.extend(f"checkpoint: {note}" for note in manifest.checkpoint.notes or ())
    lines.extend(quantization_lines(manifest))
    lines.extend(precision_lines(manifest))
    lines.extend(plugin_lines(manifest))
    lines.extend(bucket_lines(manifest))
    if result.validation.kernels is not None:
        lines.append(str(result.validation.kernels))
    if manifest.backend.oldest is not None:
        custom = any(part.custom_nodes for part in manifest.parts)
        kind = "custom ops with function bodies (--plugins none inlines them)" if custom else "standard ONNX ops only"
        lines.append(f"file: {kind}; runs in ONNX Runtime {manifest.backend.oldest} and newer")
    artifacts = ", ".join(str(target.parent / part.artifact) for part in manifest.parts)
    lines.append(f"wrote {artifacts} and {manifest_path(target)}")
    return lines


def quantization_lines(manifest: Manifest) -> list[str]:
    """One line on what was quantized, and one on calibration; none where nothing was."""
    entry = manifest.quantization
    if entry is None:
        return []
    kept = f"{len(entry.kept)} products stay float32 ({entry.kept_by})"
    smoothed = "" if entry.smoothed_at is None else "; channels were made alike before"
    lines = [f"quantized: {entry.mode} ({entry.why}); {kept}{smoothed}"]
    found = entry.calibration
    if found is not None:
        what = "RANDOM data, which say nothing about real ones: " if found.synthetic else ""
        lines.append(f"ranges: {found.method} over {what}{found.data}")
    return lines


def precision_lines(manifest: Manifest) -> list[str]:
    """One line each on what is not in the precision that was asked for, and why; none for fp32."""
    reasons: Counter[str] = Counter()
    for part in manifest.parts:
        reasons.update(part.float32_nodes or {})
    if not reasons:
        return []
    kept = ", ".join(f"{why} ({nodes})" for why, nodes in reasons.items())
    io_dtype = f"inputs and outputs {manifest.io_dtype}"
    return [f"precision: {manifest.precision}, {io_dtype}; nodes in float32 outside of the custom ops: {kept}"]


def plugin_lines(manifest: Manifest) -> list[str]:
    """One line each on the plugin library and on the origin of token sizes, if any; none for a plan without plugins."""
    library, tokens = manifest.plugins.library, manifest.parts[0].tokens
    if library is None:
        return []
    count = sum(layers for part in manifest.parts for layers in part.plugin_layers.values())
    place = "in the plan; its loader has to allow host code" if library.embedded else f"{library.file} beside it"
    architectures = ", ".join(f"{number // 10}.{number % 10}" for number in library.sm)
    lines = [f"plugins: {count} layers; library {place} (for compute capability {architectures})"]
    if tokens is not None:
        basis = {"file": "statistics of", "measured": "measured on", "guessed": "GUESSED from"}[tokens.source]
        lines.append(f"token sizes tuned for: {basis} {tokens.origin}")
    return lines


def bucket_lines(manifest: Manifest) -> list[str]:
    """A line on the buckets of each part, and one on where they come from; none where sizes depend on data."""
    sized = [part for part in manifest.parts if part.is_sized]
    entry = manifest.capacities
    if not sized:
        return []
    if entry is None:
        why = "temperature 0 prunes nothing" if manifest.temperature <= 0 else "the samples are too few"
        return [f"buckets: none ({why}); the engine has room for everything, which costs time"]
    basis = {"file": "statistics of", "measured": "measured on", "guessed": "GUESSED from"}[entry.source]
    lines = [f"buckets: {basis} {entry.origin} ({entry.samples}), for an overflow of {entry.overflow:.2%}"]
    for part in sized:
        found = [
            f"batch {bucket.batch}, {_share(bucket):.0%} of all rows, {bucket.predicted:.2%} (at most "
            f"{bucket.predicted_most:.2%}) predicted to overflow"
            for bucket in part.buckets or ()
        ]
        lines.append(f"buckets of {part.name}: {'; '.join(found) or 'none with less room than for everything'}")
    return lines


def _share(bucket: BucketEntry) -> float:
    """Its rows, of those of as many requests of which nothing is pruned."""
    kept = sum(map(sum, bucket.rows.values()))
    return kept / sum(len(rows) * bucket.whole[encoder] for encoder, rows in bucket.rows.items())
