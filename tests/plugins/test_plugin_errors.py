"""Every way in which plugins and their creators refuse, each with a message that says what, why, and what to do."""

import math
import re
from collections.abc import Mapping

import pytest
import torch

from madtp.ops.spec import ALIGNED_ATTENTION, ALL_OPS, PACKED_ATTENTION, PACKED_COMPACT, TOKEN_COMPACT, VARLEN_ATTENTION
from tests.helpers import harness
from tests.helpers.harness import (
    BUILD,
    FIELD_FLOAT32,
    FIELD_INT32,
    FLOAT,
    RUNTIME,
    Field,
    Fields,
    PluginLibrary,
    descriptions,
    float_field,
    int_field,
)
from tests.helpers.plugin_case import GOOD, IDS, Case, libraries, path_of, the_message
from tests.plugins import fuzz_plugins

REQUIRED = {
    "AlignedAttention": ["causal", "heads"],
    "TokenCompact": ["layer"],
    "PackedAlignedAttention": ["causal", "heads"],
    "PackedTokenCompact": ["capacity", "group", "layer"],
    "VarlenAttention": ["heads"],
}
EXPRESSIONS = {  # that a plugin needs for the shapes of its outputs
    "AlignedAttention": 4,
    "TokenCompact": 4,
    "PackedAlignedAttention": 2,
    "PackedTokenCompact": 1,
    "VarlenAttention": 0,
}
ATTEMPTS = 8000  # some seconds


@pytest.fixture(scope="module", params=libraries())
def library(request: pytest.FixtureRequest) -> PluginLibrary:
    return PluginLibrary(path_of(request.param))


@pytest.fixture(params=ALL_OPS, ids=IDS)
def case(request: pytest.FixtureRequest, library: PluginLibrary) -> Case:
    library.messages()
    return Case(request.param, library)


BAD_FIELDS = {
    "null": (None, "no field collection"),
    "null fields": (Fields(2, None), "no field collection"),
    "negative count": (Fields(-1, None), "no field collection"),
    "unknown": ({"colour": 1}, "unknown field 'colour'"),
    "no name": ([Field(None, None, FIELD_INT32, 1)], "unknown field ''"),
    "long name": ({"x" * 5000: 1}, "unknown field 'xxx"),
}


@pytest.mark.parametrize("phase", [BUILD, RUNTIME])
@pytest.mark.parametrize("bad", BAD_FIELDS)
def test_creator_refuses_collections_that_are_none(case: Case, bad: str, phase: int) -> None:
    fields, expected = BAD_FIELDS[bad]
    assert case.library.create(case.name, fields, phase) is None
    assert expected in the_message(case.library, case.name)


def test_creator_refuses_missing_repeated_and_foreign_fields(case: Case) -> None:
    good = GOOD[case.name]

    def field_of(name: str, value: float) -> Field:
        return int_field(name, value) if isinstance(value, int) else float_field(name, value)

    def refusal(fields: Mapping[str, float] | list[Field]) -> str:
        assert case.library.create(case.name, fields) is None
        return the_message(case.library, case.name)

    def with_field(changed: Field) -> list[Field]:
        others = [field_of(other, value) for other, value in good.items() if other.encode() != changed.name]
        return [*others, changed]

    value = torch.tensor([1, 1], dtype=torch.int32)
    for name in good:
        without = {other: value for other, value in good.items() if other != name}
        if name in REQUIRED[case.name]:
            assert f"field '{name}' is missing" in refusal(without)
        else:
            plugin = case.library.create(case.name, without)
            assert plugin is not None
            assert plugin.serialized() == {**good, name: 0}
        repeated = [field_of(other, value) for other, value in (*good.items(), (name, good[name]))]
        assert f"field '{name}' is given twice" in refusal(repeated)
        right = FIELD_INT32 if isinstance(good[name], int) else FIELD_FLOAT32
        for wrong in set(harness.FIELD_TYPES) - {right}:
            text = refusal(with_field(Field(name.encode(), value.data_ptr(), wrong, 1)))
            assert f"'{name}' has type {wrong} and length 1" in text
        for length in (0, 2, -1):
            text = refusal(with_field(Field(name.encode(), value.data_ptr(), right, length)))
            assert f"'{name}' has type {right} and length {length}" in text
        assert f"'{name}' has type" in refusal(with_field(Field(name.encode(), None, right, 1)))


