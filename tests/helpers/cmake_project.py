"""CMake projects of their own that use the installed package, as a user's would; built once a checkout."""

import subprocess
from pathlib import Path

from filelock import FileLock

from export.engine.plugin_build import build_tool
from export.engine.runtime_build import build_runtime, runtime_folders


def build_project(source: Path, folder: Path, **defines: object) -> Path:
    """Bring the build of a project in `folder` up to date, with the package `madtp` that is installed.

    Raises:
        RuntimeError: CMake or the compiler failed, with what they said.
    """
    build_runtime()
    folder.parent.mkdir(parents=True, exist_ok=True)
    options = {"CMAKE_MAKE_PROGRAM": build_tool("ninja"), "CMAKE_PREFIX_PATH": runtime_folders()[1], **defines}
    configure = ["-S", source, "-B", folder, "-G", "Ninja", *(f"-D{name}={value}" for name, value in options.items())]
    with FileLock(f"{folder}.lock"):
        for step in (configure, ["--build", folder, "--parallel", "2"]):
            command = [build_tool("cmake"), *map(str, step)]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode != 0:
                raise RuntimeError(f"{' '.join(command)} failed:\n{run.stdout}{run.stderr}")
    return folder
