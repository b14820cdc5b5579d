"""What `python -m export inspect` shows."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from export.artifact.manifest import KEPT_FAILURES
from export.inspect.compatibility import STANDARD
from export.inspect.inspection import Inspection
from export.inspect.library import capabilities
from export.inspect.onnx_file import OnnxFile

LISTED = 24  # tensors, operators or files before "and N more"
FAILURES = 6  # of a validation before "and N others"
LONGEST = 400  # characters of one value
VERIFIED_MEANS = "verified: the file has the sha256 in the manifest; who made them is not known"

Row = tuple[str, str]


def inspection_table(found: Inspection) -> Table:
    """Two columns in sections: the file, its manifest or other contents, every part, this machine."""
    table = Table(title=Text(_plain(found.file)), show_header=False, box=box.ROUNDED)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    sections = [list(_file_rows(found))]
    if found.manifest is not None:
        sections.append(list(_manifest_rows(found.manifest)))
        sections += [list(_part_rows(part)) for part in found.manifest["parts"]]
        sections.append(list(_validation_rows(found.manifest["validation"], damaged=bool(found.damage))))
    if found.onnx is not None:
        sections.append(list(_onnx_rows(found.onnx)))
    sections.append(list(_machine_rows(found)))
    for section in sections:
        for label, value in section:
            table.add_row(Text(label), Text(_plain(value)))
        table.add_section()
    return table


def _file_rows(found: Inspection) -> Iterator[Row]:
    yield "kind", found.kind
    if found.sha256 is not None:
        yield "size", _size(found.bytes)
        yield "sha256", found.sha256
    yield from found.details.items()
    yield from (("note", note) for note in found.notes)
    yield from (("DAMAGED", problem) for problem in found.damage[:LISTED])
    yield from _and_more("DAMAGED", len(found.damage))


def _manifest_rows(manifest: Mapping[str, Any]) -> Iterator[Row]:
    get = _reader(manifest)
    state = "" if manifest["state"] is None else f": {manifest['state']}"
    yield "manifest", f"{manifest['file']} (schema {manifest['schema']}){state}"
    yield "", VERIFIED_MEANS
    yield "created", get("created")
    yield "task", get("task")
    yield "parts", ", ".join(_text(part["name"]) for part in manifest["parts"]) or "none"
    digest = get("checkpoint", "sha256")[:12]
    yield (
        "checkpoint",
        f"{get('checkpoint', 'file')}, sha256 {digest}, {get('checkpoint', 'bytes', show=_size)}, "
        f"epoch {get('checkpoint', 'epoch')}",
    )
    checkpoint = manifest["checkpoint"]
    notes = checkpoint.get("notes") if isinstance(checkpoint, dict) else None
    yield from (("  note", _text(note)) for note in _list(notes)[:LISTED])
    yield from _and_more("  note", len(_list(notes)))
    yield "temperature", get("temperature")
    if manifest["keep_margin"] is not None:
        yield "keep margin", get("keep_margin")
    yield "layout, precision", f"{get('layout')} ({get('batching')} batching), {get('precision')}"
    yield from _quantization_rows(manifest["quantization"])
    yield from _capacity_rows(manifest["capacities"])
    oldest = f" (runs in {get('backend', 'oldest')} and newer)" if get("backend", "oldest") != "?" else ""
    yield "backend", f"{get('backend', 'name')} {get('backend', 'version')}{oldest}"
    library = manifest["library"]
    if isinstance(library, dict):
        name = "" if library["file"] is None else f"{_text(library['file'])}: "
        version = f"version {_text(library['version'])}, for compute capability {capabilities(library['sm'])}"
        yield "plugin library", f"{name}{library['state']}; {version}"
        yield "  sha256", f"{_text(library['sha256'])}; it is code: compare this with the hash of your own build"
    else:
        yield "plugin library", "none needed"
    vocabulary = manifest["vocabulary"]
    if isinstance(vocabulary, dict):
        yield "vocabulary", f"{_text(vocabulary['file'] or 'built in')}: {vocabulary['state']}"
    else:
        yield "vocabulary", "none: the export found no vocabulary of this model"


def _capacity_rows(capacities: Any) -> Iterator[Row]:
    if isinstance(capacities, dict):
        get = _reader(capacities)
        yield "buckets", f"{get('source')}: {get('origin')} ({get('samples')} samples), overflow {get('overflow')}"


def _quantization_rows(quantization: Any) -> Iterator[Row]:
    if not isinstance(quantization, dict):
        return
    get = _reader(quantization)
    yield "quantization", f"{get('mode')} ({get('why')})"
    yield "  weights", get("weights")
    smoothed = "" if quantization["smoothed_at"] is None else "; channels were made alike before"
    yield "  activations", f"{get('activations')}{smoothed}"
    kept = _list(quantization["kept"])
    yield "  stays float32", f"{len(kept)} products ({get('kept_by')})"
    yield from (("    ", _text(name)) for name in kept[:LISTED])
    yield from _and_more("    ", len(kept))
    if isinstance(quantization["calibration"], dict):
        get = _reader(quantization["calibration"])
        random = "RANDOM data: " if quantization["calibration"].get("synthetic") is True else ""
        yield "  ranges", f"{get('method')} over {random}{get('data')}, temperature {get('temperature')}"


def _part_rows(part: Mapping[str, Any]) -> Iterator[Row]:
    yield f"part {_text(part['name'])}", f"{_text(part['artifact'])}, {_size(part['bytes'])}: {part['state']}"
    if isinstance(part["external_data"], dict):
        yield "  weights", f"{_text(part['external_data'].get('file'))}: {part['external_data']['state']}"
    profile = part["profile"] if isinstance(part["profile"], dict) else {}
    for label, direction in (("  input", "inputs"), ("  output", "outputs")):
        entries = part[direction] if isinstance(part[direction], list) else []
        for entry in entries[:LISTED]:
            yield label, _tensor(entry, profile)
        yield from _and_more(label, len(entries))
    yield "  custom nodes", _counts(part["custom_nodes"])
    if isinstance(part["float32_nodes"], dict):
        yield "  in float32", _counts(part["float32_nodes"])
    if part["opsets"] is not None:
        standard = "" if set(part["opsets"]).difference(STANDARD) or part["functions"] else ": standard ONNX only"
        yield "  opsets", f"{_opsets(part['opsets'])} (IR version {part['ir_version']}){standard}"
    if part["layers"] is not None:
        yield "  plugin layers", f"{_counts(part['plugin_layers'])} (of {_text(part['layers'])} layers)"
    if isinstance(part["tokens"], dict):
        get = _reader(part["tokens"])
        yield "  tuned for tokens", f"{get('source')}: {get('origin')} ({get('samples')} samples)"
        sizes = part["tokens"].get("opt_max")
        for encoder, pairs in list(sizes.items())[:LISTED] if isinstance(sizes, dict) else ():
            yield f"    {_text(encoder)}", f"{' '.join(_pair(pair) for pair in _list(pairs))} (opt/max per layer)"
    for bucket in part["buckets"][:LISTED]:
        get = _reader(bucket)
        yield "  bucket", f"{get('artifact')}, {_size(bucket['bytes'])}: {bucket['state']}"
        predicted = f"{get('predicted', show=_digits)} (at most {get('predicted_most', show=_digits)})"
        yield "    requests", f"at most {get('batch')}; share of batches predicted to overflow: {predicted}"
        rows = bucket["rows"]
        for encoder, layers in list(rows.items())[:LISTED] if isinstance(rows, dict) else ():
            yield f"    {_text(encoder)} rows", " ".join(map(_text, _list(layers)))
    yield from _and_more("  bucket", len(part["buckets"]))


def _pair(pair: Any) -> str:
    return "/".join(map(_text, _list(pair)))


def _tensor(entry: Any, profile: Mapping[str, Any]) -> str:
    if not isinstance(entry, dict):
        return _text(entry)
    name, shape = entry.get("name"), entry.get("shape")
    dims = _shape(shape) if isinstance(shape, list) else "shape not stated"
    limits = [shape for shape in _list(profile.get(str(name))) if isinstance(shape, list)]
    named = zip(("min", "opt", "max"), limits, strict=False)
    ranges = "".join(f"  {label} {_shape(limit)}" for label, limit in named)
    return f"{_text(name)} {_text(entry.get('dtype'))} {dims}{ranges}"


def _shape(dims: list[Any]) -> str:
    return f"[{', '.join(map(_text, dims))}]"


def _validation_rows(validation: Any, damaged: bool) -> Iterator[Row]:
    if not isinstance(validation, dict):
        yield "validated", "not recorded in the manifest"
        return
    get = _reader(validation)
    compared = " (its ONNX file was compared instead)" if validation["validated"] == "onnx" else ""
    before = "; that was before the damage" if damaged else ""
    yield "validated", f"{get('artifact')}{compared}{before}"
    if isinstance(validation["verdict"], dict):
        yield from _verdict_rows(validation["verdict"])
    yield "at the export", f"samples: {get('samples')}"
    for parity in validation["parity"][:LISTED]:
        entry = _reader(parity)
        worst = f"worst difference {entry('worst', show=_small)} of {entry('worst_output')}"
        decided = f"{entry('decisions_equal')} of {entry('requests')} answers equal, {entry('explained')} excluded"
        yield (
            f"  at temperature {entry('temperature')}",
            f"{worst} (allowed {entry('tolerance', show=_small)}), {decided}",
        )
    yield (
        "GFLOPs per request",
        f"dense {get('gflops', 'dense', show=_digits)}, pruned {get('gflops', 'pruned', show=_digits)}",
    )


def _verdict_rows(verdict: Mapping[str, Any]) -> Iterator[Row]:
    get = _reader(verdict)
    yield "validate", f"{get('status')} on {get('created')}; samples: {get('samples')}"
    for entry in verdict["pairs"][:LISTED]:
        pair = _reader(entry)
        compared = f"{pair('requests')} requests compared, {pair('explained')} excluded"
        yield f"  {pair('pair')} at {pair('temperature')}", f"{pair('status')}: {compared}"
    if verdict["bisected"]:
        yield "  first divergent node", get("bisected")
    failures = verdict["failures"]
    yield from (("  FAILED", why) for why in failures[:FAILURES])
    if len(failures) > FAILURES:
        more = f"{len(failures) - FAILURES}{' or more' if len(failures) == KEPT_FAILURES else ''}"
        yield "  FAILED", f"and {more} others: --json lists those in the manifest, validate --json all"


def _onnx_rows(file: OnnxFile) -> Iterator[Row]:
    yield "producer", file.producer or "not stated"
    yield "opsets", f"{_opsets(file.opsets)} (IR version {file.ir_version})"
    for label, entries in (("input", file.inputs), ("output", file.outputs)):
        for entry in entries[:LISTED]:
            yield label, _tensor(entry, {})
        yield from _and_more(label, len(entries))
    yield "nodes", f"{file.nodes} ({file.weights} weights)"
    yield "operators", _counts(file.operators)
    yield "custom operators", _counts(file.custom)
    yield "function bodies", _some(file.functions)
    for name, state in list(file.external.items())[:LISTED]:
        yield "external weights", f"{name}: {state}"
    yield from _and_more("external weights", len(file.external))


def _machine_rows(found: Inspection) -> Iterator[Row]:
    gpus = found.machine.gpus
    if not gpus:
        yield "GPU", "none"
    for gpu in gpus:
        yield "GPU", f"{gpu.name}, compute capability {'.'.join(map(str, gpu.capability))}, driver {gpu.driver}"
    built = found.manifest["backend"] if found.manifest is not None else None
    for name, version in found.machine.packages.items():
        made = ""
        if isinstance(built, dict) and built.get("name") == name:
            made = f" (the artifact was built with {_text(built.get('version'))})"
        yield name, f"{version or 'not installed'}{made}"
    if found.verdict is not None:
        yield "runs here", str(found.verdict)


def _reader(content: Mapping[str, Any]) -> Callable[..., str]:
    """A function that takes nested keys and gives the value as text, "?" if the manifest lacks it."""

    def get(*keys: str, show: Callable[[Any], str] = _text) -> str:
        value: Any = content
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return show(value)

    return get


def _text(value: Any) -> str:
    return "?" if value is None else str(value)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _size(value: Any) -> str:
    return f"{value:,} bytes" if isinstance(value, int) else _text(value)


def _small(value: Any) -> str:
    return f"{value:.1e}" if isinstance(value, float) else _text(value)


def _digits(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else _text(value)


def _opsets(opsets: Mapping[str, int]) -> str:
    return ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in opsets.items())


def _counts(counts: Any) -> str:
    return _some([f"{_text(count)} {name}" for name, count in counts.items()]) if isinstance(counts, dict) else "?"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return (", ".join(names[:LISTED]) or "none") + more


def _and_more(label: str, count: int) -> Iterator[Row]:
    if count > LISTED:
        yield label, f"and {count - LISTED} more"


def _plain(text: str) -> str:
    """Text without control characters, which a file could use to rewrite the screen, cut at LONGEST."""
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}..."
