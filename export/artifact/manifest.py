"""The manifest `out.json` beside every artifact: what it is, how it was built, and what was validated.

The classes are the schema: `manifest.schema.json`, which documents it, is generated from them
(`python -m export.artifact.manifest` writes it anew). Fields stand in the order in which a manifest lists them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from export.artifact.schema import Bounds, Row, decode, encode, json_schema

SCHEMA_VERSION: Final = 4
SCHEMA_FILE = Path(__file__).with_name("manifest.schema.json")
PART_NAMES = {  # see madtp/models/parts.py
    "nlvr": ("model",),
    "vqa": ("encoder", "decoder"),
    "caption": ("encoder", "decoder"),
    "retrieval": ("image", "text", "match"),
    "clip": ("image", "text"),
}
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "polygraphy")
OVERFLOW = "overflow"  # output [] int32: 1 where a layer had no room for all rows, and the others mean nothing
KEPT_FAILURES = 20  # of a validation, in a manifest
MAX_PARTS = 8
MAX_BUCKETS = 64  # of a part
NAME_PATTERN = r"^(?!\.\.?$)[^/\\\u0000]{1,255}(?![\s\S])"  # of a file beside the manifest: no path leads elsewhere

FileName = Annotated[str, Bounds(pattern=NAME_PATTERN)]
Sha256 = Annotated[str, Bounds(pattern="^[0-9a-f]{64}$")]
Created = Annotated[str, "UTC time, ISO 8601"]
Dimension = Annotated[int, Bounds(minimum=0, maximum=2**31 - 1)]
Shape = tuple[Dimension, ...]
Mean = Annotated[float, Bounds(minimum=-1000, maximum=1000)]
Deviation = Annotated[float, Bounds(minimum=0.001, maximum=1000)]
Giga = Annotated[float, Bounds(exclusive_minimum=0, maximum=1e9), "mean per request"]
Difference = float | None  # null where it is not finite
Status = Literal["passed", "failed"]
ArtifactStatus = Literal["passed", "failed", "not run"]


@dataclass(frozen=True)
class Checkpoint:
    """What was exported; `notes`: what was read in another way than from an official checkpoint, a sentence each."""

    file: str
    sha256: Sha256
    bytes: int
    epoch: Annotated[int | None, "as recorded in the checkpoint"]
    notes: Annotated[tuple[str, ...] | None, "deviations from an official checkpoint, a sentence each"] = None


@dataclass(frozen=True)
class BackendEntry:
    """The backend that built the artifact."""

    name: Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]
    version: Annotated[str, "of its package"]
    reason: Annotated[str, "why it was chosen"]
    oldest: Annotated[str | None, "onnxruntime: the oldest version that runs the files"] = None


@dataclass(frozen=True)
class LibraryEntry:
    """A plugin library."""

    file: Annotated[FileName | None, "beside the artifact; null where embedded"]
    embedded: Annotated[
        bool, "the plan carries the library, and its loader has to allow host code (IRuntime::setEngineHostCodeAllowed)"
    ]
    version: Annotated[str, "of the project that it was built from"]
    sha256: Sha256
    source_sha256: Annotated[str, "of the sources that it was built from"]
    sm: Annotated[tuple[int, ...], "compute capabilities that it has code for, 90 for 9.0"]


@dataclass(frozen=True)
class Plugins:
    """Whether a plugin library is needed, and which."""

    mode: Literal["none", "library"]
    library: LibraryEntry | None


@dataclass(frozen=True)
class TensorInfo:
    """An input or output: dtype by its numpy name, dimensions as numbers or symbols ("batch", "text")."""

    name: Annotated[str, "as in the goldens"]
    dtype: Annotated[str, "numpy name"]
    shape: Annotated[tuple[int | str, ...], "numbers, or the symbols of dynamic dimensions"]


@dataclass(frozen=True)
class Profile(Row):
    """Min, opt and max shape of one input."""

    min: Shape
    opt: Shape
    max: Shape


@dataclass(frozen=True)
class TimingCache:
    """TensorRT's timing cache."""

    file: FileName
    reused: bool


