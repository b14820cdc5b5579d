"""What the manifest says of an export: of its parts, its preprocessing, itself."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from export.artifact.manifest import SCHEMA_VERSION, tool_versions
from export.engine.range import Range
from export.graph.custom_nodes import custom_nodes
from export.graph.functions import OLDEST_ONNXRUNTIME
from madtp.data.preprocess import IMAGE_MEAN, IMAGE_STD
from madtp.data.samples import CAPTION_PROMPT, Config, SampleSet, edge_ids
from madtp.data.tokenize import DROPPED_PUNCTUATION, READERS
from madtp.files.inputs import sha256
from madtp.models.config import ClipConfig

if TYPE_CHECKING:
    from export.build.pipeline import ExportResult, Prepared


def artifact_name(engine: Path, part: str, parts: int) -> str:
    """`out.plan` of a model with one part, else `out.<part>.plan`."""
    return engine.name if parts == 1 else f"{engine.stem}.{part}{engine.suffix}"


def describe_part(name: str, source: Path, profile: Mapping[str, Any], checkpoint_sha256: str) -> dict[str, Any]:
    """The manifest's entry of a part, as far as its ONNX file tells."""
    graph = onnx.load(str(source), load_external_data=False).graph
    return {
        "name": name,
        "checkpoint_sha256": checkpoint_sha256,
        "onnx_sha256": sha256(source),
        "inputs": [_tensor_entry(value) for value in graph.input],
        "outputs": [_tensor_entry(value) for value in graph.output],
        "profile": dict(profile),
        "timing_cache": None,
        "custom_nodes": custom_nodes(source),
        "layers": None,
        "plugin_layers": {},
        "tokens": None,
    }


def _tensor_entry(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = [dim.dim_param if dim.HasField("dim_param") else dim.dim_value for dim in tensor.shape.dim]
    return {"name": value.name, "dtype": dtype, "shape": shape}


def describe_files(folder: Path, files: Sequence[str]) -> dict[str, Any]:
    """Name, hash and size of an artifact, the first of `files`, and of its external weights."""
    artifact = folder / files[0]
    external = next((name for name in files if name.endswith(".data")), None)
    return {
        "artifact": artifact.name,
        "sha256": sha256(artifact),
        "bytes": artifact.stat().st_size,
        "external_data": None if external is None else {"file": external, "sha256": sha256(folder / external)},
    }


def describe_text(config: Config, text: Range, samples: SampleSet, vocabulary: str | None) -> dict[str, Any]:
    """The manifest's `preprocessing.text` entry.

    Args:
        config: of the model.
        text: tokens that the engines take.
        samples: they know the vocabulary.
        vocabulary: its file beside the manifest.
    """
    first, last, longest = edge_ids(config)
    reader = READERS.get(config.task)
    clip = isinstance(config, ClipConfig)
    digest = samples.vocabulary_sha256
    return {
        "tokenizer": "clip-bpe" if clip else "bert-wordpiece",
        "lowercase": True,
        "dropped": "" if reader is None else DROPPED_PUNCTUATION.pattern,
        "dropped_as": "" if reader is None else reader.dropped_as,
        "max_words": None if reader is None else reader.max_words,
        "first_id": first,
        "last_id": last,
        "pad_id": 0 if isinstance(config, ClipConfig) else config.pad_token_id,
        "max_tokens": longest if clip or reader is None else min(longest, text.max),
        "padded": clip or (reader is not None and reader.padded),
        "prompt": CAPTION_PROMPT if config.task == "caption" else None,
        "vocabulary": None if digest is None else {"file": vocabulary, "sha256": digest},
    }


def describe_export(
    prepared: "Prepared",
    parts: list[dict[str, Any]],
    library: dict[str, Any] | None,
    vocabulary: str | None,
    result: "ExportResult",
) -> dict[str, Any]:
    """The whole manifest.

    Args:
        prepared: what was exported.
        parts: their entries.
        library: the entry of the plugin library, None without one.
        vocabulary: its file beside the manifest.
        result: of the check.
    """
    config, options, backend = prepared.config, prepared.options, prepared.backend
    oldest = {"oldest": OLDEST_ONNXRUNTIME} if options.engine.suffix == ".onnx" else {}
    return {
        "schema": SCHEMA_VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "task": config.task,
        "artifact": options.engine.name,
        "config": asdict(config),
        "checkpoint": prepared.checkpoint,
        "temperature": prepared.temperature,
        "layout": options.layout,
        "batching": "reference",
        "precision": options.precision,
        "backend": {"name": backend.name, "version": backend.version, "reason": backend.reason, **oldest},
        "tools": tool_versions(),
        "plugins": {"mode": "none" if library is None else "library", "library": library},
        "parts": parts,
        "preprocessing": {
            "image": {
                "size": config.image_size,
                "mode": "RGB",
                "resize": "bicubic (Pillow) to size x size, aspect ratio not kept",
                "scale": 1 / 255,
                "mean": list(IMAGE_MEAN),
                "std": list(IMAGE_STD),
            },
            "text": describe_text(config, prepared.text, prepared.samples, vocabulary),
        },
        "seconds": result.seconds,
        "validation": result.validation.to_manifest(),
    }
