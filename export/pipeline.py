"""The main job: checkpoint -> ONNX -> engine -> check -> artifact and manifest. Stages are named for what they make."""

import datetime
import gc
import os
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import onnx
from onnx import ModelProto

import madtp
from calibration.tokens import Source, TokenStatistics, check_source, read_tokens
from export.backends import Backend, choose_backend
from export.check import Validation, validate_runner
from export.engine import build_plan, custom_nodes, inline_functions, input_profile, set_token_sizes
from export.errors import OptionError
from export.manifest import SCHEMA_VERSION, dump_manifest, manifest_path, tensor_infos, tool_versions
from export.options import ExportOptions, Range
from export.plugin_library import check_tools, library_entry, plugin_library, read_library
from export.runner import CheckedRunner, OnnxRunner, PlanRunner, Runner
from export.tokens import check_encoders, token_plan
from export.trace import EXTERNAL_DATA_LIMIT, save_onnx, trace_model
from madtp.checkpoint import read_checkpoint
from madtp.config import NlvrConfig
from madtp.errors import InputError, OutputError
from madtp.files import Staging, check_writable, sha256, write_errors
from madtp.nlvr import NlvrModel
from madtp.preprocess import IMAGE_MEAN, IMAGE_STD
from madtp.samples import INDEX, SampleSet, load_samples
from madtp.tokenize import DROPPED_PUNCTUATION

DEFAULT_BATCH = Range(1, 1, 8)
DEFAULT_TEXT = (2, 24, 64)  # tokens of an NLVR2 sentence: 40 words at most in the official reader


class Progress(Protocol):
    """Told what the pipeline is doing; see `export.report` for the one that people see."""

    def stage(self, description: str) -> None:
        """A new stage begins."""
        ...

    def detail(self, text: str) -> None:
        """Something within the stage."""
        ...


@dataclass(frozen=True)
class Prepared:
    """Everything an export needs, read and checked; nothing written yet."""

    options: ExportOptions
    config: NlvrConfig
    backend: Backend
    batch: Range
    text: Range
    temperature: float
    samples: SampleSet
    weight_bytes: int
    checkpoint: dict[str, Any]  # the manifest's entry
    tokens: TokenStatistics | None  # of --tokens

    def load_model(self) -> NlvrModel:
        """The model, anew: nobody holds its weights while the engine is built, when memory is shortest."""
        return madtp.load_nlvr(self.options.checkpoint, self.options.config)


@dataclass
class ExportResult:
    """What an export made. `manifest` is None when parity failed and nothing was written."""

    validation: Validation
    backend: Backend
    artifact: Path
    manifest: dict[str, Any] | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def prepare(options: ExportOptions) -> Prepared:
    """Read and check every input of an export; the preflight. Writes nothing.

    Raises:
        MadtpError: whatever is wrong with the options, the checkpoint, the samples, the output or this machine.
    """
    _check_outputs(options)
    backend = choose_backend(options.backend, options.engine.suffix)
    model = madtp.load_nlvr(options.checkpoint, options.config)
    text = options.text or Range(*(min(size, model.config.max_position) for size in DEFAULT_TEXT))
    if text.max > model.config.max_position:
        raise OptionError(
            f"--text {text} allows {text.max} tokens",
            f"The model has {model.config.max_position} positions.",
            f"Use at most {model.config.max_position}.",
        )
    if text.min < 2:
        raise OptionError(
            f"--text {text} allows one token", "A sentence has at least [ENC] and [SEP].", "Use 2 or more."
        )
    batch = options.batch or DEFAULT_BATCH
    samples = load_samples(options.samples, options.checkpoint, model.config)
    check_samples(samples, model.config, batch, text)
    weight_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    check_writable(options.engine, _needed_bytes(options, weight_bytes))
    temperature = model.temperature if options.temperature is None else options.temperature
    checkpoint = _checkpoint_entry(options.checkpoint)
    tokens = None
    if options.tokens is not None:
        tokens = read_tokens(options.tokens)
        here = Source(checkpoint["sha256"], model.task, temperature, "", None)
        check_source(tokens.source, here, options.tokens)
        check_encoders(tokens, model.config, options.tokens)
    if options.plugins not in ("auto", "none"):
        read_library(Path(options.plugins))
    elif options.plugins == "auto" and options.engine.suffix == ".plan":
        check_tools()
    return Prepared(options, model.config, backend, batch, text, temperature, samples, weight_bytes, checkpoint, tokens)


def _checkpoint_entry(path: Path) -> dict[str, Any]:
    epoch = read_checkpoint(path).get("epoch")
    return {
        "file": path.name,
        "sha256": sha256(path),
        "bytes": path.stat().st_size,
        "epoch": epoch if isinstance(epoch, int) else None,
    }


