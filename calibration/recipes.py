"""Default recipes: what an export keeps in float32 and changes beforehand where nobody measured the checkpoint."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from madtp.models.weight_products import WeightProduct

FILE = "recipes.json"


@dataclass(frozen=True)
class Recipe:
    """How a task's models are brought to a low precision.

    Attributes:
        keep: patterns of places (`madtp.models.weight_products.WeightProduct.matches`) that stay in float32.
        smooth: whether channels are made alike first, where activations are quantized while the model runs
            (`calibration.smoothing`): ranges of a table are those of the model as it is.
        origin: the run that it comes from, in words.
    """

    keep: tuple[str, ...]
    smooth: bool
    origin: str

    def kept(self, products: Iterable[WeightProduct]) -> frozenset[str]:
        """Names of the products that stay in float32."""
        return frozenset(product.name for product in products if any(map(product.matches, self.keep)))


def recipe(task: str, precision: str) -> Recipe:
    """The recipe for a task and a precision, "int8" or "fp8"."""
    found = _recipes()[task][precision]
    return Recipe(tuple(found["keep"]), bool(found["smooth"]), str(found["origin"]))


@cache
def _recipes() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((files(__package__) / FILE).read_text(encoding="utf-8"))
    return content
