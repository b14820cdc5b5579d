"""Options of an export about INT8 and FP8."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from calibration.methods import METHODS
from export.errors import OptionError

QUANTIZED = ("int8", "fp8")  # precisions
Mode = Literal["dynamic", "static"]
MODES = ("auto", "dynamic", "static")
DEFAULT_METHOD = "minmax"


@dataclass(frozen=True)
class QuantizationOptions:
    """How weight products are quantized. None means the default.

    Attributes:
        quantization: "dynamic" measures ranges of activations while the model runs, "static" beforehand. "auto" is
            static where the artifact or calibration data ask for it, else dynamic.
        calib: what ranges come from: a folder of samples or of a data set, or a range table (.json).
        calib_method: which ranges of a table are taken, one of `calibration.methods.METHODS`.
        synthetic: take the ranges of random data.
        keep: file of the products to leave in higher precision (`python -m calibration sensitivity`); None is the
            task's recipe.
        quantize_scores: quantize the products that give alignment scores too.
    """

    quantization: str = "auto"
    calib: Path | None = None
    calib_method: str | None = None
    synthetic: bool = False
    keep: Path | None = None
    quantize_scores: bool = False

    @property
    def given(self) -> str | None:
        """The first option that is not as it is without being given."""
        names = (entry.name for entry in fields(self) if getattr(self, entry.name) != entry.default)
        return next((f"--{name.replace('_', '-')}" for name in names), None)

    @property
    def table(self) -> Path | None:
        """The range table that --calib names, if it does."""
        return self.calib if self.calib is not None and self.calib.suffix == ".json" else None

    @property
    def calibrates(self) -> bool:
        """Whether ranges are given, or data to measure them on."""
        return self.calib is not None or self.synthetic

    @property
    def measures(self) -> bool:
        """Whether an export measures ranges itself."""
        return self.calibrates and self.table is None

    def check(self, precision: str, suffix: str) -> None:
        """Refuse what does not fit the export of an artifact with `suffix`.

        Raises:
            OptionError: naming the option.
        """
        if precision not in QUANTIZED:
            if self.given is not None:
                raise OptionError(
                    f"{self.given} is given, but nothing is quantized",
                    f"It is for {' and '.join(QUANTIZED)} only, and the precision is {precision}.",
                    f"Omit {self.given}, or use --precision int8.",
                )
            return
        for option, value, known in (
            ("quantization", self.quantization, MODES),
            ("calib-method", self.calib_method or DEFAULT_METHOD, METHODS),
        ):
            if value not in known:
                raise OptionError(f"--{option} is '{value}'", f"It is one of {', '.join(known)}.", "Use one of these.")
        if self.calib is not None and self.synthetic and not self.table:
            raise OptionError(
                "both --calib and --synthetic are given",
                "Ranges come from real data or from random data.",
                "Omit --synthetic.",
            )
        static_only = "a TensorRT plan" if suffix == ".plan" else "fp8" if precision == "fp8" else None
        if self.quantization == "dynamic" and static_only is not None:
            raise OptionError(
                f"--quantization dynamic does not work for {static_only}",
                f"Ranges of activations have to be known when {static_only} is built.",
                "Omit --quantization, and give --calib DIR.",
            )
        static = static_only is not None or self.quantization == "static"
        if static and not self.calibrates:
            raise OptionError(
                f"--precision {precision} needs calibration data here",
                "Activations are quantized with ranges that are measured beforehand, on samples like yours.",
                "Give --calib DIR (samples or a data set) or --calib ranges.json, or --synthetic for a trial.",
            )
        unused = "--calib" if self.calib else "--synthetic" if self.synthetic else "--calib-method"
        if not static and (self.quantization == "dynamic" or not self.calibrates) and self.given_ranges:
            raise OptionError(
                f"{unused} is given, but ranges are measured while the model runs",
                "Dynamic quantization needs no calibration data.",
                f"Omit {unused}, or use --quantization static.",
            )

    @property
    def given_ranges(self) -> bool:
        """Whether an option about ranges is given."""
        return self.calibrates or self.calib_method is not None

    def mode(self, precision: str, suffix: str) -> tuple[Mode, str]:
        """ "dynamic" or "static", and why."""
        if suffix == ".plan":
            return "static", "TensorRT wants ranges when it builds"
        if precision == "fp8":
            return "static", "FP8 has no dynamic form in ONNX Runtime"
        if self.quantization != "auto":
            return "dynamic" if self.quantization == "dynamic" else "static", "requested"
        if self.calibrates:
            return "static", "calibration data are given"
        return "dynamic", "faster and closer to fp32 in ONNX Runtime than static, and needs no calibration data"


def option_names() -> list[str]:
    """Names of the options, as keyword arguments."""
    return [entry.name for entry in fields(QuantizationOptions)]


def split_options(given: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `ExportOptions`, those of quantization gathered."""
    own = {name: given[name] for name in option_names()}
    others = {name: value for name, value in given.items() if name not in own}
    return {**others, "quantization": QuantizationOptions(**own)}
