"""Files of artifacts, made up: nothing is exported."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx

from madtp.files.inputs import sha256
from tests.helpers.manifests import write_manifest

CHECKPOINT = "ab" * 32
VERSION = metadata.version("madtp-deploy")
VERSIONS = {"onnxruntime": "1.32.0", "tensorrt": "10.14.1", "tensorrt-rtx": "1.7.1.116"}


def save_model(path: Path, function: bool = True, opset: int = 20, domain: str = "madtp") -> Path:
    """A model with one node of another domain, and the function that defines it unless left out."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 20, "{domain}": 1], producer_name: "test">
        g (float[batch, 3] x) => (float[batch, 3] y) {{ z = {domain}.Twice (x)  y = Relu (z) }}
        <domain: "{domain}", opset_import: ["": 20]> Twice (a) => (b) {{ b = Add (a, a) }}"""
    )
    model.opset_import[0].version = opset
    if not function:
        del model.functions[:]
    path.write_bytes(model.SerializeToString())
    return path


def part_entry(folder: Path, name: str, artifact: str) -> dict[str, Any]:
    path = folder / artifact
    shape = {"name": "x", "dtype": "float32", "shape": ["batch", 3]}
    return {
        "name": name,
        "checkpoint_sha256": CHECKPOINT,
        "onnx_sha256": "0" * 64,
        "inputs": [shape, {"name": "temperature", "dtype": "float32", "shape": []}],
        "outputs": [{**shape, "name": "y"}],
        "profile": {"x": [[1, 3], [2, 3], [8, 3]]},
        "timing_cache": None,
        "custom_nodes": {"TokenCompact": 7},
        "layers": None,
        "plugin_layers": {},
        "tokens": None,
        "artifact": artifact,
        "sha256": sha256(path),
        "bytes": path.stat().st_size,
        "external_data": None,
    }


def manifest_of(folder: Path, task: str, artifact: str, parts: dict[str, str], backend: str) -> dict[str, Any]:
    (folder / "out.vocab.txt").write_text("[PAD]\n")
    parity = {
        "temperature": 0.5,
        "requests": 32,
        "worst": 2.5e-05,
        "worst_output": "logits",
        "tolerance": 4e-4,
        "decisions_equal": 32,
        "layers_equal": 2,
        "layers": 2,
        "explained": 0,
        "failures": [],
        "mean_tokens": {"vision": [5.0, 4.0]},
    }
    return {
        "schema": 4,
        "created": "2026-01-02T03:04:05+00:00",
        "task": task,
        "artifact": artifact,
        "config": {},
        "checkpoint": {"file": "x.pt", "sha256": CHECKPOINT, "bytes": 1234, "epoch": 3},
        "temperature": 0.5,
        "layout": "dynamic",
        "batching": "reference",
        "precision": "fp32",
        "backend": {"name": backend, "version": VERSIONS[backend], "reason": "asked for"},
        "tools": {},
        "plugins": {"mode": "none", "library": None},
        "parts": [part_entry(folder, name, file) for name, file in parts.items()],
        "preprocessing": {
            "image": {"size": 32, "mode": "RGB", "resize": "", "scale": 1.0, "mean": [0.0] * 3, "std": [1.0] * 3},
            "text": {
                "tokenizer": "bert-wordpiece",
                "lowercase": True,
                "dropped": "",
                "dropped_as": "",
                "max_words": None,
                "first_id": 1,
                "last_id": 2,
                "pad_id": 0,
                "max_tokens": 35,
                "padded": False,
                "prompt": None,
                "vocabulary": {"file": "out.vocab.txt", "sha256": sha256(folder / "out.vocab.txt")},
            },
        },
        "seconds": {},
        "validation": {
            "artifact": "passed",
            "validated": "artifact",
            "samples": "16 of the tests",
            "parity": [parity],
            "gflops": {"dense": 2.5, "pruned": 1.25},
            "latency": {},
            "machine": "x86_64",
        },
    }


def save_manifest(folder: Path, manifest: dict[str, Any]) -> Path:
    path = folder / "out.json"
    write_manifest(path, manifest)
    return path


def save_library(path: Path, sm: str = "80,89") -> Path:
    mark = json.dumps({"version": VERSION, "source": "c" * 64, "sm": sm})
    path.write_bytes(b"\x7fELF...madtp-plugins " + mark.encode() + b"\0")
    return path


def plan_artifact(folder: Path, backend: str = "tensorrt-rtx", plugins: bool = True) -> Path:
    (folder / "out.plan").write_bytes(b"not a real plan")
    manifest = manifest_of(folder, "nlvr", "out.plan", {"model": "out.plan"}, backend)
    if plugins:
        library = save_library(folder / "out.plugins.so")
        entry = {"file": library.name, "embedded": False, "version": VERSION, "sha256": sha256(library)}
        manifest["plugins"] = {"mode": "library", "library": {**entry, "source_sha256": "c" * 64, "sm": [80, 89]}}
        tokens = {"source": "guessed", "origin": "nothing", "samples": 2, "opt_max": {"vision": [[3, 5], [2, 5]]}}
        manifest["parts"][0] |= {"tokens": tokens, "layers": 99, "plugin_layers": {"TokenCompact": 7}}
    return save_manifest(folder, manifest)
