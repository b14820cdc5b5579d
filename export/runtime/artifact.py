"""An artifact as everybody opens it: manifest and files checked, a backend picked, every part behind a runner."""

import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from export.artifact.files import check_file, check_files
from export.artifact.manifest import Manifest, Part
from export.artifact.reader import open_manifest
from export.artifact.seal import is_sealed
from export.engine.backends import Backend, choose_backend, find_gpus, no_gpu
from export.engine.op_library import Provider
from export.engine.plugin_library import check_embedded, loadable_library
from export.errors import BackendError, ManifestError, OptionError
from export.runtime.buckets import BucketRunner, OverflowCount, open_part
from export.runtime.checked import CheckedRunner
from export.runtime.execution import BODIES, NONE, Execution, choose_execution
from export.runtime.onnx_runner import OnnxRunner
from export.runtime.plan_runner import PlanRunner
from export.runtime.runner import RunnerOptions
from madtp.data.samples import Config
from madtp.errors import ConfigError, MadtpError
from madtp.models.config import CONFIGS
from madtp.tasks.requests import Runner

CANNOT_RUN = "no GPU of this machine can run the plan"


@dataclass(frozen=True, eq=False)
class Artifact:
    """An artifact whose files are those of its manifest; a context that closes the runners that it opened.

    Attributes:
        path: of the manifest.
        backend: that it was built with. Where that is not installed or has no GPU here it cannot run, and its reason
            says why.
        changed: names of files that are not as the export wrote them, the manifest's too; see `open`.
    """

    path: Path
    manifest: Manifest
    backend: Backend
    changed: tuple[str, ...] = ()
    _process: int = field(default_factory=os.getpid)
    _opened: list[CheckedRunner | BucketRunner] = field(default_factory=list)
    _closed: list[OverflowCount] = field(default_factory=list)  # of runners that are closed: one, or none yet

    @classmethod
    def open(cls, path: Path, *, checkpoint: Path | None = None, changed: bool = False) -> "Artifact":
        """Read the manifest, check the files and pick the backend; nothing is run.

        Args:
            checkpoint: has to be the one that the artifact was made from.
            changed: take a manifest, graphs, plans and weights that were changed since the export.

        Raises:
            ManifestError: artifact, manifest and checkpoint are not of each other, or damaged.
        """
        source, manifest = open_manifest(path, changed=changed)
        names = check_files(manifest, source.parent, changed=changed)
        if checkpoint is not None:
            check_file(checkpoint, manifest.checkpoint.sha256, str(source.parent / manifest.artifact))
        if not is_sealed(manifest):
            names.append(source.name)
        return cls(source, manifest, backend_of(manifest), tuple(names))

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self.path.parent

    @property
    def engine(self) -> Path:
        """What --engine of the export named; with several parts there is no file of that name."""
        return self.folder / self.manifest.artifact

    @property
    def part_files(self) -> dict[str, Path]:
        """Part -> its graph or plan."""
        return {part.name: self.folder / part.artifact for part in self.manifest.parts}

    @property
    def vocabulary(self) -> Path | None:
        """The vocabulary that was exported with it; None without one."""
        name = self.manifest.vocabulary_file
        return None if name is None else self.folder / name

    @cached_property
    def config(self) -> Config:
        """Sizes of the model.

        Raises:
            ManifestError: they are not those of a model.
        """
        manifest = self.manifest
        try:
            config = CONFIGS[manifest.task](**manifest.config)
            if config.image_size != manifest.preprocessing.image.size:
                raise ConfigError(f"image_size is {config.image_size}, and images are prepared in another size")
            return config
        except (TypeError, ConfigError) as error:
            raise ManifestError(
                f"the manifest '{self.path}' is malformed", f"config: {error}", "Export again."
            ) from error

    def check_runs(
        self, fix: str = "Run it on a machine with such a GPU, or export to .onnx, which needs none."
    ) -> None:
        """Refuse a plan that cannot run here.

        Raises:
            BackendError: it is one; with `fix`.
        """
        if not self.backend.can_run:
            why = f"It was built with {self.backend.name}: {self.backend.reason}."
            raise BackendError(f"{CANNOT_RUN} '{self.engine}'", why, fix)

    def execution(self, library: str | Path | None = None, provider: Provider = "cpu") -> Execution | None:
        """How ONNX Runtime runs it (see `choose_execution`); None: it is a plan, which it does not.

        Raises:
            OptionError: a library or a provider for a plan.
            PluginError: the library that was named may not be loaded.
            BackendError: ONNX Runtime has no such provider here.
        """
        if not self.manifest.is_plan:
            return choose_execution(self.part_files.values(), library, provider)
        if provider != "cpu" or (library is not None and str(library) != NONE):
            raise OptionError(
                f"a provider and an op library do not apply to '{self.engine}'",
                "They are of ONNX Runtime, and a plan runs in TensorRT, on the GPU and with its own plugins.",
                "Leave --provider and --library out, or name an .onnx file.",
            )
        return None

    def open_runners(self, options: RunnerOptions | None = None) -> dict[str, Runner]:
        """A runner for every part, by name; each refuses inputs that its part was not built for.

        Raises:
            BackendError: no GPU here can run the plan, or the runtime refuses a file.
            PluginError: the plugin library may not be loaded (`export.engine.plugin_library.loadable_library`), or
                cannot be.
        """
        self.check_runs()
        library = self.manifest.plugins.library
        beside = None
        if library is not None and library.file is not None and not library.embedded:
            beside = self.folder / library.file
            loadable_library(beside, library)
        options = options or RunnerOptions()
        if options.execution is None:
            options = replace(options, execution=self.execution())
        return {part.name: self._open_part(part, beside, options) for part in self.manifest.parts}

    @property
    def overflows(self) -> OverflowCount:
        """Of all calls of the runners that it opened."""
        counts = [runner.count for runner in self._opened if isinstance(runner, BucketRunner)]
        return sum((*self._closed, *counts), OverflowCount())

    def _open_part(self, part: Part, library: Path | None, options: RunnerOptions) -> Runner:
        # Where no size depends on data, one launch does for all of an engine's kernels.
        options = replace(options, cuda_graphs=options.cuda_graphs or part.is_sized)
        runner = open_part(part, lambda engine: self._open_engine(part, engine.artifact, library, options))
        self._opened.append(runner)
        return runner

    def _open_engine(self, part: Part, artifact: str, library: Path | None, options: RunnerOptions) -> Runner:
        path, entry = self.folder / artifact, self.manifest.plugins.library
        carries = entry is not None and entry.embedded and bool(part.plugin_layers)
        if entry is not None and carries:  # the only reason to let a plan bring code
            check_embedded(path, entry)
        try:
            if part.is_plan:
                return PlanRunner(path, self.backend, library, carries, options)
            return OnnxRunner(path, options.threads, options.execution or BODIES)
        except MadtpError:
            raise
        except Exception as error:  # the runtimes have no common type for a file that they refuse
            raise BackendError(
                f"{self.backend.name} {self.backend.version} cannot load '{path}'",
                (str(error).strip().splitlines() or [type(error).__name__])[0],
                "It was made with another version or for another GPU; export again on this machine."
                if part.is_plan
                else "It was made for another version, or a tool changed it so; export again.",
            ) from error

    def close(self) -> None:
        """Free what its runners hold on the GPU: they cannot be run any more, but others may be opened.

        In a forked child they stay, for they are its parent's.
        """
        if self._process == os.getpid():
            self._closed.append(self.overflows)
            del self._closed[:-1]
            for runner in self._opened:
                runner.close()
            self._opened.clear()

    def __enter__(self) -> "Artifact":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def backend_of(manifest: Manifest) -> Backend:
    """The backend that the artifact was built with, or one that says why it cannot run here."""
    built = manifest.backend
    suffix = Path(manifest.artifact).suffix
    try:
        backend = choose_backend(built.name if manifest.is_plan else "auto", suffix)
    except BackendError as error:  # of tensorrt, also where there is no GPU
        reason = error.what if find_gpus() else no_gpu(built.name)
        return Backend(built.name, built.version, reason, can_run=False)
    return backend if backend.can_run else replace(backend, reason=no_gpu(backend.name))
