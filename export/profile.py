"""How large the inputs of each part may be: the optimisation profile that an engine is built for."""

from collections.abc import Mapping
from typing import Any

from export.errors import OptionError
from export.options import Range
from madtp.config import BlipConfig, ClipConfig
from madtp.parts import BATCH, NEW, PAST, SOURCE, TEXT, TEXTS, Part

DEFAULT_BATCH = Range(1, 1, 8)
# Tokens of a text. NLVR2: 40 words at most in the published reader; retrieval pads every text to 35.
DEFAULT_TEXT = {"nlvr": (2, 24, 64), "vqa": (2, 12, 64), "retrieval": (2, 35, 35)}
# What a decoder is asked for. Captions: 3 beams and 20 ids are usual; answers: 128 candidates of a few ids.
MAX_BEAMS = 8
MAX_CANDIDATES = 128
MAX_CAPTION = 40  # ids, prompt included
MAX_ANSWER = 16
MAX_PROMPT = 16

Sizes = tuple[int, int, int]  # least, usual, largest


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
                "Leave --text out.",
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


def part_sizes(task: str, part: Part, batch: Range, text: Range, usual_source: int | None) -> dict[str, Sizes]:
    """What each dimension of a part's inputs may be.

    Args:
        task: of the model.
        part: of the model.
        batch: requests.
        text: tokens of a text.
        usual_source: tokens that an encoder usually leaves for what follows; None is all of them.
    """
    generates = task == "caption"
    longest = min(MAX_CAPTION if generates else MAX_ANSWER, part.limits.get(PAST, MAX_CAPTION) + 1)
    source = text.max if task == "vqa" else part.limits.get(SOURCE, 1)
    return {
        BATCH: (batch.min, batch.opt, batch.max),
        TEXT: (text.min, text.opt, text.max),
        SOURCE: (1, min(usual_source or source, source), source),
        TEXTS: (1, 3, MAX_BEAMS) if generates else (1, 3, MAX_CANDIDATES),
        NEW: (1, 1, min(MAX_PROMPT, longest)),
        PAST: (0, longest // 4, longest - 1),
    }


def input_profile(part: Part, sizes: Mapping[str, Sizes]) -> dict[str, list[list[int]]]:
    """Least, usual and largest shape of every input that varies."""
    return {
        spec.name: [spec.sized({name: size[which] for name, size in sizes.items()}) for which in range(3)]
        for spec in part.inputs
        if spec.varies
    }


def batch_and_text(parts: list[dict[str, Any]]) -> tuple[Range, Range]:
    """The ranges of requests and of a text's tokens that a manifest's parts were built for."""
    encoders = [part["profile"] for part in parts if part["name"] != "decoder"]
    batch = Range(*(shape[0] for shape in next(iter(encoders[0].values()))))
    # Without a mask (CLIP's) all texts have one length, and a request's is not it.
    words = next((profile["input_ids"] for profile in encoders if "attention_mask" in profile), None)
    return batch, Range(1, 1, 1) if words is None else Range(*(shape[1] for shape in words))
