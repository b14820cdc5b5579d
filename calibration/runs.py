"""Runs of a model over the same requests at several temperatures: what each request cost, and what was decided."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calibration.agreement import all_decisions
from calibration.tokens import Source, partial_path
from madtp.data.samples import Request, collate
from madtp.errors import OutputError, TemperatureError
from madtp.files.outputs import json_kind, write_output
from madtp.files.versioned import read_versioned
from madtp.models.parts import parts_of
from madtp.ops.flops import count_call
from madtp.tasks.decisions import DECIDED_AS_WRITTEN, DECIDED_BY_LARGEST, EMBEDDINGS
from madtp.tasks.requests import Outputs, run_request, torch_runners

SCHEMA_VERSION = 1
SAVE_EVERY = 50  # requests, where measuring can be resumed
PARTIAL = json_kind("a partial file of runs", "schema", "checkpoint_sha256", "runs", "begun")
ANEW = "Delete the file to begin anew, or name another output."
DECIDING = {*EMBEDDINGS, *DECIDED_BY_LARGEST, *DECIDED_AS_WRITTEN} - {"sim"}
DENSE = 0.0  # temperature


@dataclass(frozen=True)
class Run:
    """All requests at one temperature, each alone.

    Attributes:
        gflops: of every request.
        decisions: of all of them (`calibration.agreement.all_decisions`), as JSON has them.
    """

    temperature: float
    gflops: list[float]
    decisions: list[Any]

    @property
    def mean(self) -> float:
        """GFLOPs of a request."""
        return sum(self.gflops) / len(self.gflops)


@dataclass
class _Begun:
    """A run that is not over."""

    temperature: float
    gflops: list[float] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)


class Runs:
    """Measures runs, and remembers them: in `<path>.part` beside the output `path`, from which a later process goes on.

    Args:
        model: a `madtp.checkpoint.loading.Model` in float32 on the CPU.
        reads: functions that read one request each, so that images are decoded when their turn comes.
        source: whatever its temperature, it says whose the partial file is.
        on_request: told what is done, how many requests of the run are, and how many there are.

    Attributes:
        labels: right classes of NLVR by request, None if unknown; complete once anything was run.

    Raises:
        TemperatureError: the partial file is of something else.
    """

    def __init__(
        self,
        model: Any,
        reads: Sequence[Callable[[], Request]],
        source: Source,
        path: Path,
        on_request: Callable[[str, int, int], None] = lambda *_: None,
    ) -> None:
        self._model, self._reads, self._source, self._on_request = model, reads, source, on_request
        self._partial, self._runners = partial_path(path), torch_runners(parts_of(model))
        self._runs: dict[float, Run] = {}
        self._begun: _Begun | None = None
        self.labels: list[int | None] = []
        if self._partial.exists():
            self._resume()

    @property
    def runs(self) -> list[Run]:
        """Those so far, by ascending temperature."""
        return [self._runs[temperature] for temperature in sorted(self._runs)]

    def at(self, temperature: float) -> Run:
        """The run at a temperature, measured unless it was.

        Raises:
            OutputError: the partial file cannot be written.
        """
        if temperature in self._runs:
            return self._runs[temperature]
        begun = self._begun
        if begun is None or begun.temperature != temperature:
            begun = self._begun = _Begun(temperature)
        doing = f"running at temperature {temperature:.4g}" if temperature > DENSE else "running dense"
        try:
            while len(begun.gflops) < len(self._reads):
                self._add(begun)
                self._on_request(doing, len(begun.gflops), len(self._reads))
                if len(begun.gflops) % SAVE_EVERY == 0:
                    with suppress(OutputError):  # raised at the end, if there is no room then either
                        self._save()
            decided = all_decisions(self._model.config, [_tensors(outputs) for outputs in begun.outputs])
            self._runs[temperature] = Run(temperature, begun.gflops, json.loads(json.dumps(decided)))
            self._begun = None
        finally:
            self._save()
        return self._runs[temperature]

    def _add(self, begun: _Begun) -> None:
        number, outputs = len(begun.gflops), Outputs()
        request = self._reads[number]()
        inputs = collate([request], self._model.config)
        run = partial(run_request, self._model.config, self._runners, inputs, begun.temperature)
        flops = count_call(lambda: outputs.update(run()))
        if number == len(self.labels):
            self.labels.append(request.label)
        begun.outputs.append({name: value.tolist() for name, value in outputs.items() if name in DECIDING})
        begun.gflops.append(flops.giga)

    def _save(self) -> None:
        if not self._runs and (self._begun is None or not self._begun.gflops):
            return
        content = {
            "schema": SCHEMA_VERSION,
            **asdict(self._source),
            "labels": self.labels,
            "runs": [asdict(run) for run in self._runs.values()],
            "begun": None if self._begun is None else asdict(self._begun),
        }
        write_output(self._partial, json.dumps(content) + "\n", PARTIAL)

    def _resume(self) -> None:
        content = read_versioned(self._partial, "the partial runs", (SCHEMA_VERSION,), TemperatureError, ANEW)
        try:
            source, begun = Source.from_json(content), content["begun"]
            runs = [Run(float(run["temperature"]), run["gflops"], run["decisions"]) for run in content["runs"]]
            self._begun = None if begun is None else _Begun(**begun)
            self.labels = list(content["labels"])
            lengths = {len(run.gflops) for run in runs}
        except (KeyError, TypeError, ValueError) as error:
            raise TemperatureError(f"the partial runs '{self._partial}' are malformed", repr(error), ANEW) from error
        if source != self._source or not lengths <= {len(self._reads)}:
            raise TemperatureError(
                f"the partial runs '{self._partial}' are of something else",
                f"They are of checkpoint {source.checkpoint_sha256[:16]}... and of {source.data}.",
                ANEW,
            )
        self._runs = {run.temperature: run for run in runs}


def _tensors(outputs: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in outputs.items()}
