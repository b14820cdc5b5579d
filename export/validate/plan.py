"""Looking into plans: where one that shows values inside it leaves what ONNX Runtime makes of the same inputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from export.graph.onnx_graph import Arrays, OnnxGraph, run_graph
from export.graph.subgraph import subgraph_of
from export.runtime.runner import PlanRunner, feed
from export.validate.bisect import Call, Culprit, relative_difference
from export.validate.intermediates import Shows
from madtp.ops.spec import DOMAIN

PLAN = "the plan"


@dataclass(frozen=True)
class Look:
    """What looking into a plan came to.

    Attributes:
        culprit: the first nodes that are wrong; None: none is.
        unchecked: nodes that ONNX Runtime has no kernels for in this precision, so that nothing is known of them.
    """

    culprit: Culprit | None = None
    unchecked: tuple[str, ...] = ()

    def __str__(self) -> str:
        found = str(self.culprit or "a plan that shows the values inside it agrees with ONNX Runtime")
        count = len(self.unchecked)
        return f"{found} ({count} nodes could not be checked, e.g. {self.unchecked[0]})" if count else found


def look_into_plan(
    calls: list[Call],
    references: Mapping[str, OnnxGraph],
    shows: Shows,
    tolerance: float,
    on_detail: Callable[[str], None],
) -> Look:
    """The first nodes whose output in the plan leaves what ONNX Runtime makes of the plan's own inputs to them.

    First only what custom ops take and give is looked at, so that TensorRT may fuse what lies between as it does in the
    artifact; then every value of the stretch that is wrong.

    Args:
        calls: of parts in torch, in the order in which the parts run.
        references: ONNX traced from the checkpoint, by part.
        shows: opens parts of the plan.
        tolerance: relative to an output's largest |value|.
        on_detail: told what is being done.
    """
    unchecked: list[str] = []
    for call in calls:
        reference = references[call.part]
        on_detail(f"looking into the plan of {call.part}")
        coarse = _first_wrong(call, reference, shows, _around_custom_ops(reference), tolerance, unchecked)
        if coarse is None:
            continue
        if coarse.nodes == 1:
            return Look(coarse, tuple(unchecked))
        on_detail(f"looking closer, at {coarse.nodes} nodes of {call.part}")
        inside = {name for node in coarse.piece.model.graph.node for name in (*node.input, *node.output)}
        fine = _first_wrong(call, reference, shows, inside, tolerance, unchecked)
        whole = replace(coarse, why=["on their own, unfused, each of these nodes is right"])
        return Look(fine or whole, tuple(unchecked))
    return Look(None, tuple(unchecked))


def _around_custom_ops(file: OnnxGraph) -> set[str]:
    nodes = [node for node in file.model.graph.node if node.domain == DOMAIN]
    return {name for node in nodes for name in (*node.input, *node.output) if name}


def _first_wrong(
    call: Call, file: OnnxGraph, shows: Shows, shown: set[str], tolerance: float, unchecked: list[str]
) -> Culprit | None:
    """The first piece of the graph, between values that the plan shows, that the plan computes otherwise.

    Nodes that cannot be run here go to `unchecked`.
    """
    runner = shows(call.part, shown)
    outputs = runner.run(call.inputs, call.temperature)
    if isinstance(runner, PlanRunner):
        runner.close()
    inputs = {value.name for value in file.model.graph.input}
    known: Arrays = feed({name: value.contiguous() for name, value in call.inputs.items()}, call.temperature, inputs)
    known |= {name: value.numpy() for name, value in outputs.items()}
    for node in file.model.graph.node:
        names = [name for name in node.output if name in outputs]
        if not names:
            continue
        piece = subgraph_of(file, node, known)
        given = {value.name: known[value.name] for value in piece.model.graph.input}
        made = {name: known[name] for name in names}
        count = len(piece.model.graph.node)
        try:
            right = run_graph(piece, given, names)
        except Exception:  # ONNX Runtime has no common type for kernels that it lacks, e.g. of bfloat16
            unchecked.append(node.name)
            continue
        for name in names:
            worst = relative_difference(right[name], made[name])
            if not worst <= tolerance:
                return Culprit(
                    call.part, node.name, node.op_type, name, worst, [], count, piece, given, made, origin=PLAN
                )
    return None
