"""Captures both ops before either has run in this process: `python -m tests.gpu.capture_first`.

CUDA loads a kernel when it is first launched, and whether it can while a stream is being captured is not promised.
"""

import sys

import torch

from madtp.ops.library import load_library
from tests.helpers.gpu_cases import call_of, chosen


def main() -> int:
    """Exit status: 0 if the graphs give what launches give, 1 if not. An error of CUDA's ends in a traceback."""
    library = load_library()
    calls = [call_of(library, case) for case in chosen(["fp16-tiles-of-64", "fp16-pruned"])]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call.run()
    graph.replay()
    torch.cuda.synchronize()
    replayed = [[tensor.clone() for tensor in call.outputs] for call in calls]
    for call in calls:
        call.run()
    torch.cuda.synchronize()
    count = int(calls[1].outputs[3])
    equal = int(replayed[1][3]) == count and all(map(torch.equal, replayed[0], calls[0].outputs))
    sys.stdout.write(f"captured first: {'equal' if equal else 'different'}\n")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
