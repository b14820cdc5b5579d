"""Source ids of every layer: from an artifact that is made to give them out, or from the torch model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from export.artifact.manifest import Manifest
from export.artifact.manifest import Part as PartEntry
from export.runtime.intermediates_runner import KeptIdsRunner
from export.validate.intermediates import OpenIntermediates, kept_ids_runners
from madtp.data.samples import Config
from madtp.models.parts import Part
from madtp.ops.recorder import PruningRecorder
from madtp.tasks.requests import COUNTS_SUFFIX, Outputs, Runner, TorchRunner, count_tokens, token_counts

Ids = dict[str, list[Tensor]]  # by encoder: of every layer [sequences, tokens] int32


@dataclass(frozen=True)
class SourceIdRecorder:
    """Runners of all parts that record the source ids of their encoders."""

    description: str  # of what runs, for the page
    runners: dict[str, Runner]  # by part
    seen: Ids = field(default_factory=dict)  # the source ids of the latest calls

    def source_ids(self, config: Config, inputs: Mapping[str, Tensor], temperature: float) -> Ids:
        """The source ids of a batch, encoders in the order in which they run; decoders have none.

        The temperature is above zero: the torch model's dense form has no source ids.
        """
        self.seen.clear()
        count_tokens(config, self.runners, inputs, temperature)
        return dict(self.seen)


def record_torch(parts: Mapping[str, Part], description: str) -> SourceIdRecorder:
    """Record source ids from the torch model."""
    watched = SourceIdRecorder(description, {})
    for name, part in parts.items():
        watched.runners[name] = _TorchPart(part, watched.seen)
    return watched


def record_artifact(
    manifest: Manifest,
    files: Mapping[str, Path],
    open_parts: OpenIntermediates,
    runners: Mapping[str, Runner],
    description: str,
) -> SourceIdRecorder:
    """Record source ids from the artifact, whose parts are opened again with these ids as outputs.

    Args:
        files: ONNX of every part: the artifact's own, or what a plan is built from.
        runners: the artifact's, for parts that prune nothing.

    Raises:
        BackendError: a plan cannot be built anew.
        OutputError: there is no room for that.
    """
    watched = SourceIdRecorder(description, dict(runners))
    entries: dict[str, PartEntry] = {entry.name: entry for entry in manifest.parts}
    for part, runner in kept_ids_runners(files, open_parts).items():
        watched.runners[part] = _RuntimePart(runner, part_encoders(entries[part]), watched.seen)
    return watched


def part_encoders(entry: PartEntry) -> dict[str, int]:
    """The encoders of a manifest's part, in the order in which they run, and their layers
    (`madtp.models.parts.Part`)."""
    counts = {output.name: output.shape for output in entry.outputs if output.name.endswith(COUNTS_SUFFIX)}
    matches = entry.name == "match"  # a part of its own, whose output is named as that of any text
    return {"match" if matches else name.removesuffix(COUNTS_SUFFIX): int(shape[1]) for name, shape in counts.items()}


@dataclass(frozen=True)
class _TorchPart:
    part: Part
    seen: Ids

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        with PruningRecorder() as recorder:
            outputs = TorchRunner(self.part).run(inputs, temperature)
        _note(self.seen, self.part.encoders, [record.source_ids for record in recorder.records])
        return outputs


@dataclass(frozen=True)
class _RuntimePart:
    runner: KeptIdsRunner
    encoders: Mapping[str, int]
    seen: Ids

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        outputs = self.runner.run(inputs, temperature)
        sequences = [len(counts) for counts in token_counts(outputs).values() for _ in range(counts.shape[1])]
        # Those of a packed request are end to end, and equally many of each of its sequences.
        ids = [
            own.unflatten(0, (count, -1)) if own.dim() == 1 else own
            for own, count in zip(self.runner.ids, sequences, strict=True)
        ]
        _note(self.seen, self.encoders, ids)
        return outputs


def _note(seen: Ids, encoders: Mapping[str, int], layers: list[Tensor]) -> None:
    """The layers of a call, those of its encoders end to end."""
    for encoder, depth in encoders.items():
        seen[encoder], layers = layers[:depth], layers[depth:]