@dataclass(frozen=True)
class TokenSizes(Row):
    """Tokens that leave a layer: the usual number, and the largest possible one."""

    opt: int
    max: int


@dataclass(frozen=True)
class Tokens:
    """The token counts that TensorRT tuned for."""

    source: Annotated[
        Literal["file", "measured", "guessed"], "guessed: counted on samples that are not typical of this model"
    ]
    origin: Annotated[str, "the samples, in words"]
    samples: Annotated[int, "requests counted"]
    opt_max: Annotated[dict[str, tuple[TokenSizes, ...]], "encoder -> [opt, max] tokens after each layer"]


@dataclass(frozen=True)
class ExternalData:
    """Weights of an ONNX file beside it."""

    file: FileName
    sha256: Sha256


@dataclass(frozen=True)
class BucketEntry:
    """An engine of a part with less room than the part's own, which has room for everything."""

    least: Annotated[int, Bounds(minimum=1), "fewest requests (images, texts, pairs) that it takes"]
    batch: Annotated[int, Bounds(minimum=1), "most requests that it takes"]
    rows: Annotated[dict[str, tuple[int, ...]], "encoder -> rows after each layer, over all sequences of a batch"]
    whole: Annotated[dict[str, int], "encoder -> rows of that batch if nothing is pruned"]
    predicted: Annotated[float, Bounds(minimum=0, maximum=1), "share of batches of that size that do not fit"]
    predicted_most: Annotated[float, Bounds(minimum=0, maximum=1), "upper end of its 95 % confidence interval"]
    onnx_sha256: Annotated[Sha256, "of the ONNX graph that the artifact was made from"]
    profile: Annotated[dict[str, Profile], "input -> min, opt, max shape"]
    layers: Annotated[int | None, "layers of the TensorRT network"]
    artifact: Annotated[FileName, "file beside the manifest"]
    sha256: Sha256
    bytes: int
    external_data: Annotated[ExternalData | None, "null: weights are in the artifact"]

    def named_files(self) -> Iterator[tuple[str, str]]:
        """Name and sha256 of the graph or plan, and of the weights beside it."""
        yield self.artifact, self.sha256
        if self.external_data is not None:
            yield self.external_data.file, self.external_data.sha256


@dataclass(frozen=True)
class Part:
    """One engine of the artifact."""

    name: Annotated[
        Literal["model", "encoder", "decoder", "image", "text", "match"], "docs/manifest.md says which task has which"
    ]
    checkpoint_sha256: Annotated[Sha256, "of the checkpoint that the part was made from"]
    onnx_sha256: Annotated[Sha256, "of the ONNX graph that the artifact was made from"]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    profile: Annotated[dict[str, Profile], "input -> min, opt, max shape"]
    timing_cache: Annotated[TimingCache | None, "null: this backend has none"]
    custom_nodes: Annotated[dict[str, int], "op -> nodes in the ONNX graph"]
    layers: Annotated[int | None, "layers of the TensorRT network"]
    plugin_layers: Annotated[
        dict[str, int], "plugin -> layers of the TensorRT network; as many as custom nodes, or none"
    ]
    tokens: Annotated[Tokens | None, "null: no plugins, so nothing to tell"]
    artifact: Annotated[FileName, "file beside the manifest"]
    sha256: Sha256
    bytes: int
    external_data: Annotated[ExternalData | None, "null: weights are in the artifact"]
    float32_nodes: Annotated[
        dict[str, int] | None, "fp16, bf16: why nodes outside of the custom ops stayed in float32 -> how many"
    ] = None
    buckets: Annotated[
        tuple[BucketEntry, ...] | None,
        Bounds(min_items=1, max_items=MAX_BUCKETS),
        "engines with less room, in the order in which they are tried; where one's output `overflow` is not 0, its "
        "other outputs mean nothing, and the next runs, at last the part itself",
    ] = None

    @property
    def is_plan(self) -> bool:
        """Whether it is a TensorRT plan, and not an ONNX file."""
        return self.artifact.endswith(".plan")

    @property
    def is_sized(self) -> bool:
        """Whether its layers have room for a number of rows, so that it may overflow."""
        return any(output.name == OVERFLOW for output in self.outputs)

    @property
    def engines(self) -> "tuple[Part | BucketEntry, ...]":
        """Its buckets, in the order in which they are tried, and itself."""
        return (*(self.buckets or ()), self)

    def named_files(self) -> Iterator[tuple[str, str]]:
        """Name and sha256 of the graphs or plans, buckets too, and of the weights beside them."""
        yield self.artifact, self.sha256
        if self.external_data is not None:
            yield self.external_data.file, self.external_data.sha256
        for bucket in self.buckets or ():
            yield from bucket.named_files()


