"""What every implementation of TokenCompact has to do, whatever runs it; the reference is that of torch."""

import itertools
from typing import Any

import torch

from madtp.ops import reference as ops
from tests.helpers.kernel_calls import bits, check_compact, compact_call, is_decided
from tests.helpers.kernels import Kernels


def check_any_compaction(kernels: Kernels, inputs: list[Any], ties: int) -> None:
    """Equal to the reference where that is decided; nothing changes without a temperature.

    Args:
        ties: so many tokens have different scores, and the others those of one of them; 0: all may differ.
    """
    if ties:
        tokens = inputs[3].shape[1]
        inputs[3:6] = [score[:, torch.arange(tokens) % ties % tokens] for score in inputs[3:6]]
    call = tuple(inputs)
    result = check_compact(kernels, call) if is_decided(call) else kernels.token_compact(*call)
    if not inputs[6] > 0:
        assert result.count == inputs[0].shape[1]
        assert torch.equal(bits(result.tokens.cpu()), bits(inputs[0]))


def check_random_calls(kernels: Kernels) -> None:
    """Most are decided and pruned, so that comparing random calls means something."""
    decided = [call for seed in range(40) if is_decided(call := tuple(compact_call(2, 50, seed, torch.float32)))]
    assert len(decided) > 20
    assert sum(check_compact(kernels, call).count < 51 for call in decided) > 10


def check_margins(kernels: Kernels) -> None:
    """A larger margin keeps more tokens, until nothing is pruned."""
    margins = (0.0, 0.05, 0.2, 0.5, 5.0)
    calls = [tuple(compact_call(2, 100, 2, torch.float32, 0.7, margin)) for margin in margins]
    assert all(map(is_decided, calls))
    counts = [check_compact(kernels, call).count for call in calls]
    assert counts == sorted(set(counts))
    assert counts[-1] == 101


def check_nothing_or_everything(kernels: Kernels, keeps: str, dtype: torch.dtype) -> None:
    """Keeping nothing, or everything, changes nothing."""
    inputs = compact_call(2, 40, 3, dtype)
    for score in inputs[3:6]:
        score[:] = 0.0 if keeps == "nothing" else 1.0
    if keeps == "everything":
        inputs[6] = torch.tensor(1e-3)  # the threshold is the score of the best aligned token
        inputs[4][:, 7] = 0.0
        inputs[5][:, 7] = 1.01
    result = check_compact(kernels, tuple(inputs))
    assert result.count == 41
    assert torch.equal(result.tokens.cpu(), inputs[0])


def check_not_finite(kernels: Kernels, index: int, value: float) -> None:
    """One score that is not finite, in input `index`, leaves all tokens of the batch."""
    for token, batch in itertools.product((0, 31, 149), (1, 2)):
        inputs = compact_call(batch, 150, 11, torch.float32)
        assert check_compact(kernels, tuple(inputs)).count < 151
        inputs[index][-1, token] = value
        result = kernels.token_compact(*inputs)
        assert result.count == int(ops.token_compact(*inputs)[3]) == 151
        assert torch.equal(result.tokens.cpu(), inputs[0])
