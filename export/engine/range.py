"""The sizes that one dimension of an input may take."""

from dataclasses import dataclass

from export.errors import OptionError

MAX_SIZE = 2**31 - 1  # of a dimension, in TensorRT


@dataclass(frozen=True)
class Range:
    """Sizes that one dimension may take: the engine accepts min to max and is tuned for opt."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max <= MAX_SIZE:
            raise OptionError(
                f"{self} is no range of sizes", f"It has to be 1 <= MIN <= OPT <= MAX <= {MAX_SIZE}.", "E.g. 1:4:16."
            )

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"

    @classmethod
    def parse(cls, text: str, option: str) -> "Range":
        """From "MIN:OPT:MAX", or one number for all three.

        Raises:
            OptionError: not numbers, or not ascending.
        """
        parts = text.split(":")
        try:
            numbers = [int(part) for part in parts]
        except ValueError:
            numbers = []
        if len(numbers) == 1:
            numbers *= 3
        if len(numbers) != 3:
            raise OptionError(
                f"{option} is '{text}'", "It has to be MIN:OPT:MAX or one number.", f"E.g. {option} 1:4:16."
            )
        try:
            return cls(*numbers)
        except OptionError as error:
            raise OptionError(f"{option}: {error.what}", error.why, f"E.g. {option} 1:4:16.") from error
