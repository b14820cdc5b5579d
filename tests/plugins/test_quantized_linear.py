"""The kernel of INT8 linear layers in ONNX Runtime against its function body, which is what ONNX defines."""

import numpy as np
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.graph.quantized_linear import QUANTIZED_LINEAR, QUANTIZED_LINEAR_GELU, quantized_linear_functions
from madtp.ops.spec import DOMAIN, VERSION
from tests.helpers.native_build import build

Array = NDArray[np.float32]


def layer(inputs: int, outputs: int, gelu: bool, seed: int = 0, constant: bool = True) -> bytes:
    """A model of one layer, `x` [rows, inputs] -> `y`."""
    random = np.random.default_rng(seed)
    name = QUANTIZED_LINEAR_GELU if gelu else QUANTIZED_LINEAR
    tensors = [
        numpy_helper.from_array(random.integers(-127, 128, (inputs, outputs)).astype(np.int8), "weight"),
        numpy_helper.from_array(random.uniform(1e-3, 1e-2, outputs).astype(np.float32), "scale"),
        numpy_helper.from_array(random.standard_normal(outputs).astype(np.float32), "bias"),
    ]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", None])]
    if not constant:
        tensors = tensors[1:]
        given.append(helper.make_tensor_value_info("weight", TensorProto.INT8, [inputs, outputs]))
    graph = helper.make_graph(
        [helper.make_node(name, ["x", "weight", "scale", "bias"], ["y"], domain=DOMAIN)],
        "layer",
        given,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        tensors,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, VERSION)],
        functions=[function for function in quantized_linear_functions() if function.name == name],
        ir_version=9,
    )
    return bytes(model.SerializeToString())


def session(model: bytes, kernel: bool, threads: int = 1) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if kernel:
        options.register_custom_ops_library(str(build().onnxruntime))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def activations(rows: int, inputs: int, seed: int, scale: float, shift: float) -> Array:
    values = np.random.default_rng(seed).standard_normal((rows, inputs)) * scale + shift
    return values.astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 200),
    st.integers(1, 100),
    st.booleans(),
    st.integers(0, 99),
    st.sampled_from([1e-6, 1.0, 300.0]),
    st.sampled_from([0.0, 2.0, -2.0]),
)
@example(33, 64, 32, False, 0, 1.0, 0.0)
@example(577, 768, 96, True, 0, 1.0, 0.0)
@example(1400, 768, 33, False, 0, 1.0, 0.0)  # more rows than a task takes
@example(5, 7, 3, False, 0, 0.0, 0.0)
@example(5, 7, 3, True, 0, 0.0, 9.0)
def test_kernel_gives_what_the_body_gives(
    rows: int, inputs: int, outputs: int, gelu: bool, seed: int, scale: float, shift: float
) -> None:
    model, x = layer(inputs, outputs, gelu, seed), activations(rows, inputs, seed, scale, shift)
    body, kernel = (session(model, with_kernel).run(None, {"x": x})[0] for with_kernel in (False, True))
    assert kernel.shape == (rows, outputs)
    # integers are exact; what is left is rounding of float32 at the magnitude of the terms
    np.testing.assert_allclose(kernel, body, rtol=2e-6, atol=1e-6 * max(1.0, float(np.abs(body).max())))


def test_answer_does_not_depend_on_threads_and_repeats() -> None:
    model, x = layer(300, 500, gelu=True), activations(200, 300, 1, 1.0, 0.0)
    answers = [session(model, True, threads).run(None, {"x": x})[0] for threads in (1, 2, 4)]
    opened = session(model, True, 2)
    answers += [opened.run(None, {"x": x})[0] for _ in range(20)]
    assert all(np.array_equal(answers[0], answer) for answer in answers)


def test_no_rows_give_no_rows() -> None:
    assert session(layer(8, 4, gelu=False), True).run(None, {"x": np.zeros((0, 8), np.float32)})[0].shape == (0, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 100, -1])
def test_what_is_not_finite_is_not_hidden(value: float, place: int) -> None:
    opened = session(layer(50, 4, gelu=False), True)
    x = activations(9, 50, 0, 1.0, 0.0)
    clean = opened.run(None, {"x": x})[0]
    broken = x.copy()
    broken.flat[place] = value
    answer = opened.run(None, {"x": broken})[0]
    assert not np.isfinite(answer).any() or not has_kernel()
    assert np.array_equal(opened.run(None, {"x": x})[0], clean)


def test_activations_of_another_width_are_refused_and_the_next_are_right() -> None:
    opened = session(layer(8, 4, gelu=False), True)
    x = activations(3, 8, 0, 1.0, 0.0)
    before = opened.run(None, {"x": x})[0]
    with pytest.raises(Exception, match=r"\[3, 9\]|dimension mismatch"):
        opened.run(None, {"x": activations(3, 9, 0, 1.0, 0.0)})
    assert np.array_equal(opened.run(None, {"x": x})[0], before)


def test_a_weight_that_is_computed_is_refused_by_the_kernel() -> None:
    if not has_kernel():
        pytest.skip("this processor has no AMX tiles: the function body runs, which takes any weight")
    with pytest.raises(Exception, match="input 1 has to be an initializer"):
        session(layer(8, 4, gelu=False, constant=False), True)


def has_kernel() -> bool:
    """Whether this machine runs the kernel: AMX as Linux names it, and a system that lets us use it."""
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(build().onnxruntime))
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node(QUANTIZED_LINEAR, ["x", "w", "x", "x"], ["y"], domain=DOMAIN)],
            "none",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.zeros((1, 1), np.int8), "w")],
        ),
        opset_imports=[helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=9,
    )
    try:  # without a body it opens only where there is a kernel
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:
        return False
    return True
