"""Names of the files that an export writes beside its manifest."""

from collections.abc import Collection, Iterable
from pathlib import Path

from export.build.options import ExportOptions
from export.graph.trace import EXTERNAL_DATA_LIMIT


def artifact_name(engine: Path, part: str, parts: int) -> str:
    """`out.plan` of a model with one part, else `out.<part>.plan`."""
    return engine.name if parts == 1 else f"{engine.stem}.{part}{engine.suffix}"


def bucket_name(artifact: str, label: str) -> str:
    """That of an engine with less room, beside the `artifact` of its part: `out.b8.plan`."""
    path = Path(artifact)
    return f"{path.stem}.{label}{path.suffix}"


def timing_name(engine: Path) -> str:
    return f"{engine.stem}.timing"


def library_name(engine: Path) -> str:
    """The plugin library; a name of its own, since another plan in the same folder may need another library."""
    return f"{engine.stem}.plugins.so"


def vocabulary_name(engine: Path) -> str:
    return f"{engine.stem}.vocab.txt"


def ranges_name(engine: Path) -> str:
    """The range table that an export measured."""
    return f"{engine.stem}.ranges.json"


def is_single_file(options: ExportOptions, weight_bytes: int) -> bool:
    """Whether an ONNX file holds its weights itself: they are not too large, and no buckets share them."""
    return options.engine.suffix == ".onnx" and weight_bytes <= EXTERNAL_DATA_LIMIT and not options.sized


def output_names(
    options: ExportOptions,
    parts: Collection[str],
    weight_bytes: int,
    vocabulary: Path | None,
    buckets: Iterable[str] = (),
) -> list[str]:
    """All files that an export may write beside its manifest; `buckets` are labels of engines with less room."""
    engine = options.engine
    whole = [artifact_name(engine, part, len(parts)) for part in parts]
    names = whole + [bucket_name(name, label) for label in buckets for name in whole]
    if engine.suffix == ".onnx":
        names += [] if is_single_file(options, weight_bytes) else [f"{name}.data" for name in whole]
    else:
        ships = options.plugins != "none" and not options.embed_plugins
        names += [timing_name(engine), *([library_name(engine)] if ships else [])]
    names += [ranges_name(engine)] if options.quantization.measures else []
    return names + ([] if vocabulary is None else [vocabulary_name(engine)])
