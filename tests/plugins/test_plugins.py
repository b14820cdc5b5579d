"""Plugin objects through their whole life, as TensorRT leads it, without TensorRT.

The CUDA build is tested too where it exists: in all but running kernels, which needs a GPU
(tests/export/runtime/test_gpu.py).
"""

import re
import subprocess

import pytest
import torch
from torch import Tensor

from madtp.ops import reference as ops
from madtp.ops.spec import (
    ALIGNED_ATTENTION,
    ALL_OPS,
    DOMAIN,
    MARGIN_NAMESPACE,
    OPS,
    PACKED_OPS,
    PLUGINS,
    TOKEN_COMPACT,
    VARLEN_ATTENTION,
    VERSION,
    OpSpec,
)
from tests.helpers import harness
from tests.helpers.harness import (
    BF16,
    BUILD,
    FIELD_FLOAT32,
    FIELD_INT32,
    FLOAT,
    HALF,
    RUNTIME,
    Plugin,
    PluginLibrary,
)
from tests.helpers.kernels import Kernels
from tests.helpers.native_build import build
from tests.helpers.plugin_case import (
    CAPACITY,
    GOOD,
    HEADS,
    IDS,
    B,
    C,
    Case,
    L,
    R,
    S,
    T,
    libraries,
    path_of,
    the_message,
)


@pytest.fixture(scope="module", params=libraries())
def library(request: pytest.FixtureRequest) -> PluginLibrary:
    return PluginLibrary(path_of(request.param))


@pytest.fixture(params=ALL_OPS, ids=IDS)
def case(request: pytest.FixtureRequest, library: PluginLibrary) -> Case:
    library.messages()
    return Case(request.param, library)


@pytest.mark.parametrize("kind", libraries())
def test_the_library_shows_two_symbols_and_wants_nothing_of_tensorrt(kind: str) -> None:
    def symbols(which: str) -> list[str]:
        lines = subprocess.run(["nm", "-D", which, path_of(kind)], capture_output=True, text=True, check=True).stdout
        return [line.split()[-1] for line in lines.splitlines()]

    assert sorted(symbols("--defined-only")) == ["getCreators", "setLoggerFinder"]
    wanted = symbols("--undefined-only")
    assert wanted
    assert not [name for name in wanted if re.search(r"nvinfer|tensorrt|createInfer|getPluginRegistry", name, re.I)]


def test_creators_are_those_of_the_op_definitions(library: PluginLibrary) -> None:
    creators = [library.creator(index) for index in range(len(library.creators))]
    expected = [(*plugin, "PLUGIN CREATOR_V3ONE 1.0") for plugin in PLUGINS]
    assert creators == expected
    types = {"int32": FIELD_INT32, "float32": FIELD_FLOAT32}
    attributes = {spec.onnx_name: {entry.name: types[entry.dtype] for entry in spec.attributes} for spec in ALL_OPS}
    attributes["TokenCompact"] |= {"opt_tokens": FIELD_INT32, "max_tokens": FIELD_INT32}
    for name, namespace in library.creators:
        assert library.field_types(name, namespace) == attributes[name]


def copies(case: Case) -> list[Plugin]:
    """A plugin as the builder makes it, loaded from its fields, and clones of both."""
    built = case.create(BUILD)
    loaded = case.library.create(case.name, built.serialized(), RUNTIME)
    assert loaded is not None
    return [built, loaded, built.clone(), loaded.clone(attach=True), loaded.clone().clone()]


def test_every_copy_of_a_plugin_has_its_identity(case: Case) -> None:
    for plugin in copies(case):
        assert plugin.identity() == (case.name, str(VERSION), DOMAIN)
        assert plugin.interface() == "PLUGIN 1.0"
        assert tuple(plugin.capability(kind) for kind in range(3)) == harness.CAPABILITIES
        assert plugin.capability(3) is None
        assert plugin.serialized() == GOOD[case.name]
    assert case.library.messages() == []


def test_a_margin_is_kept_by_every_copy_and_makes_another_version(library: PluginLibrary) -> None:
    """TensorRT looks for the creator of a plan's plugin by the version and namespace that the plugin gives."""
    fields = {**GOOD["TokenCompact"], "keep_margin": 0.1}
    built = library.create("TokenCompact", fields, BUILD, MARGIN_NAMESPACE)
    assert built is not None
    loaded = library.create("TokenCompact", built.serialized(), RUNTIME, MARGIN_NAMESPACE)
    assert loaded is not None
    for plugin in (built, loaded, built.clone(), loaded.clone(attach=True)):
        assert plugin.identity() == PLUGINS[-1] == ("TokenCompact", "2", MARGIN_NAMESPACE)
        assert plugin.serialized() == {**fields, "keep_margin": pytest.approx(0.1, rel=1e-7)}
    assert library.messages() == []


