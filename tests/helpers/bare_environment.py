"""A Python environment as GPU machines have it: packages of this one, but only those that are there, too.

Another check than the import hook there: whole processes, started by others, see these packages and nothing else.
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
    """The installed distributions of these names, and of all that they require."""
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
    """An environment in `folder` with links to these packages; its Python."""
    venv.create(folder, with_pip=False)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for distribution in closure(PACKAGES):
        for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            target = site / top
            if not target.exists():
                target.symlink_to(Path(str(distribution.locate_file(top))).resolve())
    return folder / "bin" / "python"
