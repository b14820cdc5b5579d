"""Source ids of every layer: from an exported graph that is made to give them out, or from the torch model."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from export.runner import OnnxRunner
from madtp.files import write_errors
from madtp.opspec import DOMAIN, TOKEN_COMPACT
from madtp.parts import Part
from madtp.recorder import PruningRecorder
from madtp.samples import Config
from madtp.tasks import COUNTS_SUFFIX, Outputs, Runner, TorchRunner, count_tokens

Ids = dict[str, list[Tensor]]  # by encoder: of every layer [sequences, tokens] int32
IDS = next(index for index, spec in enumerate(TOKEN_COMPACT.outputs) if spec.name == "compacted_ids")


@dataclass(frozen=True)
class Watched:
    """Runners that note the source ids of all encoders.

    Attributes:
        how: what runs, for the reader of the page.
        runners: of all parts.
        seen: what their latest calls noted.
    """

    how: str
    runners: dict[str, Runner]
    seen: Ids = field(default_factory=dict)

    def source_ids(self, config: Config, inputs: Mapping[str, Tensor], temperature: float) -> Ids:
        """Of a batch of requests, encoders in the order in which they run. Decoders write nothing.

        Args:
            config: of the model.
            inputs: of the batch, see `madtp.samples.collate`.
            temperature: above zero; the torch model's dense form has no source ids.
        """
        self.seen.clear()
        count_tokens(config, self.runners, inputs, temperature)
        return dict(self.seen)


def watch_torch(parts: Mapping[str, Part], how: str) -> Watched:
    """The torch model."""
    watched = Watched(how, {})
    for name, part in parts.items():
        watched.runners[name] = _TorchPart(part, watched.seen)
    return watched


def watch_onnx(
    manifest: Mapping[str, Any], folder: Path, scratch: Path, runners: Mapping[str, Runner], how: str
) -> Watched | None:
    """Copies of the artifact's ONNX files whose source ids are outputs; None where no node gives them out.

    Args:
        manifest: of the artifact.
        folder: where its files lie.
        scratch: for the copies, as long as they run.
        runners: of the artifact, for parts that prune nothing.
        how: see `Watched`.

    Raises:
        OutputError: there is no room for the copies.
    """
    watched = Watched(how, dict(runners))
    for entry in manifest["parts"]:
        encoders = part_encoders(entry)
        if not encoders:
            continue
        names = _copy_with_ids(folder, entry, scratch)
        if len(names) != sum(encoders.values()):
            return None
        runner = OnnxRunner(scratch / entry["artifact"])
        watched.runners[entry["name"]] = _OnnxPart(runner, encoders, names, watched.seen)
    return watched


def part_encoders(entry: Mapping[str, Any]) -> dict[str, int]:
    """The encoders of a manifest's part, in the order in which they run, and their layers (`madtp.parts.Part`)."""
    counts = {output["name"]: output["shape"] for output in entry["outputs"] if output["name"].endswith(COUNTS_SUFFIX)}
    matches = entry["name"] == "match"  # a part of its own, whose output is named as that of any text
    return {"match" if matches else name.removesuffix(COUNTS_SUFFIX): shape[1] for name, shape in counts.items()}


def _copy_with_ids(folder: Path, entry: Mapping[str, Any], scratch: Path) -> list[str]:
    """Write the part's graph to `scratch` with the source ids of its nodes as outputs; returns their names."""
    import onnx

    graph = onnx.load(str(folder / entry["artifact"]), load_external_data=False)
    nodes = [node for node in graph.graph.node if (node.domain, node.op_type) == (DOMAIN, TOKEN_COMPACT.onnx_name)]
    names = [node.output[IDS] for node in nodes]
    for name in names:
        graph.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT32, [None, None]))
    copy = scratch / entry["artifact"]
    with write_errors(copy):
        onnx.save(graph, str(copy))
        if entry["external_data"] is not None:
            _link(folder / entry["external_data"]["file"], scratch / entry["external_data"]["file"])
    return names


def _link(source: Path, target: Path) -> None:
    """Weights may be gigabytes; a runtime may refuse a symbolic link that leads out of the folder."""
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


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
class _OnnxPart:
    runner: OnnxRunner
    encoders: Mapping[str, int]
    names: Sequence[str]
    seen: Ids

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        outputs = self.runner.run(inputs, temperature)
        _note(self.seen, self.encoders, [outputs.pop(name) for name in self.names])
        return outputs


def _note(seen: Ids, encoders: Mapping[str, int], layers: list[Tensor]) -> None:
    """The layers of a call, those of its encoders end to end."""
    for encoder, depth in encoders.items():
        seen[encoder], layers = layers[:depth], layers[depth:]
