"""Bisecting a plan: the first nodes whose outputs differ from ONNX Runtime's given the plan's own inputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from export.graph.onnx_graph import Arrays, OnnxGraph, run_graph
from export.graph.subgraph import subgraph_of
from export.runtime.plan_runner import PlanRunner
from export.runtime.runner import feed
from export.validate.divergent_node import Call, DivergentNode, relative_difference
from export.validate.intermediates import OpenIntermediates
from madtp.ops.spec import DOMAIN

PLAN = "the plan"


@dataclass(frozen=True)
class PlanBisection:
    """Result of bisecting a plan.

    Attributes:
        divergent_node: the first that differs; None where none does.
        unchecked: nodes that ONNX Runtime has no kernels for in this precision.
    """

    divergent_node: DivergentNode | None = None
    unchecked: tuple[str, ...] = ()

    def __str__(self) -> str:
        found = str(self.divergent_node or "a plan with intermediate values as outputs agrees with ONNX Runtime")
        count = len(self.unchecked)
        return f"{found} ({count} nodes could not be checked, e.g. {self.unchecked[0]})" if count else found


def bisect_plan(
    calls: list[Call],
    references: Mapping[str, OnnxGraph],
    open_part: OpenIntermediates,
    tolerance: float,
    on_detail: Callable[[str], None],
) -> PlanBisection:
    """The first nodes whose output in the plan differs from ONNX Runtime's given the plan's own inputs to them.

    First only the inputs and outputs of custom ops are compared, so that TensorRT may fuse what lies between as it does
    in the artifact; then every value of the nodes that differ.

    Args:
        calls: from `record_calls` of torch.
        references: ONNX traced from the checkpoint.
        tolerance: relative to an output's largest |value|.
    """
    unchecked: list[str] = []
    for call in calls:
        reference = references[call.part]
        on_detail(f"bisecting the plan of {call.part}")
        coarse = _first_wrong(call, reference, open_part, _around_custom_ops(reference), tolerance, unchecked)
        if coarse is None:
            continue
        if coarse.nodes == 1:
            return PlanBisection(coarse, tuple(unchecked))
        on_detail(f"bisecting {coarse.nodes} nodes of {call.part}")
        inside = {name for node in coarse.subgraph.model.graph.node for name in (*node.input, *node.output)}
        fine = _first_wrong(call, reference, open_part, inside, tolerance, unchecked)
        whole = replace(coarse, why=["on their own, unfused, each of these nodes is right"])
        return PlanBisection(fine or whole, tuple(unchecked))
    return PlanBisection(None, tuple(unchecked))


def _around_custom_ops(file: OnnxGraph) -> set[str]:
    nodes = [node for node in file.model.graph.node if node.domain == DOMAIN]
    return {name for node in nodes for name in (*node.input, *node.output) if name}


def _first_wrong(
    call: Call, file: OnnxGraph, open_part: OpenIntermediates, exposed: set[str], tolerance: float, unchecked: list[str]
) -> DivergentNode | None:
    """The first nodes, between values that the plan has as outputs, that the plan computes in another way.

    Nodes that cannot be run here go to `unchecked`.
    """
    runner = open_part(call.part, exposed)
    outputs = runner.run(call.inputs, call.temperature)
    if isinstance(runner, PlanRunner):
        runner.close()
    inputs = {value.name for value in file.model.graph.input}
    given = {name: value.contiguous() for name, value in call.inputs.items()}
    known: Arrays = feed(given, call.temperature, inputs, file.float16_inputs)
    known |= {name: value.numpy() for name, value in outputs.items()}
    for node in file.model.graph.node:
        names = [name for name in node.output if name in outputs]
        if not names:
            continue
        subgraph = subgraph_of(file, node, known)
        read = {value.name: known[value.name] for value in subgraph.model.graph.input}
        made = {name: known[name] for name in names}
        try:
            right = run_graph(subgraph, read, names)
        except Exception:  # ONNX Runtime has no common type for kernels that it lacks, e.g. of bfloat16
            unchecked.append(node.name)
            continue
        for name in names:
            worst = relative_difference(right[name], made[name])
            if not worst <= tolerance:
                return DivergentNode(
                    call.part, node.name, node.op_type, name, worst, [], subgraph, read, made, origin=PLAN
                )
    return None
