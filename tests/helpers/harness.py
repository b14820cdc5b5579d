"""Plugin objects from Python: `tests/native/harness.cpp` behind classes. Structures are those of TensorRT's headers."""

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from madtp.ops.spec import DOMAIN
from tests.helpers.native_build import build

# nvinfer1::DataType, PluginFieldType, TensorRTPhase, PluginCapabilityType and ILogger::Severity, as far as used here
FLOAT, HALF, INT32, BF16, INT64 = 0, 1, 3, 7, 8
DATA_TYPES, FORMATS = range(12), range(13)
LINEAR = 0
FIELD_TYPES, FIELD_FLOAT32, FIELD_INT32 = range(14), 1, 5
BUILD, RUNTIME = 0, 1
CAPABILITIES = ("PLUGIN_V3ONE_CORE 1.0", "PLUGIN_V3ONE_BUILD 1.0", "PLUGIN_V3ONE_RUNTIME 1.0")
ERROR = 1
TYPE_OF = {torch.float32: FLOAT, torch.float16: HALF, torch.bfloat16: BF16, torch.int32: INT32, torch.int64: INT64}
SIZE_TENSOR = -(2**63)  # a dimension that is this plus an output's index is the size tensor in that output
NEVER = -1


class Field(ctypes.Structure):
    """nvinfer1::PluginField."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("length", ctypes.c_int32),
    )


class Fields(ctypes.Structure):
    """nvinfer1::PluginFieldCollection."""

    _fields_ = (("count", ctypes.c_int32), ("fields", ctypes.POINTER(Field)))


class Dims(ctypes.Structure):
    """nvinfer1::Dims."""

    _fields_ = (("rank", ctypes.c_int32), ("d", ctypes.c_int64 * 8))

    @classmethod
    def of(cls, sizes: Sequence[int]) -> "Dims":
        """Make Dims from at most eight sizes."""
        return cls(len(sizes), (ctypes.c_int64 * 8)(*sizes))

    def sizes(self) -> tuple[int, ...]:
        """Return the sizes as a tuple."""
        return tuple(self.d[: self.rank])


class Description(ctypes.Structure):
    """nvinfer1::PluginTensorDesc."""

    _fields_ = (("dims", Dims), ("type", ctypes.c_int32), ("format", ctypes.c_int32), ("scale", ctypes.c_float))


class DynamicDescription(ctypes.Structure):
    """nvinfer1::DynamicPluginTensorDesc."""

    _fields_ = (("desc", Description), ("min", Dims), ("max", Dims), ("opt", Dims))


class SizeTensor(ctypes.Structure):
    """A size tensor that a plugin declared: its output, its value for tuning and the source of that, its bound."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("output", "opt", "upper", "opt_is_derived"))


def int_field(name: str, value: int) -> Field:
    """A field as TensorRT's parser makes it from an integer attribute."""
    return Field(name.encode(), ctypes.addressof(_kept(ctypes.c_int32(value))), FIELD_INT32, 1)


def float_field(name: str, value: float) -> Field:
    """A field as TensorRT's parser makes it from a float attribute."""
    return Field(name.encode(), ctypes.addressof(_kept(ctypes.c_float(value))), FIELD_FLOAT32, 1)


_alive: list[Any] = []  # what fields point to


def _kept(value: Any) -> Any:
    _alive.append(value)
    del _alive[:-10_000]
    return value


def descriptions(tensors: Iterable[tuple[Sequence[int], int]]) -> Any:
    """Dynamic descriptions of (sizes, data type); all linear, every bound the sizes themselves."""
    made = [
        DynamicDescription(Description(Dims.of(sizes), dtype, LINEAR, 1.0), *(Dims.of(sizes) for _ in range(3)))
        for sizes, dtype in tensors
    ]
    return (DynamicDescription * len(made))(*made)


@dataclass(frozen=True)
class Shapes:
    """Result of getOutputShapes. `outputs` is None if it refused."""

    outputs: list[tuple[int, ...]] | None
    declared: list[tuple[int, int, int]]  # (output, opt, upper) of every declared size tensor
    derived: list[bool]  # whether its opt depends on a size tensor


