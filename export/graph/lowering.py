"""What torch.onnx does to a program before it writes its nodes, without what our models do not need."""

import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from onnxscript import opset20
from torch import fx
from torch.export import ExportedProgram
from torch.onnx._internal.exporter import _fx_passes
from torch.onnx._internal.exporter._registration import ONNXRegistry

_ATEN = torch.ops.aten
_op: Any = opset20
_ASSERTIONS = {_ATEN._assert_scalar.default, _ATEN._assert_tensor_metadata.default}
_LAST = torch.iinfo(torch.int64).max


@contextmanager
def light_lowering() -> Iterator[None]:
    """torch.onnx without two of its passes, together half of its time.

    One traces the program again to take apart what torch.onnx cannot write: where all can be written, that changes
    nothing. The other looks for implicit casts: our models cast explicitly. One that is missing all the same gives a
    graph that the checker refuses; but whole numbers times a fraction would be whole (`export` compares with torch).
    """
    decompose, promote = _fx_passes.decompose_with_registry, _fx_passes.insert_type_promotion_nodes

    def decompose_if_needed(exported_program: ExportedProgram, registry: ONNXRegistry) -> ExportedProgram:
        _simplify(exported_program)
        if _is_writable(exported_program.graph, registry):
            return exported_program
        return decompose(exported_program, registry)

    _fx_passes.decompose_with_registry = decompose_if_needed
    _fx_passes.insert_type_promotion_nodes = lambda graph_module: None
    try:
        yield
    finally:
        _fx_passes.decompose_with_registry, _fx_passes.insert_type_promotion_nodes = decompose, promote


def _difference(x: Any, n: int = 1, dim: int = -1) -> Any:
    for _ in range(n):
        x = _op.Sub(_op.Slice(x, [1], [_LAST], [dim]), _op.Slice(x, [0], [-1], [dim]))
    return x


def _subtracted_from(x: Any, other: float, alpha: float = 1) -> Any:
    return _op.Sub(_scalar(other, x), _op.Mul(x, _scalar(alpha, x)) if alpha != 1 else x)


def _scalar(value: float, like: Any) -> Any:
    constant = _op.Constant(value_int=value) if isinstance(value, int) else _op.Constant(value_float=value)
    return _op.CastLike(constant, like)


# What torch.onnx would take apart.
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    _ATEN.diff.default: _difference,
    _ATEN.rsub.Scalar: _subtracted_from,
}


def _simplify(program: ExportedProgram) -> None:
    """Without checks, and with what torch.onnx has no translation for, or a clumsy one, as what it writes well."""
    graph, sizes = program.graph, _Sizes(program.graph)
    for node in list(graph.nodes):
        if node.target in _ASSERTIONS:
            graph.erase_node(node)
        elif node.target == _ATEN.item.default:
            node.target = _ATEN._local_scalar_dense.default
        elif node.target == _ATEN.mT.default:  # torch.onnx writes an Einsum
            node.target, node.args = _ATEN.transpose.int, (node.args[0], -2, -1)
        elif node.target in (_ATEN.flatten.using_ints, _ATEN.unflatten.int) and not node.kwargs:
            # Otherwise it is written with many nodes that ask for shapes.
            with graph.inserting_before(node):
                shape = sizes.flattened(node) if node.target == _ATEN.flatten.using_ints else sizes.unflattened(node)
            node.target, node.args = _ATEN.view.default, (node.args[0], shape)
        elif node.target == _ATEN.to.dtype and len(node.args) == 2 and not node.kwargs:
            given: tuple[Any, ...] = node.args
            tensor, dtype = given
            if tensor.meta["val"].dtype == dtype:
                node.replace_all_uses_with(tensor)
                program.graph_signature.replace_all_uses(node.name, tensor.name)
                graph.erase_node(node)
            else:
                node.target, node.args, node.kwargs = _ATEN._to_copy.default, (tensor,), {"dtype": dtype}
    graph.eliminate_dead_code()


class _Sizes:
    """Sizes of tensors as arguments of nodes: numbers where they are the same for all inputs, else nodes of the graph.

    A size that is one of an input's is read there, and every other where it is first asked for.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._nodes: dict[Any, fx.Node] = {}  # by what the size is in symbols
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        with graph.inserting_after(inputs[-1]):
            for node in inputs:
                if isinstance(value := node.meta.get("val"), torch.Tensor):
                    self._of(node, value)

    def flattened(self, node: fx.Node) -> list[Any]:
        """The sizes that a flatten gives."""
        given: tuple[Any, ...] = (*node.args, *(0, -1)[len(node.args) - 1 :])
        tensor, first, last = given
        shape = tensor.meta["val"].shape
        first, last = first % len(shape), last % len(shape)
        inner, outer = shape[first : last + 1], [*shape[:first], *shape[last + 1 :]]
        if all(isinstance(size, int) for size in inner) and sum(not isinstance(size, int) for size in outer) == 1:
            known = [size if isinstance(size, int) else -1 for size in outer]  # so that nothing else reads the tensor
            return [*known[:first], math.prod(inner), *known[first:]]
        sizes = self._of(tensor, tensor.meta["val"])
        joined = sizes[first]
        for size in sizes[first + 1 : last + 1]:
            joined = self._product(joined, size)
        return [*sizes[:first], joined, *sizes[last + 1 :]]

    def unflattened(self, node: fx.Node) -> list[Any]:
        """The sizes that an unflatten gives; -1 may be one of them."""
        given: tuple[Any, ...] = node.args
        tensor, axis, parts = given
        sizes = self._of(tensor, tensor.meta["val"])
        axis %= len(sizes)
        found = node.meta["val"].shape[axis : axis + len(parts)]
        known = [size if isinstance(size, int) else part for size, part in zip(found, parts, strict=True)]
        return [*sizes[:axis], *known, *sizes[axis + 1 :]]

    def _of(self, tensor: fx.Node, value: torch.Tensor) -> list[Any]:
        return [
            size if isinstance(size, int) else self._node(_ATEN.sym_size.int, (tensor, axis), size)
            for axis, size in enumerate(value.shape)
        ]

    def _product(self, first: Any, second: Any) -> Any:
        values = [size.meta["val"] if isinstance(size, fx.Node) else size for size in (first, second)]
        product = values[0] * values[1]
        if isinstance(first, int) and isinstance(second, int):
            return product
        return self._node(operator.mul, (first, second), product)

    def _node(self, target: Any, arguments: tuple[Any, ...], value: torch.SymInt) -> fx.Node:
        symbols = value.node.expr
        if symbols not in self._nodes:
            self._nodes[symbols] = self._graph.call_function(target, arguments)
            self._nodes[symbols].meta["val"] = value
        return self._nodes[symbols]


def _is_writable(graph: fx.Graph, registry: ONNXRegistry) -> bool:
    """Whether torch.onnx has a translation for every node, and none changes its arguments."""
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            return False
        if not registry.is_registered(node.target):
            return False
    return True
