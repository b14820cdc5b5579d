"""The manifest of an export, written once at its end."""

import datetime
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from export.artifact.manifest import (
    SCHEMA_VERSION,
    BackendEntry,
    BucketEntry,
    CalibrationEntry,
    ExternalData,
    ImagePreprocessing,
    Limits,
    Manifest,
    Part,
    Plugins,
    Preprocessing,
    QuantizationEntry,
    TextPreprocessing,
    Vocabulary,
    tool_versions,
)
from export.build.built_artifact import BuiltArtifact, BuiltBucket, BuiltPart
from export.build.files import ranges_name
from export.build.prepare import Prepared
from export.build.validation import ExportValidation
from export.graph.precision import oldest_onnxruntime
from madtp.data.preprocess import IMAGE_MEAN, IMAGE_STD
from madtp.data.samples import CAPTION_PROMPT, edge_ids
from madtp.data.tokenize import DROPPED_PUNCTUATION, READERS
from madtp.files.inputs import sha256
from madtp.models.config import ClipConfig


def manifest_of(
    prepared: Prepared,
    built: BuiltArtifact,
    validation: ExportValidation,
    vocabulary: str | None,
    seconds: Mapping[str, float],
) -> Manifest:
    """The manifest of files in the staging folder; `vocabulary` is the name of one beside it."""
    config, options, backend = prepared.config, prepared.options, prepared.backend
    oldest = oldest_onnxruntime(options.precision) if options.engine.suffix == ".onnx" else None
    layout = "packed" if options.packed else "dynamic"
    named: dict[str, Any] = {"task": config.task, "layout": layout, "precision": options.precision}
    return Manifest(
        schema=SCHEMA_VERSION,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        artifact=options.engine.name,
        config=asdict(config),
        checkpoint=prepared.checkpoint,
        temperature=prepared.temperature,
        keep_margin=options.keep_margin or None,
        batching="per-request" if options.packed else "reference",
        backend=BackendEntry(backend.name, backend.version, backend.reason, oldest),
        tools=tool_versions(),
        plugins=Plugins("none" if built.library is None else "library", built.library),
        parts=tuple(_part(name, part, prepared.checkpoint.sha256, built) for name, part in built.parts.items()),
        preprocessing=Preprocessing(_image(prepared), _text(prepared, vocabulary)),
        seconds=dict(seconds),
        validation=validation.entry(),
        quantization=_quantization(prepared, built),
        capacities=None if built.capacities is None else built.capacities.entry,
        **named,
    )


def _part(name: Any, part: BuiltPart, checkpoint_sha256: str, built: BuiltArtifact) -> Part:
    traced = part.traced
    artifact = built.folder / part.files[0]
    external = next((name for name in part.files if name.endswith(".data")), None)
    return Part(
        name=name,
        checkpoint_sha256=checkpoint_sha256,
        onnx_sha256=traced.sha256,
        inputs=traced.inputs,
        outputs=traced.outputs,
        profile=part.profile,
        timing_cache=part.timing_cache,
        custom_nodes=traced.custom_nodes,
        float32_nodes=traced.float32_nodes,
        layers=part.layers,
        plugin_layers=dict(part.plugin_layers),
        tokens=part.tokens,
        artifact=artifact.name,
        sha256=sha256(artifact),
        bytes=artifact.stat().st_size,
        external_data=None if external is None else ExternalData(external, sha256(built.folder / external)),
        buckets=tuple(_bucket(bucket, built.folder) for bucket in part.buckets) or None,
    )


def _bucket(built: BuiltBucket, folder: Path) -> BucketEntry:
    artifact = folder / built.files[0]
    external = next((name for name in built.files if name.endswith(".data")), None)
    return BucketEntry(
        least=built.bucket.least,
        batch=built.bucket.batch,
        rows=built.bucket.rows,
        whole=built.bucket.whole,
        predicted=built.bucket.predicted.share,
        predicted_most=built.bucket.predicted.high,
        onnx_sha256=built.onnx_sha256,
        profile=built.profile,
        layers=built.layers,
        artifact=artifact.name,
        sha256=sha256(artifact),
        bytes=artifact.stat().st_size,
        external_data=None if external is None else ExternalData(external, sha256(folder / external)),
    )


def _quantization(prepared: Prepared, built: BuiltArtifact) -> QuantizationEntry | None:
    found = prepared.quantization
    if found is None:
        return None
    quantized = {name for part in built.parts.values() for name in part.traced.quantized}
    entry = QuantizationEntry(
        mode=found.mode,
        why=found.why,
        weights=f"{'E4M3' if found.precision == 'fp8' else 'int8'}, symmetric, a scale for each output channel",
        activations=found.activations,
        kept_by=found.kept_by,
        kept=tuple(name for name in found.products if name not in quantized),
        smoothed_at=None if found.channels is None else prepared.temperature,
    )
    if found.table is None or found.method is None:
        return entry
    source = found.table.source
    calibration = CalibrationEntry(
        method=found.method,
        data=source.data,
        data_sha256=source.data_sha256,
        samples=found.table.samples,
        synthetic=found.table.synthetic,
        temperature=source.temperature,
    )
    measured = None if found.data is None else ranges_name(prepared.options.engine)
    ranges = {name: Limits(*limits) for name, limits in found.quantizer.ranges.items() if name in quantized}
    return replace(entry, calibration=calibration, ranges=ranges, ranges_file=measured)


def _image(prepared: Prepared) -> ImagePreprocessing:
    return ImagePreprocessing(
        size=prepared.config.image_size,
        mode="RGB",
        resize="bicubic (Pillow) to size x size, aspect ratio not kept",
        scale=1 / 255,
        mean=IMAGE_MEAN,
        std=IMAGE_STD,
    )


def _text(prepared: Prepared, vocabulary: str | None) -> TextPreprocessing:
    config = prepared.config
    first, last, longest = edge_ids(config)
    reader = READERS.get(config.task)
    clip = isinstance(config, ClipConfig)
    digest = prepared.samples.vocabulary_sha256
    return TextPreprocessing(
        tokenizer="clip-bpe" if clip else "bert-wordpiece",
        lowercase=True,
        dropped="" if reader is None else DROPPED_PUNCTUATION.pattern,
        dropped_as="" if reader is None else reader.dropped_as,
        max_words=None if reader is None else reader.max_words,
        first_id=first,
        last_id=last,
        pad_id=0 if isinstance(config, ClipConfig) else config.pad_token_id,
        max_tokens=longest if clip or reader is None else min(longest, prepared.text.max),
        padded=clip or (reader is not None and reader.padded),
        prompt=CAPTION_PROMPT if config.task == "caption" else None,
        vocabulary=None if digest is None else Vocabulary(vocabulary, digest),
    )