@pytest.mark.parametrize(
    ("plugin", "field", "smallest", "largest"),
    [
        ("AlignedAttention", "causal", 0, 1),
        ("AlignedAttention", "heads", 1, 65535),
        ("TokenCompact", "layer", 0, 65535),
        ("TokenCompact", "opt_tokens", 0, 1 << 24),
        ("TokenCompact", "max_tokens", 0, 1 << 24),
        ("PackedTokenCompact", "group", 1, 65535),
        ("PackedTokenCompact", "layer", 0, 65535),
        ("VarlenAttention", "heads", 1, 65535),
    ],
)
def test_field_values_have_a_range(
    library: PluginLibrary, plugin: str, field: str, smallest: int, largest: int
) -> None:
    library.messages()
    for value in (smallest, largest):
        assert library.create(plugin, {**GOOD[plugin], field: value}) is not None
    for value in (smallest - 1, largest + 1, -(2**31), 2**31 - 1):
        assert library.create(plugin, {**GOOD[plugin], field: value}) is None
        assert f"'{field}' is {value}. It has to be {smallest} to {largest}" in the_message(library, plugin)


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf, -math.inf, 3e38])
def test_a_margin_is_a_number_from_zero_to_one(library: PluginLibrary, value: float) -> None:
    library.messages()
    for good in (0.0, 1.0):
        assert library.create("TokenCompact", {**GOOD["TokenCompact"], "keep_margin": good}) is not None
    assert library.create("TokenCompact", {**GOOD["TokenCompact"], "keep_margin": value}) is None
    assert re.search(r"'keep_margin' is [-\w.+]+\. It has to be 0 to 1", the_message(library, "TokenCompact"))


@pytest.mark.parametrize("change", [(-1, 0), (1, 0), (0, -1), (0, 1)])
def test_wrong_numbers_of_inputs_and_outputs_are_refused(case: Case, change: tuple[int, int]) -> None:
    plugin = case.create()
    inputs, outputs = (count + more for count, more in zip(case.counts, change, strict=True))
    tensors = descriptions([((8, 8, 24), FLOAT)] * (inputs + outputs))
    calls = {
        "getOutputDataTypes": lambda: plugin.output_types([FLOAT] * inputs, outputs) is None,
        "getOutputShapes": lambda: plugin.output_shapes([(8, 8, 24)] * inputs, outputs).outputs is None,
        "supportsFormatCombination": lambda: not plugin.supports(0, tensors, inputs, outputs),
        "configurePlugin": lambda: plugin.configure(tensors, inputs, outputs) != 0,
        "getWorkspaceSize": lambda: plugin.workspace(tensors, inputs, outputs) == 0,
    }
    for where, refused in calls.items():
        assert refused(), where
        assert f"{where} with {inputs} inputs and {outputs} outputs" in the_message(case.library, case.name)


def test_wrong_ranks_are_refused(case: Case) -> None:
    plugin = case.create()
    for position, sizes in enumerate(case.sizes()):
        for rank in set(range(9)) - {len(sizes)}:
            changed = [*case.sizes()[:position], (8,) * rank, *case.sizes()[position + 1 :]]
            assert plugin.output_shapes(changed, case.counts[1]).outputs is None
            text = the_message(case.library, case.name)
            assert f"has {rank} dimensions" in text or f"key_mask {rank}" in text


