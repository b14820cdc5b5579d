"""Calls in CUDA graphs."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.kit.stage import StageRun

WARMUPS = 3  # calls before a capture: libraries load, allocators grow


class Captured:
    """A call as the replay of a CUDA graph, which writes into what the captured call returned. A rehearsal calls.

    Attributes:
        outputs: what the last call or replay gave.

    Raises:
        RuntimeError: from the constructor: the call cannot be captured.
    """

    def __init__(self, call: Callable[[], Any], stage: StageRun) -> None:
        self.call = call
        self._graph = None if stage.rehearse else torch.cuda.CUDAGraph()
        if self._graph is None:
            self.outputs = call()
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUPS):
                call()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(self._graph):
            self.outputs = call()

    def __call__(self) -> None:
        if self._graph is None:
            self.outputs = self.call()
        else:
            self._graph.replay()
