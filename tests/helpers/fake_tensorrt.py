"""Stand-ins for TensorRT and TensorRT for RTX (`tests/native/runtime/plans`), and artifacts with plans for them."""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from export.engine.plugin_build import find_headers
from madtp.files.inputs import sha256
from tests.helpers.manifests import edit_manifest
from tests.helpers.runtime_programs import GENERATED, programs

LIBRARIES = {"tensorrt": "libnvinfer.so.10", "tensorrt-rtx": "libtensorrt_rtx.so.1"}
KINDS = ("plan_checks", "fake")  # targets of each
STUBBED = {"VHostMemory", "VRuntime", "VCudaEngine", "VExecutionContext", "VRuntimeConfig", "IPluginRegistry"}
STUBS = """// What the engine must not call ends the process.
#pragma once
#include <NvInferRuntime.h>
#include <cstdio>
#include <cstdlib>

[[noreturn]] inline void unexpected(char const* name) noexcept {
    std::fprintf(stderr, "unexpected call of %s\\n", name);
    std::abort();
}
"""
# What the headers of TensorRT for RTX 1.7 have beyond those of TensorRT, as far as it is called:
# https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/_static/cpp-api/classnvinfer1_1_1_i_runtime_config.html
RTX_TYPES = """
enum class DynamicShapesKernelSpecializationStrategy : int32_t { kLAZY = 0, kEAGER = 1, kNONE = 2 };
enum class CudaGraphStrategy : int32_t { kDISABLED = 0, kWHOLE_GRAPH_CAPTURE = 1 };
class IRuntimeCache {
public:
    virtual ~IRuntimeCache() noexcept = default;
    virtual bool deserialize(void const* blob, std::size_t size) noexcept = 0;
    virtual IHostMemory* serialize() const noexcept = 0;
};
"""
RTX_CALLS = (
    ("void", "setDynamicShapesKernelSpecializationStrategy", "DynamicShapesKernelSpecializationStrategy given", ""),
    ("bool", "setCudaGraphStrategy", "CudaGraphStrategy given", ""),
    ("IRuntimeCache*", "createRuntimeCache", "", " const"),
    ("bool", "setRuntimeCache", "IRuntimeCache const& given", ""),
)


@cache
def plan_checks(generation: str) -> Path:
    """The program that checks plans in the stand-in for a generation, under the sanitizers; its environment is
    `stand_in`.
    """
    headers = {path.name: path.read_text() for path in find_headers().glob("NvInfer*.h")}
    with FileLock(f"{GENERATED}.lock"):
        for name, texts in (("tensorrt", headers), ("tensorrt-rtx", _of_rtx(headers))):
            for file, text in (texts | {"stubs.h": _stubs(texts)}).items():
                path = GENERATED / name / file
                path.parent.mkdir(parents=True, exist_ok=True)
                if not path.is_file() or path.read_text() != text:  # else everything would be compiled again
                    path.write_text(text)
    folder = programs("address", "checks", "fuzz", *(f"{kind}_{name}" for name in LIBRARIES for kind in KINDS))
    for name, library in LIBRARIES.items():
        for link in (library, "libcuda.so.1"):
            (folder / name / link).unlink(missing_ok=True)
            (folder / name / link).symlink_to("libfake.so")
    return folder / f"plan_checks_{generation}"


def stand_in(generation: str) -> dict[str, str]:
    """The environment in which a program finds the stand-in as TensorRT and as CUDA's driver."""
    return {"LD_LIBRARY_PATH": str(plan_checks(generation).parent / generation)}


