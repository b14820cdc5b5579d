"""Builds engines with a real TensorRT and tells what its logger was told: a process of its own for tests.

    python -m tests.logged_build MODULE LIBRARY FOLDER

parses every `*.onnx` of FOLDER with the plugins of LIBRARY, builds what was parsed, and prints a JSON object by file
name: whether there is a plan, and the severities and messages.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any


def main(module: str, library: str, folder: str) -> dict[str, dict[str, Any]]:
    """What became of each file: `built`, and `said`, a list of (severity, message)."""
    trt: Any = importlib.import_module(module)
    said: list[tuple[str, str]] = []

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            said.append((severity.name, message))

    logger = Logger()
    if trt.get_plugin_registry().load_library(library) is None:
        raise SystemExit(f"{library} was not loaded")
    outcomes = {}
    for path in sorted(Path(folder).glob("*.onnx")):
        said.clear()
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        built = parser.parse(path.read_bytes())
        if built:
            built = builder.build_serialized_network(network, builder.create_builder_config()) is not None
        outcomes[path.stem] = {"built": built, "said": list(said)}
    return outcomes


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])))