def test_every_copy_of_a_plugin_can_be_configured(case: Case) -> None:
    for plugin in copies(case):
        assert plugin.output_count() == case.counts[1]
        assert plugin.configure(case.tensors(), *case.counts) == 0
        assert (plugin.workspace(case.tensors(), *case.counts) > 0) == (case.spec is not VARLEN_ATTENTION)
        assert plugin.on_shape_change(None, *case.counts) == 0
    assert case.library.messages() == []


def test_a_clone_outlives_its_plugin(case: Case) -> None:
    built = case.create(BUILD)
    clone = built.clone()
    del built
    assert clone.serialized() == GOOD[case.name]
    assert case.library.messages() == []


@pytest.mark.parametrize("dtype", [FLOAT, HALF, BF16])
def test_output_types_and_shapes(case: Case, dtype: int) -> None:
    plugin, (inputs, outputs) = case.create(), case.counts
    types = case.types(dtype)
    assert plugin.output_types(types[:inputs], outputs) == types[inputs:]
    packed = case.spec in PACKED_OPS
    count = CAPACITY if packed else harness.SIZE_TENSOR + outputs - 1
    known = {"B": B, "L": L, "N": L - 1, "C": C, "n": count, "R": R, "S+1": S + 1}
    expected = [tuple(known[symbol] for symbol in tensor.dims) for tensor in case.spec.outputs]
    shapes = plugin.output_shapes(case.sizes(), outputs)
    assert shapes.outputs == expected
    assert bool(shapes.declared) == (case.spec is TOKEN_COMPACT)  # no packed op has a size that depends on data


@pytest.mark.parametrize(
    ("opt", "most", "declared"),
    [(0, 0, (L, L)), (12, 0, (12, L)), (0, 15, (15, 15)), (12, 15, (12, 15)), (99, 99, (99, L)), (16, 15, (15, 15))],
)
def test_token_compact_declares_how_many_tokens_it_leaves(
    library: PluginLibrary, opt: int, most: int, declared: tuple[int, int]
) -> None:
    case = Case(TOKEN_COMPACT, library)
    plugin = case.create(opt_tokens=opt, max_tokens=most)
    assert plugin.output_shapes(case.sizes(), 4).declared == [(3, *declared)]


@pytest.mark.parametrize(("opt", "most", "derived"), [(12, 15, False), (12, 0, True), (0, 15, True), (0, 0, True)])
def test_what_tensorrt_tunes_for_depends_on_no_size_tensor(
    library: PluginLibrary, opt: int, most: int, derived: bool
) -> None:
    """NvInfer's rule for declareSizeTensor. It takes both numbers; the length bounds one alone."""
    case = Case(TOKEN_COMPACT, library)
    plugin = case.create(opt_tokens=opt, max_tokens=most)
    first, later = (plugin.output_shapes(case.sizes(), 4, later=later) for later in (False, True))
    assert first.declared == later.declared
    assert (first.derived, later.derived) == ([False], [derived])


def test_formats_are_linear_and_types_those_of_the_op_definition(case: Case) -> None:
    plugin, (inputs, outputs) = case.create(), case.counts
    for dtype in (FLOAT, HALF, BF16):
        types = case.types(dtype)
        for position in range(inputs + outputs):
            supported = set()
            for tried in harness.DATA_TYPES:
                for layout in harness.FORMATS:
                    tensors = case.tensors(dtype)
                    tensors[position].desc.type, tensors[position].desc.format = tried, layout
                    if plugin.supports(position, tensors, inputs, outputs):
                        supported.add((tried, layout))
            # A second input of the engine's type has to be of that of the first.
            allowed = {FLOAT, HALF, BF16} if position == 0 else {types[position]}
            assert supported == {(allowed_type, harness.LINEAR) for allowed_type in allowed}
    for position in (-1, inputs + outputs, 1000):
        assert not plugin.supports(position, case.tensors(), inputs, outputs)


