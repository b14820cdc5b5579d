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

    def __init__(self, **held: Tensor) -> None:
        self.held = held

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> dict[str, Tensor]:
        return dict(self.held)


def test_results_share_no_memory_with_the_session_that_gave_them() -> None:
    shipped = Stub(logits=torch.ones(1, 2))
    copy = Stub(ids=torch.arange(4, dtype=torch.int32)[None], visual_token_counts=torch.tensor([[4]]))
    result = ArtifactRunner("onnx", CONFIG, {}, {"model": shipped}, {}).run({}, 1.0)
    (ids,) = run_kept_ids(CONFIG, {"model": KeptIdsRunner(copy, ["ids"])}, {}, 1.0)
    for kept, held in ((result.outputs["logits"], shipped.held["logits"]), (ids, copy.held["ids"])):
        assert torch.equal(kept, held)
        assert kept.data_ptr() != held.data_ptr()
