"""Random fields, sizes and descriptions for plugin creators and objects: `python -m tests.plugins.fuzz_plugins
--seconds 600`.

Everything may be refused, with a message; nothing may crash, and what is accepted has to be what was asked for. With
--library another build than the host's is tried. tests/plugins/test_plugin_errors.py makes some thousand attempts.
"""

import ctypes
import random
import time
from collections.abc import Callable
from pathlib import Path

import click

from madtp.ops.spec import ALL_OPS
from tests.helpers import harness
from tests.helpers.harness import (
    FIELD_FLOAT32,
    FIELD_INT32,
    Description,
    Dims,
    DynamicDescription,
    Field,
    Fields,
    Plugin,
    PluginLibrary,
)
from tests.helpers.native_build import build

KNOWN = {
    "AlignedAttention": {"causal": (0, 1), "heads": (1, 65535)},
    "TokenCompact": {
        "layer": (0, 65535),
        "keep_margin": (0, 1),
        "opt_tokens": (0, 1 << 24),
        "max_tokens": (0, 1 << 24),
    },
    "PackedAlignedAttention": {"causal": (0, 1), "heads": (1, 65535)},
    "PackedTokenCompact": {
        "capacity": (1, 1 << 24),
        "group": (1, 65535),
        "layer": (0, 65535),
        "keep_margin": (0, 1),
    },
    "VarlenAttention": {"heads": (1, 65535)},
}
FLOATS = {"keep_margin"}
REQUIRED = {"causal", "heads", "layer", "capacity", "group"}
COUNTS = {spec.onnx_name: (len(spec.inputs), len(spec.outputs)) for spec in ALL_OPS}
RANKS = {spec.onnx_name: tuple(len(tensor.dims) for tensor in spec.inputs) for spec in ALL_OPS}
NUMBERS = (0, 1, 2, 3, 8, 12, 24, 64, 192, 256, 768, 65535, 65536, 1 << 24, 2**31 - 1, 2**31, 2**40 + 1, 2**63 - 1, -1)
NUMBERS += (-2, -(2**31), -(2**63))


def value_of(field: Field) -> float:
    """The value of a field."""
    kind = ctypes.c_float if field.type == FIELD_FLOAT32 else ctypes.c_int32
    return kind.from_address(field.data).value