class Plugin:
    """A plugin object, destroyed with this one."""

    def __init__(self, library: "PluginLibrary", handle: int) -> None:
        self.library, self.handle = library, ctypes.c_void_p(handle)

    def __del__(self) -> None:
        self.library.c.harness_destroy(self.handle)

    def _text(self, function: str, *arguments: int) -> str | None:
        text = getattr(self.library.c, function)(self.handle, *arguments)
        return None if text is None else text.decode()

    def identity(self) -> tuple[str | None, ...]:
        """(name, version, namespace)."""
        return tuple(self._text(f"harness_{what}") for what in ("name", "version", "namespace"))

    def capability(self, kind: int) -> str | None:
        """Kind and version of a capability interface."""
        return self._text("harness_capability", kind)

    def interface(self) -> str | None:
        """Kind and version of the object itself."""
        return self._text("harness_interface")

    def clone(self, attach: bool = False) -> "Plugin":
        """clone(), or attachToContext()."""
        handle = getattr(self.library.c, "harness_attach" if attach else "harness_clone")(self.handle)
        return Plugin(self.library, handle)

    def serialized(self) -> dict[str, float]:
        """getFieldsToSerialize, each of which has to be one int32 or float32."""
        collection = self.library.c.harness_serialize(self.handle).contents
        return {field.name.decode(): _number(field) for field in collection.fields[: collection.count]}

    def output_count(self) -> int:
        """getNbOutputs."""
        return self.library.c.harness_output_count(self.handle)

    def output_types(self, inputs: Sequence[int], outputs: int) -> list[int] | None:
        """getOutputDataTypes; None where it refuses."""
        given, answer = (ctypes.c_int32 * len(inputs))(*inputs), (ctypes.c_int32 * outputs)()
        code = self.library.c.harness_output_types(self.handle, given, len(inputs), answer, outputs)
        return None if code else list(answer)

    def output_shapes(
        self, inputs: Sequence[Sequence[int]], outputs: int, fails_from: int = NEVER, later: bool = False
    ) -> Shapes:
        """getOutputShapes; with an expression builder that fails from its call number `fails_from` on.

        Where `later`, the inputs' second dimension is the size tensor of a layer before.
        """
        given = (Dims * len(inputs))(*map(Dims.of, inputs))
        answer, sizes, declared = (Dims * outputs)(), (SizeTensor * 8)(), ctypes.c_int32()
        code = self.library.c.harness_output_shapes(
            self.handle, given, len(inputs), later, answer, outputs, fails_from, sizes, ctypes.byref(declared)
        )
        told = sizes[: declared.value]
        tensors = [(tensor.output, tensor.opt, tensor.upper) for tensor in told]
        derived = [bool(tensor.opt_is_derived) for tensor in told]
        return Shapes(None if code else [dims.sizes() for dims in answer], tensors, derived)

    def supports(self, position: int, tensors: Any, inputs: int, outputs: int) -> bool:
        """supportsFormatCombination."""
        return bool(self.library.c.harness_supports(self.handle, position, tensors, inputs, outputs))

    def configure(self, tensors: Any, inputs: int, outputs: int) -> int:
        """configurePlugin; zero where it accepts."""
        return self.library.c.harness_configure(self.handle, tensors, inputs, outputs)

    def workspace(self, tensors: Any, inputs: int, outputs: int) -> int:
        """getWorkspaceSize."""
        return self.library.c.harness_workspace(self.handle, tensors, inputs, outputs)

    def on_shape_change(self, tensors: Any, inputs: int, outputs: int) -> int:
        """onShapeChange; zero where it accepts."""
        return self.library.c.harness_on_shape_change(self.handle, tensors, inputs, outputs)

    def enqueue(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], workspace: Tensor) -> int:
        """enqueue on host memory; zero where it ran."""
        tensors = [
            Description(Dims.of(tensor.shape), TYPE_OF[tensor.dtype], LINEAR, 1.0) for tensor in (*inputs, *outputs)
        ]
        return self.library.c.harness_enqueue(
            self.handle,
            (Description * len(tensors))(*tensors),
            len(inputs),
            (ctypes.c_void_p * len(inputs))(*(tensor.data_ptr() for tensor in inputs)),
            (ctypes.c_void_p * len(outputs))(*(tensor.data_ptr() for tensor in outputs)),
            ctypes.c_void_p(workspace.data_ptr()),
        )


