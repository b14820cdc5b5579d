"""Opening what an export wrote: every part of an artifact behind a runner."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.artifact.files import tensor_infos
from export.engine.backends import Backend, choose_backend, find_gpus, no_gpu
from export.engine.plugin_library import check_embedded, loadable_library
from export.errors import BackendError, ManifestError
from export.runtime.checked import CheckedRunner, FiniteRunner
from export.runtime.onnx_runner import OnnxRunner
from export.runtime.plan_runner import PlanRunner
from export.runtime.runner import RunnerOptions
from madtp.data.samples import Config
from madtp.errors import ConfigError, MadtpError
from madtp.models.config import CONFIGS
from madtp.tasks.requests import Runner


def runtime(manifest: Mapping[str, Any]) -> Backend:
    """The backend that the artifact was made with; where it is not installed or has no GPU, one that cannot run.

    The reason of one that cannot run says why.
    """
    made = manifest["backend"]
    suffix = Path(manifest["artifact"]).suffix
    try:
        backend = choose_backend(made["name"] if suffix == ".plan" else "auto", suffix)
    except BackendError as error:  # of tensorrt, also where there is no GPU
        reason = error.what if find_gpus() else no_gpu(made["name"])
        return Backend(made["name"], made["version"], reason, can_run=False)
    return backend if backend.can_run else replace(backend, reason=no_gpu(backend.name))


def model_config(manifest: Mapping[str, Any], path: Path) -> Config:
    """Sizes of the model; `path` is the manifest's, for the message.

    Raises:
        ManifestError: they are not those of a model.
    """
    try:
        config = CONFIGS[manifest["task"]](**manifest["config"])
        if config.image_size != manifest["preprocessing"]["image"]["size"]:
            raise ConfigError(f"image_size is {config.image_size}, and images are prepared in another size")
        return config
    except (TypeError, ConfigError) as error:
        raise ManifestError(f"the manifest '{path}' is malformed", f"config: {error}", "Export again.") from error


def close_runners(runners: Mapping[str, Runner]) -> None:
    """Free what runners of `open_parts` hold on the GPU."""
    for runner in runners.values():
        if isinstance(runner, CheckedRunner | FiniteRunner):
            runner.close()


def open_parts(
    manifest: Mapping[str, Any], folder: Path, backend: Backend, options: RunnerOptions | None = None
) -> dict[str, Runner]:
    """A runner for every part, by name; each refuses inputs that its part was not built for.

    Args:
        manifest: its files were checked (`export.artifact.manifest.check_files`).
        folder: where they lie.
        backend: from `runtime`; it can run.
        options: how to run them; None is as usual.

    Raises:
        PluginError: the plugin library may not be loaded (`export.engine.plugin_library.loadable_library`), or cannot
            be.
        BackendError: the runtime refuses a file.
    """
    options = options or RunnerOptions()
    library = manifest["plugins"]["library"]
    embedded = library is not None and library["embedded"]
    beside = None if library is None or embedded else folder / library["file"]
    if beside is not None:
        loadable_library(beside, library)
    runners: dict[str, Runner] = {}
    for part in manifest["parts"]:
        path = folder / part["artifact"]
        carries = embedded and bool(part["plugin_layers"])  # the only reason to let a plan bring code
        if carries:
            check_embedded(path, library)
        try:
            runner: Runner = (
                PlanRunner(path, backend, beside, carries, options)
                if path.suffix == ".plan"
                else OnnxRunner(path, options.threads)
            )
        except MadtpError:
            raise
        except Exception as error:  # the runtimes have no common type for a file that they refuse
            raise BackendError(
                f"{backend.name} {backend.version} cannot load '{path}'",
                (str(error).strip().splitlines() or [type(error).__name__])[0],
                "It was made with another version or for another GPU; export again on this machine."
                if path.suffix == ".plan"
                else "It was made for another version, or a tool changed it so; export again.",
            ) from error
        runners[part["name"]] = CheckedRunner(
            runner, tensor_infos(part["inputs"]), tensor_infos(part["outputs"]), part["profile"]
        )
    return runners
