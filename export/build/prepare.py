"""The first stage: read and check every input of an export."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from calibration.smoothing import smooth
from calibration.tokens import Source, TokenStatistics, check_source, read_tokens
from export.artifact.manifest import Checkpoint
from export.artifact.outputs import check_export
from export.build.files import output_names
from export.build.options import ExportOptions
from export.build.quantization import Quantization, prepare_quantization
from export.engine.backends import Backend, check_precision, choose_backend
from export.engine.capacities import CapacityPlan, buckets_of_file
from export.engine.plugin_build import architectures, check_tools
from export.engine.plugin_library import check_knows_margins, loadable_library
from export.engine.profile import DEFAULT_BATCH, Written, text_range, written_sizes
from export.engine.range import Range
from export.engine.token_sizes import check_encoders, depths
from export.errors import OptionError
from export.samples.profile import check_samples
from export.validate.narrow_model import cannot_stay_wide
from madtp.checkpoint.loading import Model, read_model
from madtp.data.samples import INDEX, Config, SampleSet, load_samples
from madtp.errors import listing
from madtp.files.inputs import sha256
from madtp.files.staging import check_writable
from madtp.models.parts import Part, parts_of


@dataclass(frozen=True)
class Prepared:
    """Everything an export needs, read and checked; nothing written yet.

    Attributes:
        written: what a decoder is built for; None for a model without one.
        tokens: the statistics of --tokens.
        capacities: the buckets of --capacity.
        encoders: pruned encoder -> number of layers.
        quantization: None where nothing is quantized.
    """

    options: ExportOptions
    config: Config
    backend: Backend
    batch: Range
    text: Range
    written: Written | None
    temperature: float
    samples: SampleSet
    weight_bytes: int
    checkpoint: Checkpoint
    tokens: TokenStatistics | None
    capacities: CapacityPlan | None
    parts: tuple[str, ...]
    encoders: dict[str, int]
    quantization: Quantization | None = None

    @property
    def needed_bytes(self) -> int:
        """Least room that the export takes in the output's folder."""
        return needed_bytes(self.options, self.weight_bytes)

    def load_model(self) -> Model:
        """The model, anew: nobody holds its weights while an engine is built, when memory is shortest.

        It is smoothed where the export quantizes a smoothed one.
        """
        model = read_model(self.options.checkpoint, self.options.config).model
        model.set_keep_margin(self.options.keep_margin)
        if self.quantization is not None and self.quantization.channels is not None:
            smooth(model, self.quantization.channels)
        return model


def prepare(options: ExportOptions) -> Prepared:
    """Read and check every input of an export; the preflight. Writes nothing.

    Raises:
        MadtpError: whatever is wrong with the options, the checkpoint, the samples, the output or this machine.
    """
    check_export(options.engine, [], input_files(options, None))
    backend = choose_backend(options.backend, options.engine.suffix)
    loaded = read_model(options.checkpoint, options.config)
    model = loaded.model
    parts = parts_of(model)
    check_weights(model, options.precision)
    text = text_range(model.config, options.text)
    written = written_sizes(model.config, options.beams, options.max_length)
    batch = options.batch or DEFAULT_BATCH
    samples = load_samples(options.samples, options.checkpoint, model.config, allow_outside=options.allow_outside)
    check_samples(samples, model.config, batch, text)
    weight_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    check_writable(options.engine, needed_bytes(options, weight_bytes))
    temperature = model.temperature if options.temperature is None else options.temperature
    path = options.checkpoint
    checkpoint = Checkpoint(path.name, sha256(path), path.stat().st_size, loaded.epoch, tuple(loaded.notes) or None)
    own = Source(checkpoint.sha256, model.task, temperature, "", None)
    capacities = None
    if options.capacity is not None:
        capacities = buckets_of_file(options.capacity, own, model.config, depths(parts), batch, text)
    labels = bucket_labels(options, batch, parts, capacities)
    outputs = output_names(options, parts, weight_bytes, samples.vocabulary, labels)
    check_export(options.engine, outputs, input_files(options, samples.vocabulary))
    tokens = None
    if options.tokens is not None:
        tokens = read_tokens(options.tokens)
        check_source(tokens.source, own, options.tokens)
        check_encoders(tokens, parts, options.tokens)
    sm: tuple[int, ...] | None = None
    if options.plugins not in ("auto", "none"):
        library = loadable_library(Path(options.plugins))
        if options.keep_margin:
            check_knows_margins(library)
        sm = library.sm
    elif options.plugins == "auto" and options.engine.suffix == ".plan":
        check_tools()
        sm = architectures()
    check_precision(backend, options.precision, sm)
    return Prepared(
        options=options,
        config=model.config,
        backend=backend,
        batch=batch,
        text=text,
        written=written,
        temperature=temperature,
        samples=samples,
        weight_bytes=weight_bytes,
        checkpoint=checkpoint,
        tokens=tokens,
        capacities=capacities,
        parts=tuple(parts),
        encoders=depths(parts),
        quantization=prepare_quantization(options, model, checkpoint.sha256, temperature),
    )


def bucket_labels(
    options: ExportOptions, batch: Range, parts: Mapping[str, Part], capacities: CapacityPlan | None
) -> list[str]:
    """Labels that buckets may have; those of a plan whose capacities are yet to be measured may be fewer."""
    if capacities is not None:
        return list(dict.fromkeys(bucket.label for part in parts.values() for bucket in capacities.of(part)))
    sizes = sorted({batch.min, batch.opt, batch.max}) if options.sized else []
    return [label for size in sizes for label in (f"b{size}", f"b{size}-2")]


def check_weights(model: Model, precision: str) -> None:
    """Refuse float16 where weights overflow it that are no layer's, whose product could stay in float32.

    Raises:
        OptionError: naming the weights.
    """
    names = cannot_stay_wide(model, torch.float16) if precision == "fp16" else []
    if names:
        raise OptionError(
            f"--precision fp16 cannot hold the weights {listing(names)}",
            f"They have values above {torch.finfo(torch.float16).max:g}, the largest number in float16.",
            "Use --precision bf16, which holds them.",
        )


def input_files(options: ExportOptions, vocabulary: Path | None) -> list[Path | None]:
    """Files that an export reads and could write over; images are none."""
    library = None if options.plugins in ("auto", "none") else Path(options.plugins)
    index = None if options.samples is None else options.samples / INDEX
    quantization = options.quantization
    calibrated = None if quantization.calib is None or quantization.table else quantization.calib / INDEX
    quantized = [quantization.table, calibrated, quantization.keep]
    return [
        options.checkpoint,
        options.config,
        options.tokens,
        options.capacity,
        library,
        index,
        vocabulary,
        *quantized,
    ]


def needed_bytes(options: ExportOptions, weight_bytes: int) -> int:
    """Least room that an export takes: a plan is built from an ONNX file that lies beside it meanwhile."""
    return weight_bytes * (2 if options.engine.suffix == ".plan" else 1)
