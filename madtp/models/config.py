"""Sizes of a model: the fields of a checkpoint's `config` entry or of a `--config` file."""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from madtp.errors import LISTED, ConfigError, listing, shorten
from madtp.files.inputs import read_json

CORRECT = "Correct it in --config, which wins over the checkpoint's own config entry."
HEAD_SIZE = 64  # of every published BLIP and CLIP model; no tensor records it
MAX_SIZE = 1_000_000  # of anything; more is a mistake, and building the model would only fail later
MAX_LAYERS = 1000
MAX_TEMPERATURE = 3.4028234663852886e38  # the largest float32
# Say where a model came from, or how it was trained or asked; size nothing.
PROVENANCE = frozenset({"tiny_vocab", "weight_seed", "source_commit", "queue_size", "prompt", "num_beams"})


class ModelConfig:
    """What every configuration checks: types, ranges, heads that divide widths, ids within the vocabulary.

    Subclasses are frozen dataclasses; `WIDTHS` pairs each width with its number of heads, `LAYERS` names the depths,
    `IDS` the token ids that inference uses.
    """

    WIDTHS: ClassVar[tuple[tuple[str, str], ...]]
    LAYERS: ClassVar[tuple[str, ...]]
    IDS: ClassVar[tuple[str, ...]]

    image_size: int
    patch_size: int
    vocab_size: int

    def __post_init__(self) -> None:
        """Raise ConfigError where the sizes contradict each other, all contradictions at once."""
        problems = self._values() or self._relations()
        if len(problems) > 1:
            lines = [f"{error.what}. {error.why}".rstrip() for error in problems[:LISTED]]
            lines += [f"And {len(problems) - LISTED} more."] if len(problems) > LISTED else []
            raise ConfigError(
                f"{len(problems)} things are wrong with the configuration",
                "\n".join(lines),
                "Correct them in --config.",
            )
        if problems:
            raise problems[0]

    def _values(self) -> list[ConfigError]:
        """Values that no model could have."""
        problems = []
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            expected = (int, float) if field.type is float else field.type
            if not isinstance(value, expected) or isinstance(value, bool):  # type: ignore[arg-type]
                kind = getattr(field.type, "__name__", field.type)
                what = f"config field '{field.name}' is {shorten(repr(value))}"
                problems.append(ConfigError(what, f"It has to be of type {kind}.", CORRECT))
            elif field.type is float and not 0 <= value < 1:
                what = f"config field '{field.name}' is {value}"
                problems.append(ConfigError(what, "It has to be a small positive number.", CORRECT))
            elif field.type is int:
                least = 0 if field.name.endswith(("_id", "_from")) else 1
                most = MAX_LAYERS if field.name in self.LAYERS else MAX_SIZE
                if not least <= value <= most:
                    what = f"config field '{field.name}' is {shorten(str(value))}"
                    problems.append(ConfigError(what, f"It has to be {least} to {most}.", CORRECT))
        return problems

    def _relations(self) -> list[ConfigError]:
        """Values that do not go together."""
        problems = [
            ConfigError(
                f"{width} = {getattr(self, width)} cannot be split into {heads} = {getattr(self, heads)} heads",
                fix=f"Set '{heads}' to a divisor of '{width}' in --config.",
            )
            for width, heads in self.WIDTHS
            if getattr(self, width) % getattr(self, heads)
        ]
        if self.image_size % self.patch_size:
            problems.append(
                ConfigError(
                    f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}",
                    fix="Correct both in --config.",
                )
            )
        problems += self._widths()
        problems += [
            ConfigError(
                f"{name} is {getattr(self, name)}, but the vocabulary has {self.vocab_size} entries",
                "Every id has to be smaller than vocab_size; the defaults are those of the published models.",
                f"Set '{name}' in --config.",
            )
            for name in self.IDS
            if getattr(self, name) >= self.vocab_size
        ]
        return problems

    @property
    def vision_tokens(self) -> int:
        """Tokens of one image before any pruning, class token included."""
        return (self.image_size // self.patch_size) ** 2 + 1

    def _widths(self) -> list[ConfigError]:
        """Widths that have to agree and do not; none by default."""
        return []


@dataclass(frozen=True)
class BlipConfig(ModelConfig):
    """Sizes that all BLIP models with MADTP have. Lengths are in tokens or pixels; the defaults are BLIP's."""

    WIDTHS: ClassVar[tuple[tuple[str, str], ...]] = (("vit_dim", "vit_heads"), ("text_hidden", "text_heads"))
    LAYERS: ClassVar[tuple[str, ...]] = ("vit_depth", "text_layers")
    IDS: ClassVar[tuple[str, ...]] = ("pad_token_id", "sep_token_id", "enc_token_id")
    PRUNES_TEXT: ClassVar[bool] = True  # words are aligned with space_dict too, so that widths have to agree

    image_size: int
    patch_size: int
    vit_dim: int
    vit_depth: int
    vit_heads: int
    vit_mlp: int
    text_hidden: int
    text_layers: int
    text_heads: int
    text_inter: int
    vocab_size: int
    max_position: int
    sd_num: int
    sd_dim: int
    vit_layer_norm_eps: float = 1e-6
    text_layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    cls_token_id: int = 101
    sep_token_id: int = 102
    bos_token_id: int = 30522  # [DEC]
    enc_token_id: int = 30523
    task: str = ""

    def _widths(self) -> list[ConfigError]:
        names = ["vit_dim", "text_hidden", "sd_dim"] if self.PRUNES_TEXT else ["vit_dim", "sd_dim"]
        if len({getattr(self, name) for name in names}) == 1:
            return []
        *sizes, last = [f"{name} {getattr(self, name)}" for name in names]
        why = f"What a {self.task} model prunes is aligned with one space_dict, so all have one width."
        return [ConfigError(f"{', '.join(sizes)} and {last} differ", why, "Correct them in --config.")]


@dataclass(frozen=True)
class NlvrConfig(BlipConfig):
    """Sizes of a BLIP-NLVR model with MADTP."""

    merge_from: int = 6  # first text layer whose cross-attention concatenates the two branches instead of averaging
    task: str = "nlvr"


@dataclass(frozen=True)
class RetrievalConfig(BlipConfig):
    """Sizes of a BLIP retrieval model with MADTP: `embed_dim` is the width of the shared embedding."""

    IDS = ("pad_token_id", "cls_token_id", "sep_token_id", "enc_token_id")

    embed_dim: int = 256
    task: str = "retrieval"


@dataclass(frozen=True)
class VqaConfig(BlipConfig):
    """Sizes of a BLIP-VQA model with MADTP."""

    IDS = ("pad_token_id", "sep_token_id", "bos_token_id", "enc_token_id")

    task: str = "vqa"


@dataclass(frozen=True)
class CaptionConfig(BlipConfig):
    """Sizes of a BLIP captioning model with MADTP."""

    IDS = ("pad_token_id", "sep_token_id", "bos_token_id")
    PRUNES_TEXT = False

    task: str = "caption"


@dataclass(frozen=True)
class ClipConfig(ModelConfig):
    """Sizes of a CLIP model with MADTP. The defaults are CLIP's."""

    WIDTHS = (("vision_width", "vision_heads"), ("text_width", "text_heads"))
    LAYERS = ("vision_layers", "text_layers")
    IDS = ("sot_token_id", "eot_token_id")

    embed_dim: int
    image_size: int
    patch_size: int
    vision_layers: int
    vision_width: int
    vision_heads: int
    context_length: int
    vocab_size: int
    text_width: int
    text_heads: int
    text_layers: int
    sd_num: int
    sd_dim: int
    layer_norm_eps: float = 1e-5
    sot_token_id: int = 49406
    eot_token_id: int = 49407
    task: str = "clip"


CONFIGS: dict[str, type[BlipConfig] | type[ClipConfig]] = {
    config.task: config for config in (NlvrConfig, VqaConfig, CaptionConfig, RetrievalConfig, ClipConfig)
}
KNOWN_FIELDS = frozenset(field.name for config in CONFIGS.values() for field in fields(config)) | PROVENANCE


# Told by no tensor: if a configuration of something else has them too, it still means the model.
UNTOLD = frozenset(name for name in KNOWN_FIELDS if name.endswith(("_heads", "_eps", "_token_id")))
TRAINING = frozenset({"batch_size", "batch_size_train", "batch_size_test"})  # of the published recipes
_ALL_FIELDS = ", ".join(sorted(KNOWN_FIELDS))
MISSPELT = 0.88  # alike, by difflib: "vit_head" and "vit_hedas" are taken for "vit_heads"


def check_fields(values: Any, origin: str) -> dict[str, Any]:
    """The sizes in `values`, provenance left out.

    Raises:
        ConfigError: `values` is no mapping, or has a field that no model knows (a misspelt one would be lost silently).
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{origin} is a {type(values).__name__}", "A configuration is a mapping of field to value.")
    unknown = _unknown(values)
    if unknown:
        raise ConfigError(
            f"{origin} has unknown fields: {listing(unknown)}",
            "A misspelt field would be ignored and the model built with other sizes.",
            f"Remove or correct them; the fields are: {_ALL_FIELDS}.",
        )
    return {key: value for key, value in values.items() if key not in PROVENANCE}


def recorded_fields(values: Any, origin: str, task: str, *, overridden: bool) -> tuple[dict[str, Any], str]:
    """The sizes in the `config` entry of a checkpoint, which may be a training recipe instead, and a note.

    Of a recipe only what no tensor tells is taken, e.g. heads; the tensors tell the rest, and cannot be wrong about it.

    Args:
        values: the entry, None without one.
        origin: of the entry, for messages.
        task: that the tensors tell, "" where they tell none.
        overridden: whether the user gave a configuration, which wins over this one.

    Returns:
        The sizes, and what was left aside, in a sentence; "" where nothing was.

    Raises:
        ConfigError: a field is misspelt, and there is no other configuration.
    """
    if values is None:
        return {}, ""
    if not isinstance(values, Mapping):
        return {}, f"{origin} is a {type(values).__name__}, no mapping of sizes: left aside"
    sizes = {size.name for size in fields(CONFIGS[task])} if task else KNOWN_FIELDS
    unknown = _unknown(values, sizes | PROVENANCE)  # fields of other tasks' models among them: shared recipes
    if not unknown:
        return check_fields(values, origin), ""
    misspelt = [
        name
        for name in unknown
        if name not in TRAINING | KNOWN_FIELDS and difflib.get_close_matches(name[:100], KNOWN_FIELDS, cutoff=MISSPELT)
    ]
    if misspelt and not overridden:
        raise ConfigError(
            f"{origin} has unknown fields: {listing(misspelt)}",
            "They look like misspelt sizes; ignored, the model would be built with other sizes.",
            f"Give the sizes that were meant with --config, which wins over it; the fields are: {_ALL_FIELDS}.",
        )
    taken = {key: value for key, value in values.items() if key in UNTOLD & sizes}
    ours = any(key in KNOWN_FIELDS - PROVENANCE for key in values)
    what = f"has fields that no {task} model has" if ours else "is a training configuration"
    note = f"{origin} {what}, left aside ({listing(unknown, 120)}): the tensors tell the sizes"
    return taken, f"{note}, and the entry {listing(sorted(taken), 120)}" if taken else note


def _unknown(values: Mapping[Any, Any], known: Collection[str] = KNOWN_FIELDS) -> list[str]:
    return sorted(str(key) for key in values if key not in known)


def read_config(path: Path | str) -> dict[str, Any]:
    """The fields of a JSON configuration file.

    Raises:
        ConfigError: the file is missing, is not a JSON object, or has an unknown field.
    """
    try:
        values = read_json(Path(path))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror or str(error) if isinstance(error, OSError) else "It is not UTF-8 text"
        raise ConfigError(
            f"cannot read the configuration '{path}'", f"{why}.", "Give --config the path of a readable JSON file."
        ) from error
    except (ValueError, RecursionError) as error:  # the latter from brackets nested a thousand deep
        raise ConfigError(
            f"the configuration '{path}' is not valid JSON", str(error), "Correct the file at that line."
        ) from error
    return check_fields(values, f"the configuration '{path}'")
