"""A pretended GPU, to check on any machine that a model keeps everything on its device and waits for nothing needless.

Tensors of the pretended device hold their values on the CPU and say that they lie elsewhere (torch's "meta": a CPU
build knows no other device without a driver). Operators on them run on the CPU; one that gets tensors of both places
fails, as on a GPU, numbers of no dimension excepted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

DEVICE = torch.device("meta")
# Operators that may see both places: copies between them, and a number handed to Python.
CROSSING = ("aten::_to_copy", "aten::copy_", "aten::_local_scalar_dense")
READ_BACK = "aten::_local_scalar_dense"


class PretendTensor(Tensor):
    """A tensor on the pretended device; `held` is its value, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "PretendTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    name = func._schema.name
    tensors = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, PretendTensor)]
    here = [tensor for tensor in tensors if not isinstance(tensor, PretendTensor) and tensor.dim()]
    if there and here and name not in CROSSING:
        raise RuntimeError(f"{name} got tensors of two devices")
    args, kwargs = tree_map_only(PretendTensor, lambda tensor: tensor.held, (args, dict(kwargs)))
    device = kwargs.get("device")
    wanted = None if device is None else torch.device(device)
    if wanted == DEVICE:
        kwargs["device"] = torch.device("cpu")
    output = func(*args, **kwargs)
    if wanted == DEVICE or (wanted is None and there):
        return tree_map_only(Tensor, PretendTensor, output)
    return output


class PretendGpu(TorchDispatchMode):
    """Context in which the pretended device exists.

    Attributes:
        read_back: numbers that were passed to Python, each of which waits for a GPU.
        copied: tensors copied to the device, each of which waits too where its memory is ordinary.
    """

    def __init__(self) -> None:
        super().__init__()
        self.read_back = self.copied = 0
        self._functions = _Functions(self)

    def __enter__(self) -> "PretendGpu":
        self._functions.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *reason: Any) -> None:
        super().__exit__(*reason)
        self._functions.__exit__(*reason)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func._schema.name
        self.read_back += name == READ_BACK and isinstance(args[0], PretendTensor)
        self.copied += (
            name == "aten::_to_copy" and kwargs.get("device") == DEVICE and not isinstance(args[0], PretendTensor)
        )
        return _run(func, args, kwargs)


class _Functions(TorchFunctionMode):
    """What torch does below its operators, where the dispatch mode does not see it."""

    def __init__(self, gpu: PretendGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            self.gpu.copied += 1
            return PretendTensor(torch.tensor(*args, **{**kwargs, "device": "cpu"}))
        if func is Tensor.tolist and isinstance(args[0], PretendTensor):
            self.gpu.read_back += 1
            return args[0].held.tolist()
        return func(*args, **kwargs)


def on_gpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs on the pretended device."""
    return {name: PretendTensor(tensor) for name, tensor in tensors.items()}


def to_gpu(model: nn.Module) -> nn.Module:
    """Put a model there, in place."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(PretendTensor(parameter.detach()), requires_grad=False)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = PretendTensor(buffer)
    return model