@dataclass(frozen=True)
class ImagePreprocessing:
    """What to do with images."""

    size: Annotated[int, Bounds(minimum=1, maximum=16384), "side, pixels"]
    mode: Annotated[str, "colour mode"]
    resize: Annotated[str, "method"]
    scale: Annotated[float, "pixel factor before normalisation"]
    mean: tuple[Mean, Mean, Mean]
    std: tuple[Deviation, Deviation, Deviation]


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary of the tokenizer."""

    file: Annotated[FileName | None, "beside the manifest; null: the tokenizer's package carries it"]
    sha256: Sha256


@dataclass(frozen=True)
class TextPreprocessing:
    """What to do with texts."""

    tokenizer: Literal["bert-wordpiece", "clip-bpe"]
    lowercase: bool
    dropped: Annotated[str, "punctuation that is dropped, a regular expression"]
    dropped_as: Annotated[str, "what takes its place"]
    max_words: Annotated[int | None, "words that are read; null: the task reads no text"]
    first_id: Annotated[int, "[ENC], [CLS] (retrieval), [DEC] (caption) or start of text (clip)"]
    last_id: Annotated[int | None, "[SEP] or end of text; null: a prompt has none"]
    pad_id: int
    max_tokens: Annotated[int, "special tokens included"]
    padded: Annotated[bool, "every text is padded to max_tokens, whatever its batch"]
    prompt: Annotated[str | None, "what every caption continues; null: not a captioning model"]
    vocabulary: Annotated[Vocabulary | None, "null: none that fits was found"]


@dataclass(frozen=True)
class Preprocessing:
    """What to do with images and texts."""

    image: ImagePreprocessing
    text: TextPreprocessing


@dataclass(frozen=True)
class CostEntry:
    """What a precision below float32 costs: the artifact against the fp64 reference."""

    decisions: Annotated[int, "requests with an answer"]
    equal: Annotated[int, "requests with the same answer"]
    tied: Annotated[int, "requests with another answer that the reference nearly gave"]
    jaccard: Annotated[Difference, "mean over requests and layers of |kept by both| / |kept by either|, where visible"]
    more_tokens: Annotated[float, "share by which more tokens are kept"]
    flips: Annotated[int, "tokens that the first layer that differs decides otherwise"]
    explained: Annotated[int, "of those, as near to the threshold as this precision moves scores"]
    margin_median: Annotated[Difference, "how far scores moved for half of them, relative to the mean |score|"] = None
    margin_max: Annotated[Difference, "the same for the furthest"] = None


@dataclass(frozen=True)
class Parity:
    """What the export's own check found at one temperature."""

    temperature: float
    requests: Annotated[int, "compared requests"]
    worst: Annotated[float, "largest |difference|"]
    worst_output: Annotated[str, "the output that it was found in"]
    tolerance: Annotated[float, "largest |difference| allowed"]
    decisions_equal: Annotated[int, "requests with the same answer"]
    layers_equal: Annotated[int, "layers with equal token counts in every comparison"]
    layers: Annotated[int, "all layers"]
    explained: Annotated[int, "excluded requests: a score lies within rounding of the threshold"]
    failures: tuple[str, ...]
    mean_tokens: Annotated[dict[str, tuple[float, ...]], "encoder -> mean tokens after each layer"]
    cost: Annotated[CostEntry | None, "not of fp32; of 16 bits where tokens are pruned"] = None


