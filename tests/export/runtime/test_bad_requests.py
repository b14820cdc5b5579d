"""Requests that do not fit an artifact."""

import pytest
import torch

from export.artifact.manifest import TensorInfo
from export.runtime.runner import CheckedRunner
from madtp.errors import InputError

PROFILE = {
    "image0": [[2, 3, 32, 32], [2, 3, 32, 32], [4, 3, 32, 32]],
    "image1": [[2, 3, 32, 32], [2, 3, 32, 32], [4, 3, 32, 32]],
    "input_ids": [[2, 3], [2, 8], [4, 16]],
    "attention_mask": [[2, 3], [2, 8], [4, 16]],
}
INPUTS = [
    *(TensorInfo(name, "float32", ("batch", 3, 32, 32)) for name in ("image0", "image1")),
    *(TensorInfo(name, "int64", ("batch", "text")) for name in ("input_ids", "attention_mask")),
    TensorInfo("temperature", "float32", ()),
]


def request_of(batch: int = 2, length: int = 8) -> dict[str, torch.Tensor]:
    images = {name: torch.zeros(batch, 3, 32, 32) for name in ("image0", "image1")}
    return images | {name: torch.ones(batch, length, dtype=torch.int64) for name in ("input_ids", "attention_mask")}


REQUESTS: dict[str, tuple[dict[str, torch.Tensor], tuple[str, ...]]] = {
    "image of another size": (request_of() | {"image1": torch.zeros(2, 3, 48, 32)}, ("'image1'", "[2, 3, 48, 32]")),
    "grey image": (request_of() | {"image0": torch.zeros(2, 1, 32, 32)}, ("'image0'", "[2, 1, 32, 32]")),
    "image without a batch": (request_of() | {"image0": torch.zeros(3, 32, 32)}, ("'image0'", "[3, 32, 32]")),
    "image of bytes": (
        request_of() | {"image0": torch.zeros(2, 3, 32, 32, dtype=torch.uint8)},
        ("'image0' is uint8", "float32"),
    ),
    "ids of 32 bits": (
        request_of() | {"input_ids": torch.ones(2, 8, dtype=torch.int32)},
        ("'input_ids' is int32", "int64"),
    ),
    "batch too small": (request_of(batch=1), ("[1, 3, 32, 32]", "another --batch or --text")),
    "batch too large": (request_of(batch=5), ("[5, 3, 32, 32]", "another --batch or --text")),
    "text too short": (request_of(length=2), ("'input_ids'", "[2, 2]", "[2, 3] to [4, 16]")),
    "text too long": (request_of(length=17), ("'input_ids'", "[2, 17]", "[2, 3] to [4, 16]")),
    "input missing": (
        {"image0": torch.zeros(2, 3, 32, 32)},
        ("the inputs are image0", "attention_mask, image0, image1"),
    ),
    "input unknown": (request_of() | {"image": torch.zeros(1)}, ("attention_mask, image, image0",)),
}


@pytest.mark.parametrize(("request_", "parts"), REQUESTS.values(), ids=REQUESTS)
def test_bad_request(request_: dict[str, torch.Tensor], parts: tuple[str, ...]) -> None:
    ran = []

    class Recorder:
        def run(self, inputs: object, temperature: float) -> dict[str, torch.Tensor]:
            ran.append(inputs)
            return {}

    runner = CheckedRunner(Recorder(), INPUTS, [], PROFILE)
    for batch, length in ((2, 3), (4, 16)):
        runner.run(request_of(batch, length), 1.0)
    with pytest.raises(InputError) as caught:
        runner.run(request_, 1.0)
    assert len(ran) == 2
    for part in parts:
        assert part in str(caught.value)