@pytest.mark.parametrize("most", [0, 15])
def test_an_expression_builder_that_fails_is_not_followed(case: Case, most: int) -> None:
    plugin = case.create(**({"max_tokens": most} if case.spec is TOKEN_COMPACT else {}))
    needed = 3 if case.spec is TOKEN_COMPACT and not most else EXPRESSIONS[case.name]
    answers = [plugin.output_shapes(case.sizes(), case.counts[1], fails_from=call).outputs for call in range(7)]
    assert [answer is None for answer in answers] == [call < needed for call in range(7)]
    messages = case.library.messages()
    assert len(messages) == needed
    assert all("TensorRT made no expression" in message and "Free memory" in message for message in messages)


@pytest.mark.parametrize(
    ("heads", "triple"),
    [(4, 3 * 60), (4, 3 * 64 + 1), (5, 3 * 64), (1, 3 * 264), (4, 0), (4, -1), (4, 2**40 + 1), (65535, 3 * 64)],
)
def test_attention_refuses_widths_that_the_kernels_do_not_know(library: PluginLibrary, heads: int, triple: int) -> None:
    case = Case(ALIGNED_ATTENTION, library)
    assert case.create(heads=heads).configure(case.tensors(**{"3C": triple}), 2, 3) != 0
    text = the_message(library, case.name)
    assert f"qkv is {triple} wide with {heads} heads" in text
    assert "--plugins none" in text


@pytest.mark.parametrize(("heads", "triple"), [(4, 3 * 60), (5, 3 * 64), (1, 3 * 264), (4, -1)])
def test_packed_attention_refuses_the_same_widths(library: PluginLibrary, heads: int, triple: int) -> None:
    case = Case(PACKED_ATTENTION, library)
    assert case.create(heads=heads).configure(case.tensors(**{"3C": triple}), *case.counts) != 0
    assert f"qkv is {triple} wide with {heads} heads" in the_message(library, case.name)


@pytest.mark.parametrize(
    ("heads", "width", "both"), [(4, 60, 120), (5, 64, 128), (1, 264, 528), (4, 64, 64), (4, 0, 0)]
)
def test_attention_to_others_refuses_the_same_widths(library: PluginLibrary, heads: int, width: int, both: int) -> None:
    case = Case(VARLEN_ATTENTION, library)
    assert case.create(heads=heads).configure(case.tensors(C=width, **{"2C": both}), *case.counts) != 0
    assert f"query is {width} and key_value {both} wide with {heads} heads" in the_message(library, case.name)


def test_packed_compaction_refuses_widths_and_exact_sizes(library: PluginLibrary) -> None:
    case = Case(PACKED_COMPACT, library)
    assert case.create().configure(case.tensors(C=12), *case.counts) != 0
    assert "tokens are 12 wide" in the_message(library, case.name)
    assert library.create(case.name, {**GOOD[case.name], "capacity": 0}) is None
    assert "Exact sizes are for CPUs" in the_message(library, case.name)


@pytest.mark.parametrize("width", [0, 4, 12, 63, -1, 2**40 + 4])
def test_compaction_refuses_widths_that_the_kernels_do_not_know(library: PluginLibrary, width: int) -> None:
    case = Case(TOKEN_COMPACT, library)
    assert case.create().configure(case.tensors(C=width), 8, 4) != 0
    assert f"tokens are {width} wide" in the_message(library, case.name)


def test_a_bound_of_one_token_is_refused(library: PluginLibrary) -> None:
    case = Case(TOKEN_COMPACT, library)
    assert case.create(max_tokens=1).configure(case.tensors(), 8, 4) != 0
    assert "max_tokens is 1" in the_message(library, case.name)


@pytest.mark.parametrize("kind", libraries())
def test_random_fields_sizes_and_descriptions_bring_no_surprise(kind: str) -> None:
    _, created = fuzz_plugins.fuzz(path_of(kind), seed=2, wanted=lambda attempts: attempts < ATTEMPTS)
    assert created > ATTEMPTS / 20
