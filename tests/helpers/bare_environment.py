"""A Python environment like that of GPU machines: only those packages of this environment that exist there too.

Unlike the import hook of bare_machine, it also holds for processes that others start.
"""

import sys
import venv
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

# What a machine has; what these packages ask for is there with them.
PACKAGES = ("torch", "numpy", "pillow", "tokenizers", "onnx", "onnxruntime", "pytest", "nvidia-ml-py", "cuda-bindings")


def closure(names: Iterable[str]) -> list[metadata.Distribution]:
    """Return the installed distributions of these names and all their requirements."""
    found: dict[str, metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # e.g. for another platform
        for text in found[name].requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return list(found.values())


def make(folder: Path) -> Path:
    """Make an environment in `folder` with links to these packages; return its Python."""
    venv.create(folder, with_pip=False)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for distribution in closure(PACKAGES):
        for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            target = site / top
            if not target.exists():
                target.symlink_to(Path(str(distribution.locate_file(top))).resolve())
    return folder / "bin" / "python"