def _number(field: Field) -> float:
    assert (field.type in (FIELD_INT32, FIELD_FLOAT32), field.length) == (True, 1), (field.name, field.type)
    kind = ctypes.c_int32 if field.type == FIELD_INT32 else ctypes.c_float
    return kind.from_address(field.data).value


class PluginLibrary:
    """A plugin library, loaded as TensorRT loads it.

    Args:
        path: of the host build or of the CUDA build.
    """

    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(build().harness))
        self._declare()
        layouts = (Field, Fields, Dims, Description, DynamicDescription, SizeTensor)
        sizes = [self.c.harness_sizeof(index) for index in range(len(layouts))]
        assert sizes == [ctypes.sizeof(layout) for layout in layouts], sizes
        self.handle = ctypes.c_void_p(self.c.harness_open(str(path).encode()))
        if not self.handle:
            raise OSError(f"{path}: {self.c.harness_load_error()}")
        found = map(self.creator, range(self.c.harness_creators(self.handle)))
        self.creators = {(name, namespace): index for index, (name, _, namespace, _) in enumerate(found)}

    def _declare(self) -> None:
        for name in ("open", "create", "clone", "attach"):
            getattr(self.c, f"harness_{name}").restype = ctypes.c_void_p
        creator = ("creator_interface", "creator_name", "creator_version", "creator_namespace")
        for name in ("load_error", "message", *creator, "interface", "capability", "name", "version", "namespace"):
            getattr(self.c, f"harness_{name}").restype = ctypes.c_char_p
        for name in ("sizeof", "workspace"):
            getattr(self.c, f"harness_{name}").restype = ctypes.c_int64
        for name in ("field_names", "serialize"):
            getattr(self.c, f"harness_{name}").restype = ctypes.POINTER(Fields)

    def creator(self, index: int) -> tuple[str, ...]:
        """(name, version, namespace, interface) of a creator."""
        parts = ("name", "version", "namespace", "interface")
        return tuple(getattr(self.c, f"harness_creator_{part}")(self.handle, index).decode() for part in parts)

    def field_types(self, plugin: str, namespace: str) -> dict[str, int]:
        """Name and type of the fields that a creator takes, each one number."""
        collection = self.c.harness_field_names(self.handle, self.creators[plugin, namespace]).contents
        return {field.name.decode(): field.type for field in collection.fields[: collection.count] if field.length == 1}

    def create(
        self,
        plugin: str,
        fields: Mapping[str, float] | Sequence[Field] | Fields | None,
        phase: int = BUILD,
        namespace: str = DOMAIN,
    ) -> Plugin | None:
        """createPlugin with values, raw fields, a raw collection or none; None where the creator refuses."""
        if isinstance(fields, Mapping):
            fields = [
                int_field(name, value) if isinstance(value, int) else float_field(name, value)
                for name, value in fields.items()
            ]
        if fields is not None and not isinstance(fields, Fields):
            fields = Fields(len(fields), (Field * len(fields))(*fields))
        pointer = None if fields is None else ctypes.byref(fields)
        handle = self.c.harness_create(self.handle, self.creators[plugin, namespace], pointer, phase)
        return None if handle is None else Plugin(self, handle)

    def messages(self) -> list[str]:
        """Return the messages since the last call, all of which are errors."""
        lines = []
        while (line := self.c.harness_message(self.handle, len(lines))) is not None:
            lines.append(line.decode(errors="replace"))
        self.c.harness_forget_messages(self.handle)
        assert all(line.startswith(f"{ERROR} ") for line in lines), lines
        return [line[2:] for line in lines]

    def use_logger(self, use: bool) -> None:
        """setLoggerFinder with this library's finder, or with null."""
        self.c.harness_use_logger(self.handle, int(use))