def test_workspace_is_what_the_kernels_ask_for(library: PluginLibrary) -> None:
    attention, compact = (Case(spec, library) for spec in OPS)
    for length in (2, 64, 65, 577):
        plugin = attention.create()
        tensors = attention.tensors(L=length)
        assert plugin.workspace(tensors, 2, 3) == 4 * B * length * (4 * HEADS + -(-length // 64))
        small = attention.tensors(L=1)
        small[0].max = tensors[0].max  # the largest of the profile counts
        assert plugin.workspace(small, 2, 3) == plugin.workspace(tensors, 2, 3)
    sizes = [compact.create().workspace(compact.tensors(B=batch), 8, 4) for batch in (64, 128, 192)]
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] > 0


def attention_inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(B, L, 3 * C, generator=generator).to(dtype), torch.zeros(B, L)


def compact_inputs(dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(8)

    def positive(*sizes: int) -> Tensor:
        return torch.rand(*sizes, generator=generator)

    ids = torch.arange(L, dtype=torch.int32).repeat(B, 1)
    scores = (positive(B, L - 1), positive(B, L - 1), positive(B, L - 1, T))
    return positive(B, L, C).to(dtype), positive(B, L), ids, *scores, torch.tensor(0.5), torch.tensor(1)


def poisoned(*like: tuple[tuple[int, ...], torch.dtype]) -> list[Tensor]:
    return [torch.full(sizes, torch.nan if dtype.is_floating_point else -1, dtype=dtype) for sizes, dtype in like]


@pytest.fixture(scope="module")
def host() -> PluginLibrary:
    return PluginLibrary(build().plugins)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_attention_runs_as_the_kernels_and_torch_do(host: PluginLibrary, dtype: torch.dtype) -> None:
    case = Case(ALIGNED_ATTENTION, host)
    inputs = attention_inputs(dtype)
    outputs = poisoned(((B, L, C), dtype), ((B, L - 1), torch.float32), ((B, L - 1), torch.float32))
    plugin = case.create().clone(attach=True)
    workspace = torch.empty(plugin.workspace(case.tensors(harness.TYPE_OF[dtype]), *case.counts), dtype=torch.uint8)
    assert plugin.enqueue(inputs, outputs, workspace) == 0, host.messages()
    kernels = Kernels(build().kernels, "cpu").aligned_attention(*inputs, 0, HEADS)
    for got, expected, reference in zip(outputs, kernels, ops.aligned_attention(*inputs, 0, HEADS), strict=True):
        assert torch.equal(got, expected)
        torch.testing.assert_close(got, reference, atol=2e-2 if dtype != torch.float32 else 1e-5, rtol=2e-2)


@pytest.mark.parametrize(("most", "margin"), [(0, 0.0), (9, 0.0), (0, 0.1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_compaction_runs_as_the_kernels_and_torch_do(
    host: PluginLibrary, dtype: torch.dtype, most: int, margin: float
) -> None:
    case = Case(TOKEN_COMPACT, host)
    inputs, room = compact_inputs(dtype), most or L
    outputs = poisoned(((B, room, C), dtype), ((B, room), torch.float32), ((B, room), torch.int32), ((), torch.int64))
    plugin = case.create(max_tokens=most, keep_margin=margin).clone(attach=True)
    workspace = torch.empty(plugin.workspace(case.tensors(harness.TYPE_OF[dtype]), *case.counts), dtype=torch.uint8)
    assert plugin.enqueue(inputs, outputs, workspace) == 0, host.messages()
    kernels = Kernels(build().kernels, "cpu").token_compact(*inputs, 3, margin, most)
    count = int(outputs[3])
    assert count == kernels.count
    dense = [tensor.flatten()[: B * count * width] for tensor, width in zip(outputs, (C, 1, 1), strict=False)]
    for got, expected in zip(dense, (kernels.tokens, kernels.mask, kernels.ids), strict=True):
        assert torch.equal(got, expected.flatten())
    if not most:
        reference = ops.token_compact(*inputs, 3, margin)
        assert count == int(reference[3]) < L
        assert torch.equal(kernels.ids, reference[2])
        torch.testing.assert_close(kernels.tokens, reference[0], atol=1e-5, rtol=1e-2)


@pytest.mark.parametrize("spec", OPS, ids=lambda spec: spec.onnx_name)
def test_sizes_that_kernels_refuse_are_reported_at_enqueue(host: PluginLibrary, spec: OpSpec) -> None:
    case = Case(spec, host)
    host.messages()
    plugin, workspace = case.create(), torch.empty(1 << 20, dtype=torch.uint8)
    make = attention_inputs if spec is ALIGNED_ATTENTION else compact_inputs
    good = make(torch.float32)
    outputs = poisoned(*[((B, L, C), torch.float32)] * 3, ((), torch.int64))[: case.counts[1]]
    unknown_type = good[0].to(torch.int64)
    for first in (good[0][:0], good[0][:, :0], good[0][:, :, :12], unknown_type):
        assert plugin.enqueue([first.contiguous(), *good[1:]], outputs, workspace) != 0
        text = the_message(host, case.name)
        assert "invalid argument, for " in text
        assert f"for {first.shape[0]} x {first.shape[1]} tokens" in text
    assert plugin.enqueue(good, outputs, workspace[1:]) != 0  # not on a 16-byte boundary
    assert "invalid argument" in the_message(host, case.name)
    assert all(tensor.isnan().all() for tensor in outputs if tensor.dtype == torch.float32)
