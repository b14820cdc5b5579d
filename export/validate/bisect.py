"""Which node is it? Every node of an ONNX artifact on its own, given the inputs that the reference has there.

A node is run only where it, its weights or its function body are unlike the reference's: what is the same gives the
same in the same runtime. Into plans looks `export.validate.plan`.
"""

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from export.graph.expose_outputs import expose_outputs
from export.graph.onnx_graph import Arrays, OnnxGraph, producers, run_graph
from export.graph.subgraph import subgraph_of
from export.runtime.runner import feed
from export.validate.contestants import Inputs
from madtp.data.samples import Config
from madtp.errors import OutputError
from madtp.files.outputs import Kind, check_outputs, marked_kind
from madtp.files.staging import Staging, write_errors
from madtp.tasks.requests import Outputs, Runner, Runners, run_request

PRODUCER = "madtp-deploy validate"  # in the ONNX file of a saved node
_NODE = marked_kind("a node that validate saved", PRODUCER)
_VALUES = Kind("values of such a node, as Polygraphy saves them", lambda content: b'"polygraphy_class"' in content)
REPRO = {"node.onnx": _NODE, "inputs.json": _VALUES, "expected.json": _VALUES}  # files of a saved node
SHOWN = 4  # nodes that were run together with the one at fault


@dataclass(frozen=True)
class Call:
    """One call of a part."""

    part: str
    inputs: Inputs
    temperature: float


@dataclass(frozen=True)
class Culprit:
    """The first node whose output leaves tolerance though its inputs are the reference's.

    Attributes:
        part, node, op: whose, its name and op type; `output`: the value that differs.
        difference: largest, relative to the output's largest |value|; infinite for another shape, another kind of
            type or other whole numbers, NaN where a value is.
        why: what is unlike the reference's node, in words; empty where nothing visible is.
        nodes: that were cut out together; 1 unless values between them cannot be seen.
        piece, inputs, expected: the cut-out, what it is given, and what `origin` makes of that.
    """

    part: str
    node: str
    op: str
    output: str
    difference: float
    why: list[str]
    nodes: int
    piece: OnnxGraph = field(repr=False, compare=False)
    inputs: Arrays = field(repr=False, compare=False)
    expected: Arrays = field(repr=False, compare=False)
    origin: str = "torch's ONNX"

    def __str__(self) -> str:
        nodes = [node for node in self.piece.model.graph.node if self.output not in node.output]
        before = [f"{node.op_type} '{node.name}'" for node in nodes if node.op_type != "Constant"]
        more = f" and {len(before) - SHOWN} more" if len(before) > SHOWN else ""
        together = [f"it was run together with {', '.join(before[-SHOWN:])}{more} before it"] if before else []
        why = f": {'; '.join([*self.why, *together])}" if self.why or before else ""
        return (
            f"first node that differs given identical inputs: {self.op} '{self.node}' of part {self.part}, output "
            f"'{self.output}' by {self.difference:.1e} (relative){why}"
        )


class NotedRunner:
    """A runner that keeps the calls of its part: the first and the latest."""

    def __init__(self, part: str, runner: Runner) -> None:
        self._part, self._runner = part, runner
        self.calls: list[Call] = []

    def run(self, inputs: Inputs, temperature: float) -> Outputs:
        self.calls = [*self.calls[:1], Call(self._part, inputs, temperature)]
        return self._runner.run(inputs, temperature)


def calls_of(config: Config, runners: Runners, inputs: Inputs, temperature: float) -> list[Call]:
    """The calls of all parts that a batch of requests comes to, of each part the first and the last."""
    noted = {name: NotedRunner(name, runner) for name, runner in runners.items()}
    run_request(config, noted, inputs, temperature)
    return [call for runner in noted.values() for call in runner.calls]


def find_culprit(
    calls: list[Call],
    references: Mapping[str, OnnxGraph],
    artifacts: Mapping[str, OnnxGraph],
    tolerance: float,
    on_detail: Callable[[str], None],
) -> Culprit | None:
    """The first node, in the order of the artifact's graphs, that differs given identical inputs.

    Args:
        calls: of parts in torch, in the order in which the parts run.
        references: ONNX traced from the checkpoint, by part.
        artifacts: by part.
        tolerance: relative to an output's largest |value|.
        on_detail: told what is being done.

    Returns:
        None where every node does what the reference's does: then no single node is at fault.
    """
    for call in calls:
        on_detail(f"bisecting {call.part}")
        for culprit in _culprits(call, references[call.part], artifacts[call.part], tolerance):
            return culprit
    return None


def _culprits(call: Call, reference: OnnxGraph, artifact: OnnxGraph, tolerance: float) -> Iterator[Culprit]:
    names = {value.name for value in reference.model.graph.input}
    known: Arrays = feed({name: value.contiguous() for name, value in call.inputs.items()}, call.temperature, names)
    values = list(producers(reference))
    known |= run_graph(expose_outputs(reference, values), known, values)
    originals = producers(reference)
    for node in artifact.model.graph.node:
        outputs = [name for name in node.output if name in originals]
        if not outputs:
            continue  # a node of its own; what it feeds is cut out together with it
        why = differences(artifact, node, reference, originals[outputs[0]])
        piece = subgraph_of(artifact, node, known)
        if not why and len(piece.model.graph.node) == 1:
            continue  # the same node with the same weights, in the same runtime: nothing to run
        inputs = {value.name: known[value.name] for value in piece.model.graph.input}
        expected = {name: known[name] for name in outputs}
        count = len(piece.model.graph.node)
        try:
            actual = run_graph(piece, inputs, outputs)
        except Exception as error:  # ONNX Runtime has no common type for a graph that it refuses
            why.append(f"ONNX Runtime refuses it: {str(error).strip().splitlines()[0]}")
            yield Culprit(call.part, node.name, node.op_type, outputs[0], np.inf, why, count, piece, inputs, expected)
            continue
        for name in outputs:
            worst = relative_difference(expected[name], actual[name])
            if not worst <= tolerance:
                if expected[name].dtype != actual[name].dtype:
                    why.append(f"it gives {actual[name].dtype}, not {expected[name].dtype}")
                yield Culprit(call.part, node.name, node.op_type, name, worst, why, count, piece, inputs, expected)
                break