@dataclass(frozen=True)
class Gflops:
    """Multiply-adds in 1e9."""

    dense: Giga
    pruned: Giga
    without_margin: Annotated[Giga | None, "pruned, had there been no keep_margin; absent without one"] = None


@dataclass(frozen=True)
class LatencyEntry:
    """Latency of one call, in milliseconds."""

    median_ms: float
    p10_ms: Annotated[float, "10th percentile"]
    p90_ms: Annotated[float, "90th percentile"]
    calls: Annotated[int, "timed calls"]


@dataclass(frozen=True)
class SamplesEntry:
    """What a validation compared on."""

    kind: Literal["samples", "data set", "demo", "synthetic"]
    origin: Annotated[str, "in words"]
    count: int
    words: Annotated[Literal["read", "hashed", "random"], "hashed: to ids that mean nothing to the model"]


@dataclass(frozen=True)
class OutputEntry:
    """How far one output of a pair differs."""

    output: str
    worst: Annotated[Difference, "largest |difference|; null: not finite"]
    mean: Annotated[Difference, "mean |difference|"]
    cosine: Annotated[Difference, "least over requests; null for integers"]
    error: Annotated[Difference, "largest error against the fp64 reference"]
    allowed: Annotated[Difference, "largest error allowed"]
    decided: Annotated[int, "requests with the same answer"]
    decisions: Annotated[int, "requests with an answer"]


@dataclass(frozen=True)
class PairEntry:
    """A comparison of two runners at one temperature."""

    pair: Annotated[str, "two of torch, onnx (its function bodies), kernels (of the op library) and plan"]
    temperature: float
    status: Status
    requests: Annotated[int, "compared requests"]
    explained: Annotated[int, "excluded requests: a score lies within rounding of the threshold"]
    outputs: tuple[OutputEntry, ...]
    layers: int
    layers_equal: Annotated[int, "layers that kept the same tokens in every comparison"]
    cost: Annotated[CostEntry | None, "not of fp32; of 16 bits where tokens are pruned"] = None


@dataclass(frozen=True)
class InvarianceEntry:
    """Batch invariance of one sample in one runner."""

    contestant: Annotated[str, "runner: torch, onnx, kernels or plan"]
    mates: Annotated[Literal["ordinary", "hostile"], "the rest of the batch"]
    probe: Annotated[int, "index of the sample"]
    slots: Annotated[int, "batches that it was put in"]
    tokens: Annotated[int, "batches with other token counts than alone"]
    answers: Annotated[int, "batches with another answer or other values than alone"]
    spread: Annotated[int, "slots that differ from the first one in the same batch"]


@dataclass(frozen=True)
class VerdictEntry:
    """What the latest `python -m export validate` found."""

    created: Created
    status: Annotated[ArtifactStatus, "not run: the plan could not be run, its ONNX passed"]
    samples: SamplesEntry
    pairs: tuple[PairEntry, ...]
    batch_mates: Annotated[tuple[InvarianceEntry, ...], "batch invariance"]
    failures: tuple[str, ...]
    bisected: Annotated[str, "the first divergent node, in words; empty: nothing failed"]


