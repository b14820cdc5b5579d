"""The process that runs the TensorRT builder: `python -m export.engine_worker SPEC`. See `export/engine.py`.

Speaks JSON lines on standard output, {"phase": name} and at the end {"result": {...}}; everything that libraries print
goes to standard error.
"""

import errno
import importlib
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from polygraphy.backend.trt import CreateConfig, Profile, network_from_onnx_path
from polygraphy.exception import PolygraphyException
from polygraphy.logger import G_LOGGER

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
    profile = Profile()
    for name, (smallest, best, largest) in spec["profile"].items():
        profile.add(name, min=smallest, opt=best, max=largest)
    cache = Path(spec["timing_cache"])
    reused = cache.is_file()
    say(phase="parsing the ONNX file")
    builder, network, _ = network_from_onnx_path(spec["onnx"], strongly_typed=True)
    create_config = CreateConfig(
        profiles=[profile],
        load_timing_cache=str(cache) if reused else None,
        progress_monitor=progress_monitor(trt),
    )
    config = create_config(builder, network)
    if not write_plan(trt, builder, network, config, spec["plan"]):
        return 1
    timing = config.get_timing_cache()
    if timing is not None:
        cache.write_bytes(timing.serialize())
    plugin_layers = sum(
        layer.type == trt.LayerType.PLUGIN_V3 for layer in map(network.get_layer, range(network.num_layers))
    )
    say(
        result={
            "layers": network.num_layers,
            "plugin_layers": plugin_layers,
            "timing_cache_reused": reused,
        }
    )
    return 0


def main() -> int:
    """Read the spec named on the command line and build."""
    os.dup2(2, 1)
    try:
        return build(json.loads(Path(sys.argv[1]).read_text()))
    except OSError as error:
        say(result={"errno": error.errno or errno.EIO})
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
