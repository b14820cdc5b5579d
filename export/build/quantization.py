"""What of an export is quantized, and with which ranges."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, cast

from calibration.keep import check_keep, read_keep
from calibration.ranges import RangeTable, check_count, check_ranges, collect_ranges, read_ranges
from calibration.recipes import recipe
from calibration.requests import DataChoice, Requests, choose_requests
from calibration.smoothing import Channels, default_channels
from calibration.tokens import Source
from export.build.options import ExportOptions
from export.build.quantization_options import DEFAULT_METHOD, QUANTIZED
from export.errors import OptionError
from export.graph.quantize import Mode, Precision, Quantizer
from madtp.checkpoint.loading import Model
from madtp.models.weight_products import weight_products

SCORES = "alignment"  # group of products
Method = Literal["minmax", "entropy", "percentile"]


@dataclass(frozen=True)
class Quantization:
    """How the weight products of an export are quantized.

    Attributes:
        why: reason for the mode, in words.
        products: names of all in the model.
        kept: names of those that stay in float32; `kept_by` says who decided that.
        method: which ranges of the table are taken; None for dynamic quantization.
        data: what to measure ranges on; None if they are not needed, or read from a file.
        table: None until they are measured.
        channels: by which the model is smoothed before it is traced (`calibration.smoothing`); None where it is not.
    """

    precision: Precision
    mode: Mode
    why: str
    products: tuple[str, ...]
    kept: frozenset[str]
    kept_by: str
    tensorrt: bool
    method: Method | None = None
    data: Requests | None = None
    table: RangeTable | None = None
    channels: Channels | None = field(default=None, repr=False, compare=False)

    @property
    def activations(self) -> str:
        """How activations are quantized, in words."""
        if self.mode == "dynamic":
            return "uint8, a scale and zero point for each tensor, measured while the model runs"
        return f"{'E4M3' if self.precision == 'fp8' else 'int8'}, symmetric, a fixed scale for each tensor"

    @property
    def quantizer(self) -> Quantizer:
        """What quantizes; ranges have been measured if they are needed."""
        ranges = {}
        if self.mode == "static":
            assert self.table is not None
            assert self.method is not None
            ranges = {name: methods[self.method] for name, methods in self.table.ranges.items()}
        return Quantizer(self.precision, self.mode, frozenset(self.products) - self.kept, ranges, self.tensorrt)


def prepare_quantization(
    options: ExportOptions, model: Model, checkpoint_sha256: str, temperature: float
) -> Quantization | None:
    """Decide how to quantize, and check all data for it; None for a precision that is not quantized.

    Raises:
        MadtpError: a range table, keep file or data cannot be used.
    """
    asked = options.quantization
    if options.precision not in QUANTIZED:
        return None
    precision = cast(Precision, options.precision)
    mode, why = asked.mode(precision, options.engine.suffix)
    kept, kept_by = _kept(options, model, checkpoint_sha256)
    names = tuple(weight_products(model))
    found = Quantization(precision, mode, why, names, kept, kept_by, tensorrt=options.engine.suffix == ".plan")
    if mode == "dynamic":
        smoothed = recipe(model.task, precision).smooth
        return replace(found, channels=default_channels(model, temperature)) if smoothed else found
    found = replace(found, method=cast(Method, asked.calib_method or DEFAULT_METHOD))
    if asked.table is not None:
        table = read_ranges(asked.table)
        check_ranges(table, checkpoint_sha256, model.task, asked.table)
        if table.synthetic and not asked.synthetic:
            raise OptionError(
                f"the range table '{asked.table}' is of random data",
                "Such ranges say nothing about real data.",
                "Make one of real data, or add --synthetic if this is a trial.",
            )
        return replace(found, table=table)
    choice = DataChoice(asked.calib, asked.synthetic, allow_outside=options.allow_outside)
    data = choose_requests(choice, options.checkpoint, model.config)
    check_count(len(data.reads), data.origin)
    return replace(found, data=data)


def _kept(options: ExportOptions, model: Model, checkpoint_sha256: str) -> tuple[frozenset[str], str]:
    products = weight_products(model)
    path = options.quantization.keep
    if path is not None:
        file = read_keep(path)
        check_keep(file, checkpoint_sha256, model.task, options.precision, set(products), path)
        kept, kept_by = set(file.keep), path.name
    else:
        kept = set(recipe(model.task, options.precision).kept(products.values()))
        kept_by = f"the recipe for {model.task}"
    scores = {name for name, product in products.items() if product.group == SCORES}
    return frozenset(kept - scores if options.quantization.quantize_scores else kept | scores), kept_by


def measure_ranges(
    found: Quantization,
    model: Model,
    checkpoint_sha256: str,
    temperature: float,
    on_detail: Callable[[str], None],
) -> Quantization:
    """With the ranges of its data; as it is if it has them or needs none.

    Raises:
        MadtpError: a sample cannot be read, or has no ranges.
    """
    if found.data is None:
        return found
    reads = found.data.inputs(model.config)
    source = Source(checkpoint_sha256, model.task, temperature, found.data.origin, found.data.index_sha256)
    table = collect_ranges(
        model,
        (read() for read in reads),
        source,
        synthetic=found.data.synthetic,
        on_sample=lambda done: on_detail(f"sample {done} of {len(reads)}"),
    )
    return replace(found, table=table)
