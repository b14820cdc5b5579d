"""The plugin library as the export sees it: built once, told apart from other files, and never silently absent."""

import importlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import onnx
import pytest

import export.engine.plugin_build as module
from export.artifact.manifest import TokenSizes
from export.engine.backends import choose_backend
from export.engine.builder import build_plan
from export.engine.plugin_build import (
    DEFAULT_SM,
    architectures,
    build_library,
    check_tools,
    find_headers,
    find_nvcc,
    source_hash,
)
from export.engine.plugin_library import read_library
from export.errors import BackendError, PluginError
from export.graph.custom_nodes import custom_nodes
from export.graph.inline import inline_functions
from export.graph.token_sizes import set_token_sizes
from export.graph.trace import save_onnx
from export.runtime.plan_runner import register_plugins
from madtp.ops.spec import OPS, TOKEN_COMPACT
from tests.helpers.checkpoints import TINY

PROFILE = {
    "image0": [[1, 3, 32, 32]] * 3,
    "image1": [[1, 3, 32, 32]] * 3,
    "input_ids": [[1, 4], [1, 8], [1, 16]],
    "attention_mask": [[1, 4], [1, 8], [1, 16]],
}
VISION, TEXT = (TINY["image_size"] // TINY["patch_size"]) ** 2 + 1, 16
SIZES = {
    "vision": [TokenSizes(3, VISION)] * TINY["vit_depth"],
    "text": [TokenSizes(5, TEXT)] * TINY["text_layers"],
}


def exported_symbols(library: Path) -> set[str]:
    lines = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1] for line in lines.splitlines()}


@pytest.fixture(scope="module")
def traced(tiny_program: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traced") / "tiny.onnx"
    save_onnx(tiny_program, path, external_data=False)
    return path


def build(source: Path, folder: Path, library: Path | None, **options: Any) -> tuple[Any, Path]:
    plan = folder / "out.plan"
    backend = choose_backend("auto", ".plan")
    return build_plan(backend, source, plan, folder / "out.timing", PROFILE, lambda _: None, library, **options), plan


def test_library_says_what_it_is_and_exports_two_functions() -> None:
    library = build_library()
    assert library.sm == architectures()
    assert library.source_sha256 == source_hash()
    assert read_library(library.path) == library
    assert exported_symbols(library.path) == {"getCreators", "setLoggerFinder"}
    undefined = subprocess.run(
        ["nm", "-D", "--undefined-only", library.path], capture_output=True, text=True, check=True
    )
    assert "nvinfer" not in undefined.stdout
    assert "cudart" not in subprocess.run(["ldd", library.path], capture_output=True, text=True, check=True).stdout
    installed = library.path.parent.parent
    assert (installed / "include" / "madtp" / "kernels.h").is_file()
    assert (installed / "lib" / "cmake" / "madtp" / "madtpConfig.cmake").is_file()


def test_library_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    build_library()
    monkeypatch.setattr(module, "_compile", lambda wanted: pytest.fail("it was compiled again"))
    said: list[str] = []
    build_library(said.append)
    check_tools()
    assert not said


@pytest.mark.parametrize("change", ["sources", "architectures", "library", "kernels", "stamp"])
def test_library_is_built_again_when_something_changed(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = build_library()
    install = tmp_path / "install"
    (install / "lib").mkdir(parents=True)
    copy = Path(shutil.copy(real.path, install / "lib"))
    kernels = Path(shutil.copy(real.path.with_name(module.KERNELS_NAME), install / "lib"))
    shutil.copy(real.path.with_name(module.ONNXRUNTIME_NAME), install / "lib")
    shutil.copy(module.INSTALL / "madtp-plugins.json", install)
    monkeypatch.setattr(module, "INSTALL", install)
    monkeypatch.setattr(module, "BUILD", tmp_path / "build" / "plugins")
    compiled: list[Any] = []
    monkeypatch.setattr(module, "_compile", compiled.append)
    build_library()
    assert not compiled  # the copy is current
    if change == "sources":
        monkeypatch.setattr(module, "source_hash", lambda: "0" * 64)
    elif change == "architectures":
        monkeypatch.setenv("MADTP_SM", "80" if architectures() == (90,) else "90")
    elif change == "library":
        copy.write_bytes(copy.read_bytes() + b"x")
    elif change == "kernels":
        kernels.write_bytes(kernels.read_bytes() + b"x")
    else:
        (install / "madtp-plugins.json").write_text("{")
    build_library()
    assert len(compiled) == 1
    build_library()
    assert len(compiled) == 1  # and is current again


def test_architectures_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MADTP_SM", raising=False)
    assert architectures() == DEFAULT_SM
    monkeypatch.setenv("MADTP_SM", "90, 80;120")
    assert architectures() == (80, 90, 120)
    monkeypatch.setenv("MADTP_SM", "9.0")
    with pytest.raises(PluginError, match=r"MADTP_SM is '9\.0'"):
        architectures()


def test_missing_tools_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path))
    with pytest.raises(PluginError, match="no TensorRT headers"):
        find_headers()
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "NvInfer.h").write_text("")
    (tmp_path / "include" / "NvInferVersion.h").write_text("#define NV_TENSORRT_MAJOR 8\n#define NV_TENSORRT_MINOR 6\n")
    with pytest.raises(PluginError, match=r"of version 8\.6"):
        find_headers()
    (tmp_path / "include" / "NvInferVersion.h").write_text(
        "#define TRT_MAJOR_ENTERPRISE 11\n#define NV_TENSORRT_MINOR 0\n"
    )
    assert find_headers() == tmp_path / "include"
    monkeypatch.setenv("CUDACXX", "no-such-nvcc")
    with pytest.raises(PluginError, match="no CUDA compiler 'no-such-nvcc'"):
        find_nvcc()
    monkeypatch.setenv("CXX", "no-such-c++")
    with pytest.raises(PluginError, match=r"no C\+\+ compiler"):
        module.check_host_compiler()