@dataclass(frozen=True)
class KernelsEntry:
    """What the kernels of the op library gave beside torch, one batch at each temperature."""

    file: FileName
    version: Annotated[str, "of the project that it was built from"]
    sha256: Sha256
    source_sha256: Annotated[str, "of the sources that it was built from"]
    status: Status
    requests: Annotated[int, "compared requests"]
    worst: Annotated[Difference, "largest |difference|; null: not finite"]
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Validation:
    """What was compared with torch, and how fast it ran."""

    artifact: Annotated[
        ArtifactStatus,
        "not run: no GPU of the building machine can run the plan; failed: a later validate found a difference",
    ]
    validated: Annotated[Literal["artifact", "onnx"], "what was compared with torch"]
    samples: Annotated[str, "their origin"]
    parity: Annotated[tuple[Parity, ...], "at the default temperature, then dense where that differs"]
    gflops: Gflops
    latency: Annotated[dict[str, LatencyEntry], "of one request on the building machine"]
    machine: Annotated[str, "where latency was measured"]
    verdict: VerdictEntry | None = None
    kernels: Annotated[
        KernelsEntry | None, "of the op library on the building machine; null: there was none for the file"
    ] = None


@dataclass(frozen=True)
class CalibrationEntry:
    """The data that ranges of activations come from."""

    method: Annotated[Literal["minmax", "entropy", "percentile"], "which ranges of the table"]
    data: Annotated[str, "in words"]
    data_sha256: Annotated[str | None, "of the file that lists them; null: there is none"]
    samples: int
    synthetic: Annotated[bool, "random data, whose ranges say nothing about real ones"]
    temperature: Annotated[float, "at which the pruned model ran"]


@dataclass(frozen=True)
class Limits(Row):
    """The range of a product's activations that was quantized."""

    low: float
    high: float


@dataclass(frozen=True)
class QuantizationEntry:
    """How weight products were quantized."""

    mode: Annotated[Literal["dynamic", "static"], "whether ranges of activations are measured while the model runs"]
    why: Annotated[str, "reason for the mode"]
    weights: Annotated[str, "their quantization, in words"]
    activations: Annotated[str, "likewise"]
    kept_by: Annotated[str, "what chose the products to keep: a keep file, or a recipe"]
    kept: Annotated[tuple[str, ...], "weight products that stayed float32"]
    smoothed_at: Annotated[float | None, "temperature at which channels were measured to be made alike first"] = None
    calibration: Annotated[CalibrationEntry | None, "static only"] = None
    ranges: Annotated[dict[str, Limits] | None, "static: product -> limits of its activations"] = None
    ranges_file: Annotated[FileName | None, "table beside the artifact, for the next export, if one was made"] = None


@dataclass(frozen=True)
class CapacityEntry:
    """Where the rooms of the buckets come from."""

    source: Annotated[
        Literal["file", "measured", "guessed"], "guessed: counted on samples that are not typical of this model"
    ]
    origin: Annotated[str, "the samples, in words"]
    samples: Annotated[int, "requests counted"]
    overflow: Annotated[float, Bounds(minimum=0, maximum=1), "share of batches that may not fit, as it was asked for"]