def relative_difference(expected: NDArray[Any], actual: NDArray[Any]) -> float:
    """Largest |difference| over the largest finite |value|; 0 where both are the same infinity or NaN."""
    floats = [np.issubdtype(values.dtype, np.floating) for values in (expected, actual)]
    if expected.shape != actual.shape or (not all(floats) and expected.dtype != actual.dtype):
        return np.inf
    if not all(floats):
        return 0.0 if np.array_equal(expected, actual) else np.inf
    left, right = expected.astype(np.float64), actual.astype(np.float64)
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(left - right))
    finite = np.abs(left[np.isfinite(left)])
    return float(difference.max(initial=0.0) / max(finite.max(initial=0.0), 1e-30))


def differences(file: OnnxGraph, node: onnx.NodeProto, reference: OnnxGraph, original: onnx.NodeProto) -> list[str]:
    """What is unlike between two nodes that make the same value, in words."""
    if (node.domain, node.op_type) != (original.domain, original.op_type):
        return [f"the checkpoint's is of op {original.op_type}"]
    found = []
    if list(node.input) != list(original.input):
        found.append(f"its inputs are {', '.join(node.input)}, not {', '.join(original.input)}")
    ours = {attribute.name: attribute for attribute in node.attribute}
    theirs = {attribute.name: attribute for attribute in original.attribute}
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            found.append(f"attribute {name} is {_shown(ours.get(name))}, not {_shown(theirs.get(name))}")
    bodies = [
        [body for body in holder.model.functions if (body.domain, body.name) == (node.domain, node.op_type)]
        for holder in (file, reference)
    ]
    if bodies[0] != bodies[1]:
        found.append("its function body is another")
    opsets = [
        [opset.version for opset in holder.model.opset_import if opset.domain == node.domain]
        for holder in (file, reference)
    ]
    if opsets[0] != opsets[1]:  # graph optimisers import domains that they may not use
        found.append("the graph is of another opset")
    weights = {tensor.name: tensor for tensor in file.model.graph.initializer}
    originals = {tensor.name: tensor for tensor in reference.model.graph.initializer}
    for name in node.input:
        if name in weights and name in originals:
            left, right = (
                onnx.numpy_helper.to_array(holder.weight(tensor))
                for holder, tensor in ((file, weights[name]), (reference, originals[name]))
            )
            if left.shape != right.shape or not np.array_equal(left, right, equal_nan=left.dtype.kind == "f"):
                found.append(f"weight '{name}' differs by {relative_difference(right, left):.1e} (relative)")
    return found


def _shown(attribute: onnx.AttributeProto | None) -> str:
    if attribute is None:
        return "absent"
    value = onnx.helper.get_attribute_value(attribute)
    return "a tensor" if isinstance(value, onnx.TensorProto) else str(value)


def check_repro(folder: Path) -> None:
    """Refuse a folder that cannot take a node, or holds files of the same names that are not of an earlier one.

    Raises:
        OutputError: naming what is in the way.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"'{folder}' is no folder", "--repro names one.", "Name another.")
    if folder.is_dir():
        check_outputs([(folder / name, kind) for name, kind in REPRO.items()], [])


def save_repro(culprit: Culprit, folder: Path, tolerance: float) -> str:
    """Save the node with its inputs and expected outputs; returns the command that shows the difference.

    Writes node.onnx, inputs.json and expected.json as Polygraphy reads them, over nothing but an earlier node.

    Raises:
        OutputError: the folder cannot be written, or holds files of these names that are not of an earlier node.
    """
    from polygraphy.comparator import IterationResult, RunResults
    from polygraphy.json import save_json

    results = RunResults()
    results.append((culprit.origin, [IterationResult(dict(culprit.expected), runner_name=culprit.origin)]))
    scale = max((float(np.abs(value).max(initial=0)) for value in culprit.expected.values()), default=1.0)
    check_repro(folder)
    model, inputs, expected = REPRO
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with Staging(folder / model) as staging:
            culprit.piece.model.producer_name = PRODUCER
            onnx.save(culprit.piece.model, str(staging.folder / model))
            save_json([culprit.inputs], str(staging.folder / inputs))
            results.save(str(staging.folder / expected))
            staging.commit(REPRO)
    own = Path(sys.executable).with_name("polygraphy")  # of this environment, which need not be active
    return shlex.join(
        [
            *(str(own) if own.is_file() else "polygraphy", "run", str(folder / "node.onnx"), "--onnxrt"),
            *("--load-inputs", str(folder / "inputs.json"), "--load-outputs", str(folder / "expected.json")),
            *("--rtol", "0", "--atol", f"{tolerance * scale:.1e}"),
        ]
    )
