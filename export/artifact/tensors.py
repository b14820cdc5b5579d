"""The inputs and outputs of a part, as a manifest describes them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorInfo:
    """An input or output: dtype by its numpy name, dimensions as numbers or symbols ("batch", "text")."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
