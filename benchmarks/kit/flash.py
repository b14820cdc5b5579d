"""FlashAttention-3 as a baseline: the kit contains its wheel as it is, because it is four times as large unpacked."""

import sys
import zipfile

from benchmarks.kit.stage import ROOT, StageRun


def unpack_flash_3(stage: StageRun) -> str:
    """Unpack the wheel beside the results and make it importable; return a sentence about the result."""
    wheels = sorted((ROOT / "wheels").glob("fa3_fwd-*.whl"))
    if not wheels:
        return "not in this kit"
    if stage.rehearse:
        return f"{wheels[0].name} is there; it needs a GPU of compute capability 9.0"
    folder = stage.file.parent / "unpacked"
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(folder)
    sys.path.append(str(folder))
    return wheels[0].name
