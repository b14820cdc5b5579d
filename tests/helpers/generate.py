"""Deterministic weights and images, by the rule that the recorded cases were made with.

Every tensor is a function of (seed, name, shape) alone: standard normal float32 numbers from PCG64 seeded with the
crc32 of "seed:name", scaled by what the name says the tensor is. So recorded cases need no stored weights.
"""

import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

QUERY_KEY_GAIN = 1.6  # sharper attention than plain random weights give


def _stream(seed: int, name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(f"{seed}:{name}".encode())))


def generated_tensor(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """The float32 weight called `name`."""
    x = _stream(seed, name).standard_normal(shape, dtype=np.float32)
    if name.endswith(("class_embedding", "token_embedding.weight")):
        return x
    if name in ("visual.proj", "text_projection"):  # used as x @ P: columns are outputs
        return x * np.float32(1 / math.sqrt(shape[0]))
    if len(shape) == 1:
        return np.float32(1) + np.float32(0.1) * x if name.endswith(".weight") else np.float32(0.02) * x
    if name.endswith(("pos_embed", "position_embeddings.weight", "positional_embedding")):
        return np.float32(0.3) * x
    if name.endswith(("cls_token", "word_embeddings.weight")):
        return x
    if name.endswith("space_dict"):
        return x * np.float32(1 / math.sqrt(shape[1]))
    x = x * np.float32(1 / math.sqrt(math.prod(shape[1:])))
    if name.endswith(("attn.qkv.weight", "in_proj_weight")):
        x[: 2 * shape[0] // 3] *= np.float32(QUERY_KEY_GAIN)
    elif name.endswith((".query.weight", ".key.weight")):
        x *= np.float32(QUERY_KEY_GAIN)
    return x


def generated_state(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """A state dict with the names and shapes of `model` (which may be on the meta device)."""
    return {
        name: torch.from_numpy(generated_tensor(name, tuple(tensor.shape), seed))
        for name, tensor in sorted(model.state_dict().items())
    }


def generated_images(count: int, size: int, seed: int) -> Tensor:
    """[count, 3, size, size] float32 in [-2.5, 2.5]: coarse blocks, one window of strong noise, fine noise."""
    images = np.empty((count, 3, size, size), dtype=np.float32)
    for index in range(count):
        rng = _stream(seed, f"image:{index}")
        cells = 4 + int(rng.integers(0, 9))
        coarse = rng.standard_normal((3, cells, cells), dtype=np.float32)
        step = -(-size // cells)
        blocks = coarse.repeat(step, axis=1).repeat(step, axis=2)[:, :size, :size]
        image = blocks * np.float32(0.2 + rng.random())
        side = int(size * (0.2 + 0.5 * rng.random()))
        top = int(rng.integers(0, size - side + 1))
        left = int(rng.integers(0, size - side + 1))
        window = rng.standard_normal((3, side, side), dtype=np.float32) * np.float32(0.5 + rng.random())
        image[:, top : top + side, left : left + side] += window
        image += rng.standard_normal((3, size, size), dtype=np.float32) * np.float32(0.05)
        images[index] = image
    return torch.from_numpy(images.clip(-2.5, 2.5))


def checksum_errors(state: Mapping[str, Tensor], checks: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Names in `checks` (crc32 of the float32 bytes) whose tensor in `state` differs."""
    return [
        name
        for name, check in checks.items()
        if name in state and zlib.crc32(state[name].numpy().tobytes()) != check["crc32"]
    ]
