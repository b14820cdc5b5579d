"""Inputs of the two ops during a replay of recorded cases: real data of every layer for the kernels."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests import golden


@dataclass
class Calls:
    """Arguments of every call of the two ops, in their order."""

    attention: list[tuple[Any, ...]] = field(default_factory=list)
    compact: list[tuple[Any, ...]] = field(default_factory=list)


class _Recorder(TorchDispatchMode):
    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self.calls = {"madtp::aligned_attention": calls.attention, "madtp::token_compact": calls.compact}

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (calls := self.calls.get(op._schema.name)) is not None:
            calls.append(tuple(a.clone() if isinstance(a, torch.Tensor) else a for a in args))
        return op(*args, **(kwargs or {}))


@contextmanager
def recording() -> Iterator[Calls]:
    """Record the calls made inside."""
    calls = Calls()
    with torch.no_grad(), _Recorder(calls):
        yield calls


def replayed(folder: Path, only: str | None = None) -> Iterator[tuple[str, Calls]]:
    """(case, calls) of the cases of a golden folder; of one of them, if named."""
    model = golden.load_model(folder)
    for case in golden.load_cases(folder, model.config.image_size):
        if only in (None, case.name):
            with recording() as calls:
                model(**case.inputs, temperature=torch.tensor(case.temperature))
            yield case.name, calls
