"""The first divergent node: every node of an ONNX artifact on its own, given the inputs that the reference has there.

A node is run only where it, its weights or its function body differ from the reference's: identical ones give the same
in the same runtime. Plans are bisected in `export.validate.plan_bisection`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from export.graph.onnx_graph import Arrays, OnnxGraph, run_graph, visible_producers
from export.graph.subgraph import subgraph_of
from export.runtime.runner import feed
from export.validate.model_runner import Inputs
from madtp.data.samples import Config
from madtp.tasks.requests import Outputs, Runner, Runners, run_request

SHOWN = 4  # nodes that are named of those that were run together with the divergent one


@dataclass(frozen=True)
class Call:
    """One call of a part."""

    part: str
    inputs: Inputs
    temperature: float


@dataclass(frozen=True)
class DivergentNode:
    """The first node whose output leaves tolerance though its inputs are identical.

    Attributes:
        node: name of the node.
        output: the value that differs.
        difference: largest, relative to the output's largest |value|; infinite for another shape, another kind of
            type or other integers, NaN where a value is.
        why: how the node differs from the reference's; empty where nothing visible does.
        subgraph: the node, and those before it whose values are not visible.
        expected: outputs of `origin` given the same inputs.
    """

    part: str
    node: str
    op: str
    output: str
    difference: float
    why: list[str]
    subgraph: OnnxGraph = field(repr=False, compare=False)
    inputs: Arrays = field(repr=False, compare=False)
    expected: Arrays = field(repr=False, compare=False)
    origin: str = "torch's ONNX"

    @property
    def nodes(self) -> int:
        """Nodes that were run together; 1 unless values between them are not visible."""
        return len(self.subgraph.model.graph.node)

    def __str__(self) -> str:
        nodes = [node for node in self.subgraph.model.graph.node if self.output not in node.output]
        before = [f"{node.op_type} '{node.name}'" for node in nodes if node.op_type != "Constant"]
        more = f" and {len(before) - SHOWN} more" if len(before) > SHOWN else ""
        together = [f"it was run together with {', '.join(before[-SHOWN:])}{more} before it"] if before else []
        why = f": {'; '.join([*self.why, *together])}" if self.why or before else ""
        return (
            f"first divergent node: {self.op} '{self.node}' of part {self.part}; given identical inputs its output "
            f"'{self.output}' differs by {self.difference:.1e} (relative){why}"
        )


class CallRecorder:
    """A runner that records the first and the latest call of its part."""

    def __init__(self, part: str, runner: Runner) -> None:
        self._part, self._runner = part, runner
        self.calls: list[Call] = []

    def run(self, inputs: Inputs, temperature: float) -> Outputs:
        self.calls = [*self.calls[:1], Call(self._part, inputs, temperature)]
        return self._runner.run(inputs, temperature)


def record_calls(config: Config, runners: Runners, inputs: Inputs, temperature: float) -> list[Call]:
    """The first and the last call of every part for a batch of requests."""
    recorders = {name: CallRecorder(name, runner) for name, runner in runners.items()}
    run_request(config, recorders, inputs, temperature)
    return [call for recorder in recorders.values() for call in recorder.calls]


def first_divergent_node(
    calls: list[Call],
    references: Mapping[str, OnnxGraph],
    artifacts: Mapping[str, OnnxGraph],
    tolerance: float,
    on_detail: Callable[[str], None],
) -> DivergentNode | None:
    """The first node, in the order of the artifact's graphs, that differs given identical inputs.

    Args:
        calls: from `record_calls` of torch.
        references: ONNX traced from the checkpoint.
        tolerance: relative to an output's largest |value|.
    """
    for call in calls:
        on_detail(f"bisecting {call.part}")
        found = next(_divergent_nodes(call, references[call.part], artifacts[call.part], tolerance), None)
        if found is not None:
            return found
    return None


def _divergent_nodes(
    call: Call, reference: OnnxGraph, artifact: OnnxGraph, tolerance: float
) -> Iterator[DivergentNode]:
    names = {value.name for value in reference.model.graph.input}
    given = {name: value.contiguous() for name, value in call.inputs.items()}
    known: Arrays = feed(given, call.temperature, names, reference.float16_inputs)
    originals = visible_producers(reference)
    known |= run_graph(reference, known, originals)
    for node in artifact.model.graph.node:
        outputs = [name for name in node.output if name in originals]
        if not outputs:
            continue  # a tool added it; the node that it feeds is run together with it
        why = differences(artifact, node, reference, originals[outputs[0]])
        subgraph = subgraph_of(artifact, node, known)
        if not why and len(subgraph.model.graph.node) == 1:
            continue  # the same node with the same weights, in the same runtime: nothing to run
        inputs = {value.name: known[value.name] for value in subgraph.model.graph.input}
        expected = {name: known[name] for name in outputs}
        try:
            actual = run_graph(subgraph, inputs, outputs)
        except Exception as error:  # ONNX Runtime has no common type for a graph that it refuses
            why.append(f"ONNX Runtime refuses it: {str(error).strip().splitlines()[0]}")
            yield DivergentNode(call.part, node.name, node.op_type, outputs[0], np.inf, why, subgraph, inputs, expected)
            continue
        for name in outputs:
            worst = relative_difference(expected[name], actual[name])
            if not worst <= tolerance:
                if expected[name].dtype != actual[name].dtype:
                    why.append(f"it gives {actual[name].dtype}, not {expected[name].dtype}")
                yield DivergentNode(call.part, node.name, node.op_type, name, worst, why, subgraph, inputs, expected)
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