def test_the_runtime_in_the_compilers_wheel_is_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toolkit = tmp_path / "nvidia" / "cu13"
    for file in ("bin/nvcc", "lib/libcudart_static.a"):
        (toolkit / file).parent.mkdir(parents=True)
        (toolkit / file).touch()
    monkeypatch.setenv("LIBRARY_PATH", "/other")
    assert module._library_path(toolkit / "bin" / "nvcc") == {"LIBRARY_PATH": f"{toolkit / 'lib'}:/other"}
    (toolkit / "lib" / "libcudart_static.a").unlink()
    assert module._library_path(toolkit / "bin" / "nvcc") == {}


def test_words_of_a_failing_compiler_reach_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INSTALL", tmp_path / "install")
    monkeypatch.setattr(module, "BUILD", tmp_path / "build" / "plugins")
    compiler = tmp_path / "nvcc"
    compiler.write_text("#!/bin/sh\necho out of order >&2\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CUDACXX", str(compiler))
    with pytest.raises(PluginError, match="could not be built") as caught:
        build_library()
    assert "CUDA compiler" in caught.value.why
    assert "--plugins none" in caught.value.fix
    assert not (tmp_path / "install" / "madtp-plugins.json").exists()


def test_no_file_is_taken_for_a_library_that_is_none(tmp_path: Path) -> None:
    mark = b'madtp-plugins {"version": "1", "source": "x", "sm": "80"}\0'
    for name, content in (
        ("empty", b""),
        ("text", mark),
        ("elf", b"\x7fELF" + bytes(64)),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(PluginError, match="not a plugin library"):
            read_library(path)
    with pytest.raises(PluginError, match="cannot read"):
        read_library(tmp_path)


def test_plan_has_a_plugin_for_every_custom_node(traced: Path, tmp_path: Path) -> None:
    shutil.copy(traced, tmp_path / "tiny.onnx")
    network = tmp_path / "network.onnx"
    set_token_sizes(tmp_path / "tiny.onnx", network, SIZES)
    nodes = [node for node in onnx.load(network).graph.node if node.op_type == TOKEN_COMPACT.onnx_name]
    told = [
        {entry.name: entry.i for entry in node.attribute if entry.type == onnx.AttributeProto.INT} for node in nodes
    ]
    assert told == [
        {"layer": layer, "opt_tokens": size.opt, "max_tokens": size.max}
        for layers in SIZES.values()
        for layer, size in enumerate(layers)
    ]
    result, plan = build(network, tmp_path, build_library().path)
    pairs = TINY["vit_depth"] + TINY["text_layers"]
    assert result.plugin_layers == {spec.onnx_name: pairs for spec in OPS} == custom_nodes(network)
    content = plan.read_bytes()
    assert all(spec.onnx_name.encode() in content for spec in OPS)  # what the runtime will look up

    _, embedded = build(network, tmp_path, build_library().path, embed_plugins=True)
    assert b"madtp-plugins {" in embedded.read_bytes()
    assert b"madtp-plugins {" not in content

    inlined = tmp_path / "inlined.onnx"
    inline_functions(tmp_path / "tiny.onnx", inlined)
    result, plan = build(inlined, tmp_path, None)
    assert result.plugin_layers == {}
    assert not any(spec.onnx_name.encode() in plan.read_bytes() for spec in OPS)


def test_nodes_that_silently_became_function_bodies_fail_the_build(traced: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="the ONNX file the custom nodes"):
        build(traced, tmp_path, None)  # registers no library
    assert not (tmp_path / "out.plan").exists()


def test_library_that_cannot_be_loaded_fails_the_build(traced: Path, tmp_path: Path) -> None:
    broken = tmp_path / "libbroken.so"
    broken.write_bytes(b"\x7fELF")
    with pytest.raises(BackendError) as caught:
        build(traced, tmp_path, broken)
    assert "libbroken.so" in caught.value.why


@pytest.mark.parametrize("command", [(), ("check",)], ids=["export", "check"])
def test_export_says_when_the_library_cannot_be_built(
    command: tuple[str, ...], tiny_checkpoint: Any, outputs: Any, run_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INSTALL", outputs.folder.parent / "install")
    monkeypatch.setenv("CUDACXX", "no-such-nvcc")
    ran = run_cli(*command, "--ckpt", tiny_checkpoint(), "--engine", outputs / "trt.plan")
    ran.refused("no CUDA compiler", "--plugins none")
    outputs.untouched()


def test_embedded_library_is_in_the_manifest_and_no_file_lies_beside(
    tiny_checkpoint: Any, samples_folder: Path, tmp_path: Path, run_cli: Any, quick: Any
) -> None:
    plan = tmp_path / "one.plan"
    arguments = ("--ckpt", tiny_checkpoint(), "--engine", plan, "--samples", samples_folder, "--embed-plugins")
    ran = run_cli(*arguments)
    assert ran.status == 0, ran
    assert "its loader has to allow host code" in ran.out
    library = json.loads(plan.with_suffix(".json").read_text())["plugins"]["library"]
    assert library["embedded"]
    assert library["file"] is None
    assert not plan.with_name("one.plugins.so").exists()
    assert library["sha256"] == build_library().sha256


def test_plugins_are_registered_once_in_this_process() -> None:
    backend = choose_backend("auto", ".plan")
    trt = importlib.import_module(backend.module)
    library = build_library().path
    for _ in range(2):
        register_plugins(trt, library)
    for spec in OPS:
        assert trt.get_plugin_registry().get_creator(spec.onnx_name, "1", "madtp") is not None
