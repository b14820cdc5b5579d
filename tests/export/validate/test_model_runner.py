"""What runs keep: results that outlive the session that gave them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from export.runtime.intermediates_runner import KeptIdsRunner
from export.validate.model_runner import ArtifactRunner, run_kept_ids
from madtp import NlvrConfig
from tests.helpers.checkpoints import TINY

CONFIG = NlvrConfig(**TINY)


class Stub:
    """A part that gives what a session of ONNX Runtime would hold."""

    def __init__(self) -> None:
        self.held = {"logits": torch.ones(1, 2), "ids": torch.arange(4, dtype=torch.int32)[None]}

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> dict[str, Tensor]:
        return dict(self.held)


def test_results_share_no_memory_with_the_session_that_gave_them() -> None:
    stub = Stub()
    result = ArtifactRunner("onnx", CONFIG, {}, {"model": stub}, {}).run({}, 1.0)
    (ids,) = run_kept_ids(CONFIG, {"model": KeptIdsRunner(stub, ["ids"])}, {}, 1.0)
    kept = {**result.outputs, "ids": ids}
    assert kept.keys() == stub.held.keys()
    assert all(torch.equal(kept[name], stub.held[name]) for name in kept)
    assert not {kept[name].data_ptr() for name in kept} & {value.data_ptr() for value in stub.held.values()}
