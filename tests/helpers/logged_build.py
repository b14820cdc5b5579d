"""Builds engines with a real TensorRT and prints the messages of its logger: a separate process for tests.

    python -m tests.helpers.logged_build MODULE LIBRARY FOLDER

parses every `*.onnx` of FOLDER with the plugins of LIBRARY, builds what was parsed, and prints a JSON object by file
name: whether there is a plan, the shapes that the network's layers give (-1: depends on data), and the severities and
messages. Then it unloads the library, loads it again, and makes a
creator refuse on some threads at once: that is told under `again`.
"""

import importlib
import json
import sys
import threading
from pathlib import Path
from typing import Any

THREADS, REFUSALS = 4, 50  # how many threads, and how often each


def build(trt: Any, logger: Any, path: Path) -> tuple[bool, dict[str, list[int]]]:
    """Whether there is a plan of an ONNX file, and the shapes. Nothing that holds a plugin outlives the call."""
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(path.read_bytes()):
        return False, {}
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    tensors = [layer.get_output(index) for layer in layers for index in range(layer.num_outputs)]
    shapes = {tensor.name: list(tensor.shape) for tensor in tensors}
    built = builder.build_serialized_network(network, builder.create_builder_config()) is not None
    return built, shapes


def main(module: str, library: str, folder: str) -> dict[str, dict[str, Any]]:
    """Build every file and return the results: `built`, `shapes`, and `said`, a list of (severity, message)."""
    trt: Any = importlib.import_module(module)
    said: list[tuple[str, str]] = []

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            said.append((severity.name, message))

    logger = Logger()
    registry = trt.get_plugin_registry()
    handle = registry.load_library(library)
    if handle is None:
        raise SystemExit(f"{library} was not loaded")
    outcomes: dict[str, dict[str, Any]] = {}
    for path in sorted(Path(folder).glob("*.onnx")):
        said.clear()
        built, shapes = build(trt, logger, path)
        outcomes[path.stem] = {"built": built, "shapes": shapes, "said": list(said)}
    registry.deregister_library(handle)
    loaded = registry.load_library(library) is not None
    builder = trt.Builder(logger)  # TensorRT has a logger as long as something was made with one
    creator = registry.get_creator("TokenCompact", "1", "madtp")
    said.clear()

    def refuse() -> None:
        for _ in range(REFUSALS):
            creator.create_plugin("", trt.PluginFieldCollection([]), trt.TensorRTPhase.BUILD)

    threads = [threading.Thread(target=refuse) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    del builder
    outcomes["again"] = {"built": loaded, "said": list(said)}
    return outcomes


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])))
