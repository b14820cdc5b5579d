"""Optimization profiles: the sizes of each part's inputs that an engine is built for."""

from collections.abc import Mapping
from dataclasses import dataclass

from export.artifact.manifest import Manifest
from export.engine.range import MAX_SIZE, Range
from export.errors import OptionError
from madtp.models.config import BlipConfig, ClipConfig
from madtp.models.parts import BATCH, NEW, PAST, SOURCE, TEXT, TEXTS, Part

DEFAULT_BATCH = Range(1, 1, 8)
# Tokens of a text. NLVR2: 40 words at most in the published reader; retrieval pads every text to 35.
DEFAULT_TEXT = {"nlvr": (2, 24, 64), "vqa": (2, 12, 64), "retrieval": (2, 35, 35)}
MAX_PROMPT = 16  # ids, or a third of a text where that is more

Sizes = tuple[int, int, int]  # min, opt, max


@dataclass(frozen=True)
class Written:
    """What a decoder generates or reads per request: texts at once (beams, candidates), ids per text, all included."""

    texts: int
    ids: int


# Captions: 3 beams and 20 ids are usual; answers: 128 candidates of a few ids.
DEFAULT_WRITTEN = {"vqa": Written(128, 17), "caption": Written(8, 41)}
PUBLISHED_WRITTEN = {"vqa": Written(3, 10), "caption": Written(3, 20)}  # what the export's validation runs


def written_sizes(config: BlipConfig | ClipConfig, beams: int | None, max_length: int | None) -> Written | None:
    """What the model's decoder is built for; None for a model without one.

    Raises:
        OptionError: an option for a model without a decoder, less than its published evaluation asks for, or more ids
            than the model has positions.
    """
    given = {"--beams": beams, "--max-length": max_length}
    if isinstance(config, ClipConfig) or config.task not in DEFAULT_WRITTEN:
        for option, value in given.items():
            if value is not None:
                raise OptionError(
                    f"{option} {value} does not apply to {config.task}", "It generates no text.", f"Omit {option}."
                )
        return None
    usual, least = DEFAULT_WRITTEN[config.task], PUBLISHED_WRITTEN[config.task]
    written = Written(usual.texts if beams is None else beams, usual.ids if max_length is None else max_length)
    if written.texts < least.texts or written.texts > MAX_SIZE:
        raise OptionError(
            f"--beams is {beams}",
            f"It has to be {least.texts}, which the published evaluation needs, to {MAX_SIZE}.",
            f"Omit it for {usual.texts}.",
        )
    if max_length is not None and not min(least.ids, config.max_position) <= max_length <= config.max_position:
        raise OptionError(
            f"--max-length is {max_length}",
            f"It has to be {least.ids}, which the published evaluation needs, to {config.max_position}, the model's "
            "positions.",
            f"Omit it for {min(usual.ids, config.max_position)}.",
        )
    return written


def text_range(config: BlipConfig | ClipConfig, given: Range | None) -> Range:
    """Tokens of a text; CLIP's and captioning's is a formality, their texts have one length or none.

    Raises:
        OptionError: more tokens than the model has positions, or fewer than two.
    """
    if isinstance(config, ClipConfig) or config.task == "caption":
        if given is not None:
            raise OptionError(
                f"--text {given} does not apply to {config.task}",
                "Its engines take texts of one length." if isinstance(config, ClipConfig) else "It reads no text.",
                "Omit --text.",
            )
        return Range(1, 1, 1)
    text = given or Range(*(min(size, config.max_position) for size in DEFAULT_TEXT[config.task]))
    if text.max > config.max_position:
        raise OptionError(
            f"--text {text} allows {text.max} tokens",
            f"The model has {config.max_position} positions.",
            f"Use at most {config.max_position}.",
        )
    if text.min < 2:
        raise OptionError(
            f"--text {text} allows one token", "A text has at least its first id and [SEP].", "Use 2 or more."
        )
    return text


def part_sizes(
    task: str, part: Part, batch: Range, text: Range, usual_source: int | None, written: Written | None = None
) -> dict[str, Sizes]:
    """Min, opt and max of every dynamic dimension of a part's inputs.

    Args:
        usual_source: tokens that an encoder usually leaves for the next; None is all of them.
        written: from `written_sizes`; None is the default.
    """
    written = written or DEFAULT_WRITTEN.get(task, Written(3, 3))
    longest = min(written.ids - 1, part.limits.get(PAST, written.ids) + 1)  # the last id is written, not read
    source = text.max if task == "vqa" else part.limits.get(SOURCE, 1)
    return {
        BATCH: (batch.min, batch.opt, batch.max),
        TEXT: (text.min, text.opt, text.max),
        SOURCE: (1, min(usual_source or source, source), source),
        TEXTS: (1, 3, written.texts),
        NEW: (1, 1, min(max(MAX_PROMPT, longest // 3), longest)),
        PAST: (0, longest // 4, longest - 1),
    }


def input_profile(part: Part, sizes: Mapping[str, Sizes]) -> dict[str, list[list[int]]]:
    """Min, opt and max shape of every dynamic input."""
    return {
        spec.name: [spec.sized({name: size[which] for name, size in sizes.items()}) for which in range(3)]
        for spec in part.inputs
        if spec.varies
    }


def batch_and_text(manifest: Manifest) -> tuple[Range, Range]:
    """The ranges of requests and of a text's tokens that an artifact was built for."""
    encoders = [part.profile for part in manifest.parts if part.name != "decoder"]
    batch = Range(*(shape[0] for shape in next(iter(encoders[0].values()))))
    # Without a mask (CLIP's) all texts have one length, and a request's is not it.
    words = next((profile["input_ids"] for profile in encoders if "attention_mask" in profile), None)
    return batch, Range(1, 1, 1) if words is None else Range(*(shape[1] for shape in words))
