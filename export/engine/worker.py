"""The process that runs the TensorRT builder: `python -m export.engine.worker SPEC`. See `export/engine/builder.py`.

Speaks JSON lines on standard output, {"phase": name} and at the end {"result": {...}}; everything that libraries print
goes to standard error.
"""

import ctypes
import errno
import importlib
import json
import mmap
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto
from polygraphy.backend.trt import CreateConfig, Profile, create_network, get_trt_logger
from polygraphy.exception import PolygraphyException
from polygraphy.logger import G_LOGGER

from export.engine.plugin_library import loadable_library
from export.errors import PluginError

DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_channel = os.fdopen(os.dup(1), "w")  # to the parent; file descriptor 1 itself becomes standard error in main()


def say(**message: Any) -> None:
    """One JSON line to the parent."""
    _channel.write(json.dumps(message) + "\n")
    _channel.flush()


def progress_monitor(trt: Any) -> Any:
    """A TensorRT progress monitor that tells the outermost phases."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                say(phase=phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return True

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()


class MappedWeights:
    """The external weights of an ONNX file, mapped into memory and given back to the system while the builder runs.

    The builder copies the weights that it reads; without giving them back, a build would hold them twice.

    Attributes:
        pointers: (address, bytes) of each external initializer by name.
    """

    GIVE_BACK_SECONDS = 0.2

    def __init__(self, model: onnx.ModelProto, folder: Path) -> None:
        self._maps: dict[str, tuple[mmap.mmap, int]] = {}
        self.pointers: dict[str, tuple[int, int]] = {}
        for tensor in model.graph.initializer:
            if tensor.data_location != TensorProto.EXTERNAL:
                continue
            location = {entry.key: entry.value for entry in tensor.external_data}
            if location["location"] not in self._maps:
                with (folder / location["location"]).open("rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self._maps[location["location"]] = (mapped, np.frombuffer(mapped, np.uint8).ctypes.data)
            start = self._maps[location["location"]][1]
            self.pointers[tensor.name] = (start + int(location.get("offset", 0)), int(location["length"]))
        threading.Thread(target=self._give_back, daemon=True).start()

    def _give_back(self) -> None:
        while True:
            for mapped, _ in self._maps.values():
                mapped.madvise(mmap.MADV_DONTNEED)
            threading.Event().wait(self.GIVE_BACK_SECONDS)


def parse(trt: Any, network: Any, path: Path) -> tuple[Any, MappedWeights]:
    """Parse an ONNX file with external weights into `network`; parser and weights have to outlive the build."""
    model = onnx.load(str(path), load_external_data=False)
    weights = MappedWeights(model, path.parent)
    parser = trt.OnnxParser(network, get_trt_logger())
    parsed = parser.load_model_proto(model.SerializeToString())
    for name, (address, size) in weights.pointers.items():
        parsed = parsed and parser.load_initializer(name, address, size)
    if not (parsed and parser.parse_model_proto()):
        errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise ParseError("\n".join(errors))
    return parser, weights


class ParseError(Exception):
    """The parser refused the model; its words."""


class PluginMismatchError(Exception):
    """The library could not be loaded, or the parser did not take a plugin for every custom node."""


def load_plugins(trt: Any, path: str) -> None:
    """Register the plugins of a library; before parsing, or the parser silently takes the function bodies."""
    try:
        library = loadable_library(Path(path))
    except PluginError as error:
        raise PluginMismatchError(str(error)) from error
    if trt.get_plugin_registry().load_library(str(library.path)) is None:
        raise PluginMismatchError(f"the plugin library '{path}' could not be loaded")


def plugin_layers(trt: Any, network: Any) -> dict[str, int]:
    """Plugin layers of a network: how many of each plugin."""
    counts: dict[str, int] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.PLUGIN_V3:
            layer.__class__ = trt.IPluginV3Layer  # the bindings' way to see a layer as what it is
            core = layer.plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
            counts[core.plugin_name] = counts.get(core.plugin_name, 0) + 1
    return counts


def show_values(network: Any, wanted: set[str]) -> list[str]:
    """Make values inside the network outputs too; returns those that there are.

    TensorRT's debug tensors would do as well, but for sizes that depend on data: of the outputs of TokenCompact,
    TensorRT for RTX 1.7 says that its "debug output has no runners".
    """
    before = network.num_outputs
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for value in map(layer.get_output, range(layer.num_outputs)):
            if value is not None and value.name in wanted and not value.is_network_output:
                network.mark_output(value)
    return [network.get_output(index).name for index in range(before, network.num_outputs)]


def builder_config(trt: Any, builder: Any, network: Any, profile: Profile, timing_cache: Path | None) -> Any:
    """How to build. TensorRT's own default is to compute float32 in TF32, in strongly typed networks too."""
    create = CreateConfig(
        profiles=[profile],
        tf32=False,
        load_timing_cache=None if timing_cache is None else str(timing_cache),
        progress_monitor=progress_monitor(trt),
    )
    return create(builder, network)