class Fuzzer:
    """A stream of attempts on one library."""

    def __init__(self, library: PluginLibrary, seed: int) -> None:
        self.library, self.random = library, random.Random(seed)
        self.created = 0

    def attempt(self) -> None:
        """Create a plugin from random fields; if that works, call everything on it that takes no memory."""
        name = self.random.choice(sorted(KNOWN))
        values = (ctypes.c_int32 * 8)(*(self.value() for _ in range(8)))
        given = [self.field(name, values, index) for index in range(self.random.choice((0, 1, 2, 2, 2, 3, 3, 4)))]
        plugin = self.library.create(name, self.collection(given), self.random.choice((0, 1, 7)))
        messages = self.library.messages()
        allowed = self.is_allowed(name, given)
        assert (plugin is not None) == allowed == (messages == []), (name, given, messages)
        if plugin is None:
            return
        self.created += 1
        expected = {field.name.decode(): value_of(field) for field in given}
        assert plugin.serialized() == {**dict.fromkeys(KNOWN[name], 0), **expected}
        for _ in range(4):
            self.call(name, plugin)

    def value(self) -> int:
        """A number; its bits are those of an int32, or, now and then, of a small float."""
        return self.random.choice((0, 1, 2, 12, 4, 0x3E000000, self.random.randint(-(2**31), 2**31 - 1)))

    def collection(self, given: list[Field]) -> Fields | None:
        """Mostly as TensorRT makes it; sometimes null, or null where fields should be."""
        self.broken = self.random.random() < 0.02
        if self.broken:
            return self.random.choice((None, Fields(len(given) + 1, None), Fields(-1, None), Fields(-(2**31), None)))
        return Fields(len(given), (Field * len(given))(*given))

    def field(self, plugin: str, values: "ctypes.Array[ctypes.c_int32]", index: int) -> Field:
        """One that the plugin knows, in nine of ten cases; with something else wrong in some."""
        names = list(KNOWN[plugin])
        name: bytes | None = names[index % len(names)].encode()
        if self.random.random() < 0.1:
            junk = bytes(self.random.randint(1, 255) for _ in range(self.random.choice((0, 1, 5, 70, 3000))))
            name = self.random.choice((junk, junk, None, name, b"%s%n%d"))
        address: int | None = ctypes.addressof(values) + 4 * index
        kind, length = FIELD_FLOAT32 if name is not None and name.decode(errors="replace") in FLOATS else FIELD_INT32, 1
        if self.random.random() < 0.05:
            kind = self.random.choice((*harness.FIELD_TYPES, -1, 1000))
        if self.random.random() < 0.05:
            length = self.random.choice((0, 2, -1, 2**31 - 1))
        if self.random.random() < 0.02:
            address = None
        return Field(name, address, kind, length)

    def is_allowed(self, plugin: str, given: list[Field]) -> bool:
        """What the creator ought to say."""
        if self.broken:
            return False
        names = [field.name.decode(errors="replace") if field.name else "" for field in given]
        if len(set(names)) < len(names) or not set(names) <= set(KNOWN[plugin]):
            return False
        if not REQUIRED & set(KNOWN[plugin]) <= set(names):
            return False
        for name, field in zip(names, given, strict=True):
            if (field.type, field.length) != (FIELD_FLOAT32 if name in FLOATS else FIELD_INT32, 1) or not field.data:
                return False
            smallest, largest = KNOWN[plugin][name]
            if not smallest <= value_of(field) <= largest:
                return False
        return True

    def number(self) -> int:
        return self.random.choice((self.random.choice(NUMBERS), self.random.randint(0, 700)))

    def sizes(self, rank: int) -> list[int]:
        if self.random.random() < 0.05:
            rank = self.random.randint(0, 8)
        return [self.number() for _ in range(rank)]

    def description(self, rank: int) -> DynamicDescription:
        kind = self.random.choice((0, 1, 7, 3, 8, self.random.randint(-1, 20)))
        first = Description(Dims.of(self.sizes(rank)), kind, self.random.choice((0, 0, 0, 5)), 1.0)
        return DynamicDescription(first, *(Dims.of(self.sizes(rank)) for _ in range(3)))

    def call(self, name: str, plugin: Plugin) -> None:
        """Random sizes of roughly the right ranks, in roughly the right number."""
        inputs, outputs = COUNTS[name]
        if self.random.random() < 0.1:
            inputs, outputs = self.random.randint(0, 10), self.random.randint(0, 6)
        ranks = [*RANKS[name], *(2,) * 20]
        sizes = [self.sizes(rank) for rank in ranks[:inputs]]
        fails = self.random.choice((harness.NEVER, harness.NEVER, self.random.randint(0, 6)))
        shapes = plugin.output_shapes(sizes, outputs, fails)
        right = (inputs, outputs) == COUNTS[name] and tuple(map(len, sizes)) == RANKS[name]
        if shapes.outputs is None:
            assert not right or fails != harness.NEVER
            assert self.library.messages() or right
        else:
            assert right
            first = plugin.serialized().get("capacity", sizes[0][0])
            assert shapes.outputs[0][0] == first
            for _, opt, upper in shapes.declared:
                assert upper <= sizes[0][1]
                assert opt <= upper or upper == sizes[0][1]  # the length, which a constant opt does not know
        tensors = (DynamicDescription * (inputs + outputs))(
            *(self.description(rank) for rank in ranks[: inputs + outputs])
        )
        accepted = plugin.configure(tensors, inputs, outputs) == 0
        assert accepted == (self.library.messages() == [])
        workspace = plugin.workspace(tensors, inputs, outputs)
        assert workspace >= 0
        for position in (self.random.randint(-2, 15), self.random.randint(0, 4)):
            plugin.supports(position, tensors, inputs, outputs)
        plugin.output_types([self.number() % 12 for _ in range(inputs)], outputs)
        self.library.messages()


def fuzz(path: Path, seed: int, wanted: Callable[[int], bool]) -> tuple[int, int]:
    """(attempts, created plugins), while more than so many attempts are wanted; AssertionError at a surprise."""
    fuzzer, attempts = Fuzzer(PluginLibrary(path), seed), 0
    while wanted(attempts):
        fuzzer.attempt()
        attempts += 1
    return attempts, fuzzer.created


@click.command()
@click.option("--seconds", type=float, default=600, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--library", type=click.Path(path_type=Path, exists=True), help="Plugin library; default: host build.")
def main(seconds: float, seed: int, library: Path | None) -> None:
    """Throw random fields, sizes and descriptions at the plugins for some time."""
    end = time.monotonic() + seconds
    attempts, created = fuzz(library or build().plugins, seed, lambda _: time.monotonic() < end)
    click.echo(f"{attempts} attempts, {created} plugins created and called, no surprise")


if __name__ == "__main__":
    main()
