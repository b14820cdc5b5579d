"""The quantization of an artifact, as its manifest describes it: for graphs traced anew, and for torch."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from onnxscript import ir

from calibration.smoothing import default_channels, smooth
from export.artifact.manifest import Manifest
from export.graph.capacities import add_overflow
from export.graph.fuse import fuse_products
from export.graph.quantize import Precision, Quantizer
from export.validate.intermediates import PassesOf
from madtp.checkpoint.loading import Model
from madtp.models.parts import Part
from madtp.models.weight_products import part_weight_names, weight_products


def smooth_as(manifest: Manifest, model: Model) -> None:
    """Smooth a model, in place, as the export did before it traced it."""
    entry = manifest.quantization
    if entry is not None and entry.smoothed_at is not None:
        smooth(model, default_channels(model, entry.smoothed_at))


def quantizer_of(manifest: Manifest, model: Model) -> Quantizer | None:
    """What quantized the artifact; None where nothing was quantized."""
    entry = manifest.quantization
    if entry is None:
        return None
    products = frozenset(weight_products(model)).difference(entry.kept)
    ranges = {name: (limits.low, limits.high) for name, limits in (entry.ranges or {}).items()}
    precision: Precision = "fp8" if manifest.precision == "fp8" else "int8"
    return Quantizer(precision, entry.mode, products, ranges, manifest.is_plan)


def passes_of(manifest: Manifest, model: Model) -> PassesOf:
    """The passes that the export ran over a part's graph, but for that of its precision."""
    quantizer = quantizer_of(manifest, model)

    def passes(part: Part) -> list[Callable[[ir.Model], None]]:
        found: list[Callable[[ir.Model], None]] = [add_overflow] if manifest.is_sized else []
        found += [] if manifest.is_plan else [fuse_products]
        if quantizer is not None:
            found.append(quantizer.graph_pass(part_weight_names(model, part), set()))
        return found

    return passes


def in_torch(manifest: Manifest, model: Model) -> Callable[[], AbstractContextManager[None]]:
    """Contexts in which torch computes weight products as the artifact does."""
    quantizer = quantizer_of(manifest, model)
    return nullcontext if quantizer is None else quantizer.in_torch(model)