def write_plan(trt: Any, builder: Any, network: Any, config: Any, path: str) -> bool:
    """Build and write chunk by chunk where TensorRT can (a plan is as large as the weights, and memory holds two)."""
    with open(path, "wb") as file:
        if not hasattr(builder, "build_serialized_network_to_stream"):
            plan = builder.build_serialized_network(network, config)
            if plan is not None:
                file.write(plan)
            return plan is not None

        failure: list[OSError] = []

        class Writer(trt.IStreamWriter):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.IStreamWriter.__init__(self)

            def write(self, data: bytes) -> int:
                try:
                    return file.write(data)
                except OSError as error:  # must not cross TensorRT's C++ frames
                    failure.append(error)
                    return 0

        built = builder.build_serialized_network_to_stream(network, config, Writer())
        if failure:
            raise failure[0]
        file.flush()
        os.fsync(file.fileno())
        return bool(built)


def build(spec: dict[str, Any]) -> int:
    """Build as told; the process's exit status."""
    trt = importlib.import_module(spec["module"])
    G_LOGGER.module_severity = {"": G_LOGGER.WARNING}
    G_LOGGER.colors = False  # the log goes into a message
    if spec["plugin_library"] is not None:
        load_plugins(trt, spec["plugin_library"])
    profile = Profile()
    for name, (smallest, best, largest) in spec["profile"].items():
        profile.add(name, min=smallest, opt=best, max=largest)
    cache = Path(spec["timing_cache"])
    reused = cache.is_file()
    say(phase="parsing the ONNX file")
    builder, network = create_network(strongly_typed=True)
    keep_alive = parse(trt, network, Path(spec["onnx"]))
    plugins = plugin_layers(trt, network)
    if plugins != spec["plugin_layers"]:
        raise PluginMismatchError(
            f"the network has the plugin layers {plugins}, the ONNX file the custom nodes {spec['plugin_layers']}"
        )
    shown = show_values(network, set(spec["shown"]))
    config = builder_config(trt, builder, network, profile, cache if reused else None)
    if spec["embed_plugins"]:
        config.plugins_to_serialize = [spec["plugin_library"]]
    if not write_plan(trt, builder, network, config, spec["plan"]):
        return 1
    del keep_alive
    timing = config.get_timing_cache()
    if timing is not None:
        cache.write_bytes(timing.serialize())
    say(
        result={
            "layers": network.num_layers,
            "plugin_layers": plugins,
            "timing_cache_reused": reused,
            "shown": shown,
        }
    )
    return 0


def main() -> int:
    """Read the spec named on the command line and build."""
    os.dup2(2, 1)
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)  # a parent that was killed wants no engine any more
    try:
        return build(json.loads(Path(sys.argv[1]).read_text()))
    except OSError as error:
        say(result={"errno": error.errno or errno.EIO})
        return 1
    except ParseError as error:
        sys.stderr.write(f"the parser: {error}\n")
        return 1
    except PluginMismatchError as error:
        sys.stderr.write(f"plugins: {error}\n")
        return 1
    except PolygraphyException:
        return 1  # Polygraphy has logged why
    except Exception as error:  # the parent shows the log to the user, who has no use for a traceback
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    with suppress(BrokenPipeError):  # the parent has gone
        status = main()
        os._exit(status)  # TensorRT's teardown without a driver may abort; everything is written
