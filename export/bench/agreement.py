"""What artifacts answer and keep in the calls of a case, and how far two of them agree."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from torch import Tensor

from export.bench.calls import Case, Inputs, Kept, kept_of
from export.graph.onnx_graph import OnnxGraph
from export.graph.source_ids import kept_ids
from export.runtime.artifact import Artifact
from export.runtime.checked import finite_runners
from export.runtime.execution import BODIES
from export.runtime.intermediates_runner import IntermediatesRunner, KeptIdsRunner
from export.runtime.runner import RunnerOptions
from madtp.data.samples import Config
from madtp.models.config import ClipConfig
from madtp.ops.recorder import jaccards
from madtp.tasks.decisions import EMBEDDINGS, best_matches, decisions
from madtp.tasks.requests import Outputs, Runner, run_request, token_counts


@dataclass(frozen=True)
class Answers:
    """What an artifact answered in all calls of a case, and which tokens it kept.

    Attributes:
        decided: by output, what it decided for each request.
        kept: tokens of each call.
        counts: of each call, tokens [sequences, layers] of each encoder.
        ids: of each call, source ids [sequences, tokens] after each layer; empty where the artifact shows none.
    """

    decided: Mapping[str, list[Hashable]]
    kept: Kept
    counts: Sequence[Outputs]
    ids: Sequence[Sequence[Tensor]]


@dataclass(frozen=True)
class Agreement:
    """How far an artifact agrees with another one.

    Attributes:
        equal: requests with the same answers, of `requests`.
        tokens: of a request, summed over sequences and layers: mean of the calls.
        layers_equal: share of the layers of all calls with equal token counts, 0 to 1.
        jaccard: mean |kept by both| / |kept by either| over layers and sequences; None where ids are not shown.
    """

    requests: int
    equal: int
    tokens: float
    layers_equal: float
    jaccard: float | None


@dataclass(frozen=True)
class AnsweringRunners:
    """An artifact's parts, those of an .onnx file with the source ids of the tokens that they keep."""

    config: Config
    runners: Mapping[str, Runner]

    @classmethod
    def of_artifact(cls, artifact: Artifact, options: RunnerOptions) -> "AnsweringRunners":
        """Open the parts.

        Raises:
            BackendError: nothing here can run them.
        """
        if artifact.manifest.is_plan:  # shows nothing but its outputs
            return cls(artifact.config, artifact.open_runners(options))
        runners: dict[str, Runner] = {}
        for part, path in artifact.part_files.items():
            graph = OnnxGraph.read(path)
            names = kept_ids(graph)
            execution = options.execution or BODIES
            runners[part] = KeptIdsRunner(IntermediatesRunner(graph, names, options.threads, execution), names)
        return cls(artifact.config, runners)

    def answers(self, calls: Sequence[Inputs], case: Case) -> Answers:
        """Make every call of a case once.

        Raises:
            InputError: an output is not finite, or the artifact was not built for these inputs.
        """
        pad_id = 0 if isinstance(self.config, ClipConfig) else self.config.pad_token_id
        decided: dict[str, list[Hashable]] = {}
        counts, ids, embedded = [], [], []
        for number, inputs in enumerate(calls):
            checked = finite_runners(self.runners, f"{case}, call {number}")
            outputs = run_request(self.config, checked, inputs, case.temperature)
            counts.append(token_counts(outputs))
            ids.append([layer for runner in self.runners.values() for layer in getattr(runner, "ids", ())])
            if "sim" in outputs:
                del outputs["sim"]
                embedded.append({name: outputs[name] for name in EMBEDDINGS})
            for name, answers in decisions(outputs, pad_id).items():
                decided.setdefault(name, []).extend(answers)
        matches = best_matches(embedded) if embedded else {}
        return Answers(decided | matches, kept_of(counts, case.batch), counts, ids)


def agreement(first: Answers, other: Answers) -> Agreement:
    """How far `other` agrees with `first`, both of the same calls."""
    pairs = [list(zip(first.decided[name], other.decided[name], strict=True)) for name in first.decided]
    equal = [all(left == right for left, right in request) for request in zip(*pairs, strict=True)]
    layers = [
        bool((left == right).all())
        for call, theirs in zip(first.counts, other.counts, strict=True)
        for encoder in call
        for left, right in zip(call[encoder].mT, theirs[encoder].mT, strict=True)
    ]
    shared = [
        value
        for call, theirs in zip(first.ids, other.ids, strict=True)
        if call and theirs
        for left, right in zip(call, theirs, strict=True)
        for value in jaccards(left, right)
    ]
    return Agreement(len(equal), sum(equal), fmean(other.kept.total), fmean(layers), fmean(shared) if shared else None)