@dataclass(frozen=True)
class Manifest:
    """All that a manifest says."""

    schema: Annotated[Literal[4], "version of this schema"]
    created: Created
    task: Literal["nlvr", "vqa", "caption", "retrieval", "clip"]
    artifact: Annotated[FileName, "what --engine named; with several parts their files are <stem>.<part><suffix>"]
    config: Annotated[dict[str, Any], "sizes of the model"]
    checkpoint: Checkpoint
    temperature: Annotated[
        float,
        Bounds(minimum=0, maximum=3.4028234663852886e38),
        "default of the temperature input; the checkpoint's unless --temperature was given",
    ]
    keep_margin: Annotated[
        float | None,
        Bounds(exclusive_minimum=0, maximum=1),
        "tokens this far below the threshold stay too, in units of a layer's mean |importance|; absent without one",
    ] = field(default=None, kw_only=True)
    layout: Literal["dynamic", "packed"]
    batching: Annotated[
        Literal["reference", "per-request"],
        "reference: one K for the whole batch, so an answer depends on the rest of the batch; per-request: one K for "
        "each request, whose answer depends on nothing else",
    ]
    precision: Literal["fp32", "fp16", "bf16", "int8", "fp8"]
    backend: BackendEntry
    tools: Annotated[dict[str, str], "package versions"]
    plugins: Annotated[Plugins, "none: function bodies inlined, no library needed"]
    parts: Annotated[tuple[Part, ...], Bounds(min_items=1, max_items=MAX_PARTS)]
    preprocessing: Preprocessing
    seconds: Annotated[dict[str, float], "duration of each stage"]
    validation: Validation
    quantization: Annotated[QuantizationEntry | None, "int8 and fp8 only"] = None
    capacities: Annotated[CapacityEntry | None, "of artifacts with buckets"] = None
    manifest_sha256: Annotated[Sha256, "of everything else in here, as compact JSON with sorted keys"] = ""

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Manifest":
        """A manifest of what its schema accepts."""
        return decode(cls, content)

    def to_json(self) -> dict[str, Any]:
        """The same as JSON; `from_json` of it is equal."""
        content: dict[str, Any] = encode(self)
        return content

    @property
    def is_plan(self) -> bool:
        """Whether the parts are TensorRT plans, and not ONNX files."""
        return self.artifact.endswith(".plan")

    @property
    def is_packed(self) -> bool:
        """Whether every request is pruned by itself, whatever it is in a batch with."""
        return self.layout == "packed"

    @property
    def is_sized(self) -> bool:
        """Whether no size inside of it depends on data: layers have room for a number of rows."""
        return any(part.is_sized for part in self.parts)

    @property
    def is_batch_invariant(self) -> bool:
        """Whether an answer depends on nothing else in its batch but by rounding.

        Activations that are quantized while the model runs share one scale.
        """
        shares_scale = self.quantization is not None and self.quantization.mode == "dynamic"
        return self.is_packed and not shares_scale

    @property
    def io_dtype(self) -> str:
        """The floating-point type of inputs and outputs, in the words of `--io-dtype`."""
        narrow = any(tensor.dtype == "float16" for part in self.parts for tensor in (*part.inputs, *part.outputs))
        return "fp16" if narrow else "fp32"

    @property
    def graph_form(self) -> tuple[str, str]:
        """Precision, and floating-point type of inputs and outputs: what a graph is traced anew with."""
        return self.precision, self.io_dtype

    @property
    def part_hashes(self) -> dict[str, str]:
        """File name -> sha256 of every graph or plan."""
        return {engine.artifact: engine.sha256 for part in self.parts for engine in part.engines}

    @property
    def vocabulary_file(self) -> str | None:
        """The vocabulary beside the manifest; None without one."""
        vocabulary = self.preprocessing.text.vocabulary
        return None if vocabulary is None else vocabulary.file

    def named_files(self) -> Iterator[tuple[str, str]]:
        """Name and sha256 of every file that the artifact needs beside its manifest."""
        for part in self.parts:
            yield from part.named_files()
        library = self.plugins.library
        if library is not None and library.file is not None and not library.embedded:
            yield library.file, library.sha256
        vocabulary = self.preprocessing.text.vocabulary
        if vocabulary is not None and vocabulary.file is not None:
            yield vocabulary.file, vocabulary.sha256


def manifest_schema() -> dict[str, Any]:
    """The JSON Schema of a manifest."""
    return json_schema(Manifest, "Manifest of an exported MADTP artifact")


def tool_versions() -> dict[str, str]:
    """Versions of the packages that shaped the artifact."""
    return {name: metadata.version(name) for name in PACKAGES}


if __name__ == "__main__":
    SCHEMA_FILE.write_text(json.dumps(manifest_schema(), indent=1) + "\n", encoding="utf-8")