def _check_outputs(options: ExportOptions) -> None:
    """Refuse outputs that cannot be written, or that would take the place of an input."""
    outputs = [options.engine, manifest_path(options.engine)]
    inputs = [options.checkpoint, options.config, options.samples and options.samples / INDEX]
    for output in outputs:
        check_writable(output)
        for given in inputs:
            if given is not None and os.path.exists(given) and output.exists() and output.samefile(given):
                raise OutputError(
                    f"the export would overwrite '{given}'",
                    f"It writes '{outputs[0]}' and, for the manifest, '{outputs[1]}'.",
                    "Give --engine another name or folder.",
                )


def _needed_bytes(options: ExportOptions, weight_bytes: int) -> int:
    """Least room that an export takes: a plan is built from an ONNX file that lies beside it meanwhile."""
    return weight_bytes * (2 if options.engine.suffix == ".plan" else 1)


def check_samples(samples: SampleSet, config: NlvrConfig, batch: Range, text: Range) -> None:
    """Samples that the profile would refuse are an error now, not after the build."""
    longest = max(len(request.ids) for request in samples.requests)
    shortest = min(len(request.ids) for request in samples.requests)
    if longest > config.max_position:
        raise InputError(
            f"a sentence has {longest} tokens",
            f"The model has {config.max_position} positions. It is in {samples.origin}.",
            "Shorten the sentence; it is not cut silently because that would ask another question.",
        )
    if longest > text.max or shortest < text.min:
        raise OptionError(
            f"sentences of {shortest} to {longest} tokens do not fit the text length {text}",
            f"They are in {samples.origin}.",
            f"Use --text {min(shortest, text.min)}:{text.opt}:{max(longest, text.max)}, or other samples.",
        )
    if batch.min > len(samples):
        raise OptionError(
            f"--batch {batch} needs {batch.min} samples at once",
            f"There are {len(samples)}: {samples.origin}.",
            "Give more samples, or a smaller MIN.",
        )


def export(prepared: Prepared, progress: Progress) -> ExportResult:
    """Build the artifact, check it, and put it and its manifest in place if the check passes.

    Raises:
        MadtpError: the output could not be written or the engine could not be built; earlier outputs are untouched.
    """
    options, backend = prepared.options, prepared.backend
    target = options.engine
    clock = _Stages(progress)
    with Staging(target, _needed_bytes(options, prepared.weight_bytes)) as staging:
        clock.start("tracing the model to ONNX")
        source = staging.folder / (target.name if target.suffix == ".onnx" else f"{target.stem}.onnx")
        single_file = target.suffix == ".onnx" and prepared.weight_bytes <= EXTERNAL_DATA_LIMIT
        with write_errors(target):
            save_onnx(trace_model(prepared.load_model()), source, external_data=not single_file)
            gc.collect()  # the traced program holds reference cycles and, through them, the weights
        files = [source.name] + ([] if single_file else [f"{source.name}.data"])
        part = _onnx_part(source, files, prepared)
        can_run = True
        if target.suffix == ".plan":
            clock.start(f"building the engine with {backend.name} {backend.version}")
            files = _build(prepared, source, staging, part, progress)
            can_run = backend.can_run
        clock.start("checking answers, tokens and latency")
        runner: Runner = OnnxRunner(source)
        if target.suffix == ".plan" and can_run:
            library = part["plugins"]
            beside = None if library is None or library["embedded"] else staging.folder / library["file"]
            runner = PlanRunner(staging.folder / target.name, backend, beside, options.embed_plugins)
        checked = CheckedRunner(runner, tensor_infos(part["inputs"]), part["profile"])
        validation = validate_runner(
            prepared.load_model(), checked, prepared.samples, prepared.temperature, prepared.batch, progress.detail
        )
        validation.validated = "artifact" if can_run else "onnx"
        result = ExportResult(validation, backend, target, seconds=clock.stop())
        if validation.passed:
            part |= _identity(staging.folder, files)
            result.manifest = _manifest(prepared, part, result)
            with write_errors(target):
                (staging.folder / manifest_path(target).name).write_text(dump_manifest(result.manifest))
            staging.commit([*reversed(files), manifest_path(target).name])
    return result


