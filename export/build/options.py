"""Options of an export, checked as far as possible without reading a file."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from export.build.quantization_options import QuantizationOptions
from export.engine.range import Range
from export.errors import OptionError
from madtp.models.config import MAX_TEMPERATURE

BACKENDS = ("auto", "onnxruntime", "tensorrt", "tensorrt-rtx")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
IO_DTYPES = ("fp32", "fp16")
LAYOUTS = ("packed", "dynamic")
NO_NAME = re.compile(r"[\\\0]")  # what the manifest's schema refuses in names of files


def check_suffix(engine: Path) -> str:
    """The suffix of an artifact's path.

    Raises:
        OptionError: neither .plan nor .onnx.
    """
    if engine.suffix not in (".plan", ".onnx"):
        raise OptionError(
            f"--engine '{engine}' ends in '{engine.suffix}'",
            "The suffix selects the format: .plan is a TensorRT engine, .onnx an ONNX Runtime model.",
            "Use out.plan or out.onnx.",
        )
    return engine.suffix


@dataclass(frozen=True)
class ExportOptions:
    """One export. None means the default, which may depend on the model.

    Attributes:
        engine: the .plan (TensorRT) or .onnx (ONNX Runtime) file to write; the manifest goes beside it.
        config: JSON file of model sizes that override the checkpoint's.
        io_dtype: floating-point type of inputs and outputs; the temperature is float32 always.
        layout: "packed" has the sequences of a batch end to end and prunes every request by itself; "dynamic" fills
            them up to one length and prunes them together, as published. None is "packed", but "dynamic" for a plan
            without plugins or with token statistics, which packed plans have no use for.
        batch: requests per call; None is 1:1:8.
        text: tokens per text, [ENC] and [SEP] included; None is 2:24:64, less where the model has fewer positions.
        beams: maximum texts that a decoder takes at once: beams, or candidates; None is 128 for vqa, 8 for caption.
        max_length: maximum ids of an answer, or of a caption with its prompt, special ones included; None is 17 for
            vqa, 41 for caption.
        temperature: default written to the manifest.
        keep_margin: tokens that are this far below the threshold stay too, in units of a layer's mean |importance|.
        plugins: "none" (function bodies are inlined: standard ONNX), "auto" (the library is built when needed; an .onnx
            file holds the custom ops and their bodies), or the path of a plugin library.
        embed_plugins: embed the plugin library in the plan, so that there is one file to ship.
        tokens: file of token statistics (`python -m calibration tokens`); None measures the samples.
        capacity: file of capacities (`python -m calibration capacity`) of the packed layout, with which no size depends
            on data; None measures the samples for a plan, and lets sizes of an .onnx depend on data.
        quantization: of int8 and fp8.
        allow_outside: also read images of samples that lie outside their folder.
    """

    checkpoint: Path
    engine: Path
    config: Path | None = None
    backend: str = "auto"
    precision: str = "fp32"
    io_dtype: str = "fp32"
    layout: str | None = None
    batch: Range | None = None
    text: Range | None = None
    beams: int | None = None
    max_length: int | None = None
    temperature: float | None = None
    keep_margin: float = 0.0
    plugins: str = "auto"
    embed_plugins: bool = False
    tokens: Path | None = None
    capacity: Path | None = None
    quantization: QuantizationOptions = field(default_factory=QuantizationOptions)
    samples: Path | None = None
    allow_outside: bool = False

    def __post_init__(self) -> None:
        suffix = check_suffix(self.engine)
        if NO_NAME.search(self.engine.name):
            raise OptionError(
                f"--engine '{self.engine}' has a backslash in its name",
                "A manifest lists bare file names, and a backslash separates folders on some systems.",
                "Use another name.",
            )
        for option, value, known, works in (
            ("backend", self.backend, BACKENDS, BACKENDS),
            ("precision", self.precision, PRECISIONS, PRECISIONS),
            ("io-dtype", self.io_dtype, IO_DTYPES, IO_DTYPES),
            ("layout", self.layout or LAYOUTS[0], LAYOUTS, LAYOUTS),
        ):
            if value not in known:
                why = f"This version supports {', '.join(works)}."
                raise OptionError(f"--{option} '{value}' is unknown", why, f"Use --{option} {works[0]}.")
        if (suffix == ".onnx") != (self.backend == "onnxruntime") and self.backend != "auto":
            raise OptionError(
                f"--backend {self.backend} does not write {suffix} files",
                "onnxruntime writes .onnx, tensorrt and tensorrt-rtx write .plan.",
                "Omit --backend, or change the suffix of --engine.",
            )
        if self.packed and suffix == ".plan" and self.plugins == "none":
            raise OptionError(
                "--layout packed is not available for a .plan without plugins",
                "Sizes inside the bodies of its ops depend on data, which a packed plan is made to avoid.",
                "Use --layout dynamic, or omit --plugins.",
            )
        self._check_capacity()
        if self.io_dtype not in ("fp32", self.precision):
            raise OptionError(
                f"--io-dtype {self.io_dtype} does not go with --precision {self.precision}",
                "Inputs and outputs are float32, or of the type that the engine computes in.",
                "Omit --io-dtype.",
            )
        self.quantization.check(self.precision, suffix)
        if suffix == ".onnx" and self.plugins not in ("none", "auto"):
            raise OptionError(
                f"--plugins {self.plugins} does not apply to an .onnx file",
                "ONNX Runtime runs the function bodies of the custom ops; plugins are for TensorRT.",
                "Omit --plugins, use none (standard ONNX, bodies inlined), or export a .plan.",
            )
        if self.embed_plugins and (suffix == ".onnx" or self.plugins == "none"):
            raise OptionError(
                "--embed-plugins is given, but there is no plugin library to embed",
                "An .onnx file and a plan built with --plugins none use no plugins.",
                "Omit --embed-plugins.",
            )
        if self.tokens is not None and (suffix == ".onnx" or self.plugins == "none" or self.packed):
            raise OptionError(
                "--tokens is given, but nothing is tuned with it",
                "Token statistics size the plugin layers of a plan of the dynamic layout.",
                "Omit --tokens; sizes of a packed plan come from --capacity." if self.packed else "Omit --tokens.",
            )
        if self.temperature is not None and not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise OptionError(
                f"--temperature is {self.temperature}",
                "It has to be a finite number, zero or more.",
                "Use 0 for the dense model.",
            )
        if not 0 <= self.keep_margin < 1:
            raise OptionError(
                f"--keep-margin is {self.keep_margin}",
                "It is a fraction of a layer's mean |importance|: zero or more, less than 1.",
                "Use e.g. 0.05, or 0 for no margin.",
            )
        if self.keep_margin and self.tokens is not None:
            raise OptionError(
                "--tokens and --keep-margin exclude each other",
                "Token statistics are counted without a margin, so the plan would be tuned for too few tokens.",
                "Omit --tokens: the export counts on its samples, with the margin.",
            )

    @property
    def packed(self) -> bool:
        """Whether the sequences of a batch lie end to end, and every request is pruned by itself."""
        for_dynamic = self.engine.suffix == ".plan" and (self.plugins == "none" or self.tokens is not None)
        return not for_dynamic if self.layout is None else self.layout == "packed"

    @property
    def sized(self) -> bool:
        """Whether no size depends on data: layers have room for a number of rows."""
        return self.packed and (self.engine.suffix == ".plan" or self.capacity is not None)

    def _check_capacity(self) -> None:
        if self.capacity is None:
            return
        if self.layout == "dynamic":
            raise OptionError(
                "--capacity does not apply to --layout dynamic",
                "Capacities are of rows that lie end to end.",
                "Use --layout packed, or omit --capacity.",
            )
        if self.tokens is not None:
            raise OptionError(
                "--capacity and --tokens exclude each other",
                "Capacities are for the packed layout, token statistics for the dynamic one.",
                "Omit one of them.",
            )
        if self.plugins == "none":
            raise OptionError(
                "--capacity and --plugins none exclude each other",
                "Sizes inside the bodies of the custom ops depend on data, whatever room their results have.",
                "Omit one of them.",
            )
        if self.keep_margin:
            raise OptionError(
                "--capacity and --keep-margin exclude each other",
                "Capacities are counted without a margin, so that batches would often not fit.",
                "Omit --capacity"
                + ("." if self.engine.suffix == ".onnx" else ": the export counts on its samples, with the margin."),
            )
