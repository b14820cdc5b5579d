"""Runners that refuse what a part was not built for, and results that mean nothing."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from export.artifact.manifest import TensorInfo
from export.errors import BackendError
from export.runtime.plan_runner import PlanRunner
from madtp.errors import InputError
from madtp.tasks.requests import Outputs, Runner


class CheckedRunner:
    """A runner of a part that refuses inputs outside the profile, and outputs that are not the part's.

    Whoever runs it gives and gets float32, whatever the type of the part's inputs and outputs.
    """

    def __init__(
        self,
        runner: Runner,
        inputs: Sequence[TensorInfo],
        outputs: Sequence[TensorInfo],
        profile: Mapping[str, Iterable[Sequence[int]]],
    ) -> None:
        self._runner, self._inputs, self._outputs, self._profile = runner, inputs, outputs, profile

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        check_part_inputs(inputs, self._inputs, self._profile)
        outputs = self._runner.run(inputs, temperature)
        check_part_outputs(outputs, self._outputs)
        return {name: value.float() if value.dtype == torch.float16 else value for name, value in outputs.items()}

    @property
    def capturable(self) -> bool:
        """Whether the latest run could be captured as a CUDA graph; only plans can."""
        return isinstance(self._runner, PlanRunner) and self._runner.capturable

    def close(self) -> None:
        """Free what a plan holds on the GPU; it cannot run afterwards."""
        if isinstance(self._runner, PlanRunner):
            self._runner.close()


class FiniteRunner:
    """A runner that refuses outputs that are not finite: answers, speed and token counts made of them mean nothing.

    Args:
        context: what it runs for, e.g. the temperature and sample; the error names it.
    """

    def __init__(self, runner: Runner, part: str, context: str) -> None:
        self._runner, self._part, self._context = runner, part, context
        self.runs = 0

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        self.runs += 1
        outputs = self._runner.run(inputs, temperature)
        for name, value in outputs.items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                where = _not_finite(value, len(next(iter(inputs.values()))))
                raise InputError(
                    f"the artifact's output '{name}' of part {self._part} is not finite{where} ({self._context})",
                    "Answers made of it would be wrong, and their latencies and token counts mean nothing.",
                    "Compare the artifact with its checkpoint: python -m export validate.",
                )
        return outputs


def _not_finite(output: Tensor, requests: int) -> str:
    """Which requests of a batch an output is not finite for, where it has a row for each."""
    if requests < 2 or output.dim() < 2 or len(output) != requests:
        return ""
    broken = (~output.isfinite().flatten(1).all(dim=1)).nonzero().flatten().tolist()
    return f" for request {', '.join(map(str, broken))} of {requests} in the batch"


def finite_runners(runners: Mapping[str, Runner], context: str) -> dict[str, FiniteRunner]:
    """A `FiniteRunner` for every part of a model."""
    return {part: FiniteRunner(runner, part, context) for part, runner in runners.items()}


def check_part_inputs(
    inputs: Mapping[str, Tensor], expected: Sequence[TensorInfo], profile: Mapping[str, Iterable[Sequence[int]]]
) -> None:
    """Refuse inputs that the artifact was not built for.

    Raises:
        InputError: an input is missing or unknown, has another dtype or rank, or a size outside the profile.
    """
    wanted = {info.name: info for info in expected if info.name != "temperature"}
    if inputs.keys() != wanted.keys():
        raise InputError(
            f"the inputs are {', '.join(sorted(inputs))}", f"The artifact takes {', '.join(sorted(wanted))}."
        )
    for name, tensor in inputs.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        taken = wanted[name].dtype
        if dtype != taken and (dtype, taken) != ("float32", "float16"):
            raise InputError(f"input '{name}' is {dtype}", f"The artifact takes {taken}.")
        smallest, _, largest = map(list, profile[name])
        shape = list(tensor.shape)
        fits = len(shape) == len(smallest)
        if not fits or any(not low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)):
            raise InputError(
                f"input '{name}' has shape {shape}",
                f"The artifact was built for {smallest} to {largest}.",
                "Send a batch of that size, or export again with another --batch or --text.",
            )


def check_part_outputs(outputs: Outputs, expected: Sequence[TensorInfo]) -> None:
    """Refuse outputs that the manifest does not describe: a file with the right hash may still be another model's.

    Args:
        expected: the outputs that the part's manifest lists; symbolic dimensions may have any size.

    Raises:
        BackendError: an output is missing, or has another dtype, rank or fixed dimension.
    """
    fix = "Artifact and manifest do not belong together; export again."
    for info in expected:
        value = outputs.get(info.name)
        if value is None:
            raise BackendError(f"the artifact gives no output '{info.name}'", "Its manifest lists it.", fix)
        shape, dtype = list(value.shape), str(value.dtype).removeprefix("torch.")
        fits = len(shape) == len(info.shape) and all(
            not isinstance(wanted, int) or size == wanted for size, wanted in zip(shape, info.shape, strict=True)
        )
        if dtype != info.dtype or not fits:
            wanted = ", ".join(map(str, info.shape))
            why = f"Its manifest lists {info.dtype} [{wanted}]."
            raise BackendError(f"the artifact's output '{info.name}' is {dtype} {shape}", why, fix)
