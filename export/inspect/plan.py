"""Plans of TensorRT and TensorRT for RTX without a manifest, recognised by their first bytes."""

import struct

from export.inspect.compatibility import Compatibility, plan_compatibility
from export.inspect.inspection import Inspection, note_lone

PLAN_SUFFIXES = {".plan", ".engine", ".trt"}
# Not documented: what plans of TensorRT for RTX 1.7 begin with. Magic, layout, total bytes, version.
_HEADER = struct.Struct("<8sQQ4B")
RTX_MAGIC, _LAYOUT = b"vtrt\0\0\0\0", 2
TENSORRT_MAGIC = b"ftrt\0\0\0\0"  # the version stands at the same place, where trtexec --getPlanVersionOnly reads it


def inspect_plan(found: Inspection, start: bytes) -> None:
    found.kind = "plan"
    note_lone(found, "no manifest beside it: its inputs, outputs and plugins are unknown")
    unknown = ["no manifest beside it"]
    against = [] if found.machine.gpus else ["there is no GPU"]
    header = start[: _HEADER.size].ljust(_HEADER.size, b"\0")
    magic, layout, size, *numbers = _HEADER.unpack(header)
    version = ".".join(map(str, numbers))
    if magic == RTX_MAGIC and layout == _LAYOUT:
        found.details["header"] = f"TensorRT for RTX, version {version} (undocumented format)"
        if size != found.bytes:
            found.damage.append(f"its header gives {size} bytes and the file has {found.bytes}")
        damage = ["it is damaged"] if size != found.bytes else []
        against = list(plan_compatibility("tensorrt-rtx", version, None, damage, found.machine).because)
    elif magic == TENSORRT_MAGIC and any(numbers):
        found.details["header"] = f"TensorRT, version {version}"
        installed = found.machine.packages["tensorrt"]
        if installed is None:
            against.append("tensorrt is not installed")
        else:
            unknown.append(
                f"tensorrt {installed} is installed, and a plan needs its own version unless built compatible"
            )
    else:
        found.details["header"] = f"unknown; the file begins with {start[:8].hex(' ')}"
    # Never a plain yes: the plan may need plugins, and a GPU like the one that it was built on.
    found.verdict = Compatibility(False, tuple(against)) if against else Compatibility(None, tuple(unknown))
