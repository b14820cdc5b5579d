"""Artifacts of one small made-up graph, whose outputs show how requests were batched."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from madtp.files.inputs import sha256
from tests.helpers.artifact_files import manifest_of, save_manifest
from tests.helpers.manifests import edit_manifest

TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
}
Info = tuple[str, str, Sequence[int | str]]  # name, dtype, shape


def write_engine(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Info],
    outputs: Sequence[Info],
    constants: dict[str, Any],
    batch: tuple[int, int, int] = (1, 2, 4),
    **fields: Any,
) -> Path:
    """Write out.onnx and out.json of an nlvr model; `fields` are of the manifest. Returns the manifest's path."""
    folder.mkdir(parents=True, exist_ok=True)
    values = [
        [helper.make_tensor_value_info(name, TYPES[dtype], list(shape)) for name, dtype, shape in infos]
        for infos in (inputs, outputs)
    ]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "made_up", *values, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    (folder / "out.onnx").write_bytes(model.SerializeToString())
    manifest = manifest_of(folder, "nlvr", "out.onnx", {"model": "out.onnx"}, "onnxruntime") | fields
    (part,) = manifest["parts"]
    described = [[{"name": n, "dtype": d, "shape": list(s)} for n, d, s in infos] for infos in (inputs, outputs)]
    part["inputs"], part["outputs"], part["custom_nodes"] = *described, {}
    part["profile"] = {
        name: [[size if dim == "batch" else dim for dim in shape] for size in batch]
        for name, _, shape in inputs
        if "batch" in shape
    }
    part["sha256"] = sha256(folder / "out.onnx")
    return save_manifest(folder, manifest)


def write_counting_engine(folder: Path, **fields: Any) -> Path:
    """Of x [batch, 3] and temperature:

    - `logits` [batch, 3]: x * (1 + temperature);
    - `vision_token_counts` [2*batch, 1]: first x[:, 0] of all rows, then x[:, 1];
    - `states` [batch, tokens, 1]: x[:, 0], as often as the largest x[:, 2] of the batch says;
    - `cache` [1, batch, tokens]: the same, with the batch behind.
    """
    one = np.array([1], np.int64)
    nodes = [
        helper.make_node("Add", ["temperature", "unit"], ["factor"]),
        helper.make_node("Mul", ["x", "factor"], ["logits"]),
        helper.make_node("Split", ["x"], ["first", "second", "third"], axis=1, num_outputs=3),
        helper.make_node("Concat", ["first", "second"], ["both"], axis=0),
        helper.make_node("Cast", ["both"], ["vision_token_counts"], to=TensorProto.INT32),
        helper.make_node("ReduceMax", ["third"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["tokens"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["tokens", "one"], ["length"]),
        helper.make_node("Unsqueeze", ["first", "one"], ["column"]),
        helper.make_node("Concat", ["one", "length", "one"], ["sizes"], axis=0),
        helper.make_node("Expand", ["column", "sizes"], ["states"]),
        helper.make_node("Squeeze", ["states", "two"], ["flat"]),
        helper.make_node("Unsqueeze", ["flat", "zero"], ["cache"]),
    ]
    outputs = [
        ("logits", "float32", ["batch", 3]),
        ("vision_token_counts", "int32", ["2*batch", 1]),
        ("states", "float32", ["batch", "u0", 1]),
        ("cache", "float32", [1, "batch", "u0"]),
    ]
    constants = {"unit": np.float32(1), "one": one, "two": 2 * one, "zero": 0 * one}
    inputs = [("x", "float32", ["batch", 3]), ("temperature", "float32", [])]
    return write_engine(folder, nodes, inputs, outputs, constants, **fields)


def write_bucket_engine(folder: Path) -> Path:
    """Of x [batch, 3]: `logits` are x + the room of the engine that ran, which is 2 in a bucket for up to two requests,
    4 in one for two or three, and 1000 in the part's own. `overflow`: the largest x[:, 2] is more than that.
    """

    def write(room: float) -> Path:
        nodes = [
            helper.make_node("Add", ["x", "room"], ["more"]),
            helper.make_node("Add", ["more", "zero"], ["logits"]),
            helper.make_node("Mul", ["temperature", "zero"], ["zeros"]),
            helper.make_node("Slice", ["x", "two", "three", "one"], ["third"]),
            helper.make_node("ReduceMax", ["third"], ["most"], keepdims=0),
            helper.make_node("Sub", ["most", "zeros"], ["needed"]),
            helper.make_node("Greater", ["needed", "room"], ["is_more"]),
            helper.make_node("Cast", ["is_more"], ["overflow"], to=TensorProto.INT32),
        ]
        numbers = {name: np.array([value], np.int64) for name, value in (("one", 1), ("two", 2), ("three", 3))}
        constants = {"room": np.float32(room), "zero": np.float32(0), **numbers}
        inputs = [("x", "float32", ["batch", 3]), ("temperature", "float32", [])]
        outputs = [("logits", "float32", ["batch", 3]), ("overflow", "int32", [])]
        return write_engine(
            folder, nodes, inputs, outputs, constants, layout="packed", batching="per-request", batch=(1, 4, 4)
        )

    buckets = []
    for room, least, batch in ((2, 1, 2), (4, 2, 3)):
        write(room)
        name = f"out.{room}.onnx"
        (folder / "out.onnx").rename(folder / name)
        digest = sha256(folder / name)
        profile = {"x": [[least, 3], [batch, 3], [batch, 3]]}
        sizes = {"bytes": (folder / name).stat().st_size, "layers": None, "external_data": None, "profile": profile}
        shares = {"rows": {}, "whole": {}, "predicted": 0.01, "predicted_most": 0.02}
        hashes = {"artifact": name, "sha256": digest, "onnx_sha256": digest}
        buckets.append({"least": least, "batch": batch, **hashes, **sizes, **shares})
    path = write(1000)
    edit_manifest(path, lambda content: content["parts"][0].update(buckets=buckets))
    return path


def write_half_engine(folder: Path) -> Path:
    """`y` [batch, 3] float16 is twice x [batch, 3] float16."""
    shape = ["batch", 3]
    nodes = [helper.make_node("Add", ["x", "x"], ["y"])]
    return write_engine(folder, nodes, [("x", "float16", shape)], [("y", "float16", shape)], {}, precision="fp16")