def to_plans(path: Path, generation: str, plan: str = "lengths", library: Mapping[str, Any] | None = None) -> Path:
    """Make plans for the stand-in of the graphs of an artifact of `tests.helpers.made_up_engines`.

    Args:
        plan: the plan's text; those of buckets follow from their names.
        library: the manifest's entry of the plugin library.
    """

    def change(content: dict[str, Any]) -> None:
        (part,) = content["parts"]
        for entry in (part, *(part.get("buckets") or ())):
            graph = path.with_name(entry["artifact"])
            room = graph.stem.partition(".")[2]
            made = graph.with_suffix(".plan")
            made.write_text(f"room {room}" if room else plan)
            graph.unlink()
            entry.update(artifact=made.name, sha256=sha256(made))
        if library is not None:
            content["plugins"].update(mode="library", library=dict(library))
            part["plugin_layers"] = {"TokenCompact": 1}
        content["artifact"] = "out.plan"
        content["backend"].update(name=generation, version="10.14.1")

    edit_manifest(path, change)
    return path


def _of_rtx(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers of TensorRT for RTX 1.7, from those of TensorRT."""
    version, implementation, runtime = (headers[f"NvInfer{name}.h"] for name in ("Version", "Impl", "Runtime"))
    version = re.sub(r"(#define TRT_\w+_)ENTERPRISE \d+", r"\1RTX 1", version).replace("ENTERPRISE", "RTX")
    version = version.replace("TRT_MINOR_RTX 1", "TRT_MINOR_RTX 7")
    virtual = "".join(
        f"    virtual {kind} {name}({given}){rest} noexcept = 0;\n" for kind, name, given, rest in RTX_CALLS
    )
    called = "".join(
        f"    {kind} {name}({given}){rest} noexcept {{ return mImpl->{name}({'given' if given else ''}); }}\n"
        for kind, name, given, rest in RTX_CALLS
    )
    types = "enum class DynamicShapesKernelSpecializationStrategy : int32_t;\nenum class CudaGraphStrategy : int32_t;\n"
    end = "getExecutionContextAllocationStrategy() const noexcept = 0;\n"
    changed = {
        "NvInferVersion.h": version,
        "NvInferImpl.h": _put(implementation, end, virtual).replace(
            "class IRuntimeConfig;\n", f"class IRuntimeConfig;\nclass IRuntimeCache;\n{types}", 1
        ),
        # The logger says its version from 1.5 on.
        "NvInferRuntime.h": _put(
            runtime.replace("class IRuntimeConfig : public", f"{RTX_TYPES}class IRuntimeConfig : public", 1),
            "virtual ~IRuntimeConfig() noexcept = default;\n",
            called,
        ).replace(
            "class ILogger\n{\npublic:\n",
            "class ILogger : public IVersionedInterface\n{\npublic:\n"
            '    InterfaceInfo getInterfaceInfo() const noexcept override { return {"ILogger", 1, 0}; }\n',
            1,
        ),
    }
    return {**headers, **changed}


def _put(text: str, behind: str, more: str) -> str:
    assert text.count(behind) == 1, behind
    return text.replace(behind, behind + more)


def _stubs(headers: Mapping[str, str]) -> str:
    """Classes that implement every virtual function of the interfaces by ending the process."""
    code = re.sub(r"//.*|/\*.*?\*/", "", headers["NvInferImpl.h"] + headers["NvInferRuntimeCommon.h"])
    code = re.sub(
        r"#if .*?#endif.*?\n", "", code.replace("TRT_NODISCARD", "").replace("TRT_DEPRECATED", ""), flags=re.S
    )
    stubs = STUBS
    for name, body in re.findall(r"\nclass (\w+)(?: : public \w+)?\n\{(.*?)\n\};", code, re.S):
        if name not in STUBBED:
            continue
        space = "nvinfer1::apiv::" if name[0] == "V" else "nvinfer1::"
        stubs += f"\nnamespace nvinfer1 {{\nclass Stub{name[1:]} : public {space}{name} {{\npublic:\n"
        for function in re.findall(r"virtual ([^;{}]*?)= 0;", body, re.S):
            called = json.dumps(f"{name}: {' '.join(function.split())}")
            stubs += f"    {' '.join(function.split())} override {{ unexpected({called}); }}\n"
        stubs += "};\n}  // namespace nvinfer1\n"
    return stubs