class _Stages:
    """Seconds that each stage took."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._seconds, self._name = progress, dict[str, float](), ""

    def start(self, name: str) -> None:
        self.stop()
        self._name, self._begin = name, time.perf_counter()
        self._progress.stage(name)

    def stop(self) -> dict[str, float]:
        if self._name:
            self._seconds[self._name] = round(time.perf_counter() - self._begin, 2)
            self._name = ""
        return self._seconds


def _build(prepared: Prepared, source: Path, staging: Staging, part: dict[str, Any], progress: Progress) -> list[str]:
    """Build the plan into the staging folder; returns its files, the plan first. Completes `part`."""
    target, options = prepared.options.engine, prepared.options
    cache = Path(f"{target.stem}.timing")
    library = plugin_library(options.plugins, progress.detail)
    network = source.with_name(f"network-{source.name}")
    shipped = staging.folder / f"{target.stem}.plugins.so"  # a name of its own: another plan here may need another one
    with write_errors(target):
        if library is None:
            inline_functions(source, network)
        else:
            tokens = token_plan(prepared, progress)
            part["tokens"] = tokens.to_manifest()
            part["plugins"] = library_entry(library, None if options.embed_plugins else shipped.name)
            set_token_sizes(source, network, tokens.sizes)
            if not options.embed_plugins:
                shutil.copyfile(library.path, shipped)
        if (earlier := target.parent / cache).is_file():
            (staging.folder / cache).write_bytes(earlier.read_bytes())
    with write_errors(target):
        result = build_plan(
            prepared.backend,
            network,
            staging.folder / target.name,
            staging.folder / cache,
            part["profile"],
            progress.detail,
            None if library is None else library.path,
            options.embed_plugins,
        )
    part["layers"] = result.layers
    part["plugin_layers"] = result.plugin_layers
    files = [target.name]
    if library is not None and not options.embed_plugins:
        files.append(shipped.name)
    if (staging.folder / cache).is_file():
        part["timing_cache"] = {"file": cache.name, "reused": result.timing_cache_reused}
        files.append(cache.name)
    return files


def _onnx_part(source: Path, files: list[str], prepared: Prepared) -> dict[str, Any]:
    """What the manifest says of the model, as far as the ONNX file tells."""
    graph: ModelProto = onnx.load(str(source), load_external_data=False)
    profile = input_profile(prepared.config, prepared.batch, prepared.text)
    return {
        "name": "model",
        "onnx_sha256": sha256(source),
        "inputs": [_tensor_entry(value) for value in graph.graph.input],
        "outputs": [_tensor_entry(value) for value in graph.graph.output],
        "profile": profile,
        "timing_cache": None,
        "custom_nodes": custom_nodes(source),
        "layers": None,
        "plugin_layers": {},
        "plugins": None,
        "tokens": None,
    }


def _tensor_entry(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = [dim.dim_param if dim.HasField("dim_param") else dim.dim_value for dim in tensor.shape.dim]
    return {"name": value.name, "dtype": dtype, "shape": shape}


def _identity(folder: Path, files: list[str]) -> dict[str, Any]:
    """Name, hash and size of the artifact, and of its external weights."""
    artifact = folder / files[0]
    external = next((name for name in files if name.endswith(".data")), None)
    return {
        "artifact": artifact.name,
        "sha256": sha256(artifact),
        "bytes": artifact.stat().st_size,
        "external_data": None if external is None else {"file": external, "sha256": sha256(folder / external)},
    }


def _manifest(prepared: Prepared, part: dict[str, Any], result: ExportResult) -> dict[str, Any]:
    config, options = prepared.config, prepared.options
    return {
        "schema": SCHEMA_VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "task": config.task,
        "config": asdict(config),
        "checkpoint": prepared.checkpoint,
        "temperature": prepared.temperature,
        "layout": options.layout,
        "batching": "reference",
        "precision": options.precision,
        "backend": {
            "name": prepared.backend.name,
            "version": prepared.backend.version,
            "reason": prepared.backend.reason,
        },
        "tools": tool_versions(),
        "plugins": {"mode": "none" if part["plugins"] is None else "library", "library": part.pop("plugins")},
        "parts": [part],
        "preprocessing": {
            "image": {
                "size": config.image_size,
                "mode": "RGB",
                "resize": "bicubic (Pillow) to size x size, aspect ratio not kept",
                "scale": 1 / 255,
                "mean": list(IMAGE_MEAN),
                "std": list(IMAGE_STD),
            },
            "text": {
                "tokenizer": "bert-wordpiece",
                "lowercase": True,
                "dropped": DROPPED_PUNCTUATION.pattern,
                "first_id": config.enc_token_id,
                "last_id": config.sep_token_id,
                "pad_id": config.pad_token_id,
                "max_tokens": prepared.text.max,
                "vocabulary_sha256": prepared.samples.vocabulary_sha256,
            },
        },
        "seconds": result.seconds,
        "validation": result.validation.to_manifest(),
    }
