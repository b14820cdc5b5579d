"""Checks of what a session is asked with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from export.artifact.manifest import Manifest
from export.engine.range import Range
from madtp.data.texts import shown
from madtp.errors import InputError
from madtp.models.config import MAX_TEMPERATURE


def spans(count: int, size: int, what: str) -> list[tuple[int, int]]:
    """Begin and end of batches of `size`; the last one may be smaller. Nothing to cut is an InputError."""
    if not count:
        raise InputError(f"there are 0 {what}", fix="Give at least one.")
    return [(begin, min(begin + size, count)) for begin in range(0, count, size)]


def check_whole(numbers: Mapping[str, object]) -> None:
    """Refuse a number, by its name, that is not a whole one; None is not given."""
    for name, number in numbers.items():
        if number is not None and not hasattr(number, "__index__"):
            raise InputError(f"{name} is {shown(number)}", "It must be a whole number.")


def check_temperature(temperature: float) -> float:
    """The temperature, if it is one."""
    if not hasattr(temperature, "__float__") or not 0 <= temperature <= MAX_TEMPERATURE:
        raise InputError(
            f"the temperature is {temperature}",
            "It must be a finite number, zero or more.",
            "Use 0 for the dense model.",
        )
    return float(temperature)


def check_batch(batch: int | None, built: Range, name: str, default: int = 1) -> int:
    """Requests per batch, `default` where none are given, if an artifact `built` for a range of batches takes so
    many."""
    if batch is None:
        return default
    if not 1 <= batch <= built.max:
        raise InputError(
            f"{name} is {batch}",
            f"The artifact takes up to {built.max} requests at a time.",
            f"Choose another number, or export again with --batch 1:{built.opt}:N." if batch > 1 else "",
        )
    return batch


def check_images(images: Sequence[Any]) -> Sequence[Any]:
    """The images, if they are a sequence."""
    if isinstance(images, Image.Image):
        raise InputError("the images are one image", "They have to be a list.", "Give [image].")
    if isinstance(images, Mapping) or not hasattr(images, "__len__") or not hasattr(images, "__getitem__"):
        raise InputError(
            "the images are not a list", f"They are of type {type(images).__name__}.", "Give list(images)."
        )
    return images


def check_texts(texts: Sequence[Any], name: str) -> Sequence[str]:
    """The texts, which messages call `name`, if they are a list of strings and not empty."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise InputError(f"the {name} are not a list of texts", fix=f"Give {name} as a list of str.")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            why = f"Counted from 0, number {number} is {shown(text)}, of the type {type(text).__name__}."
            raise InputError(f"the {name} are not a list of texts", why, f"Give {name} as a list of str.")
    if not texts:
        raise InputError(f"there are no {name}", fix="Give at least one.")
    return texts


@dataclass(frozen=True)
class DecoderLimits:
    """What a decoder was built for.

    Attributes:
        texts: beams or candidates at once.
        prompt: ids of a prompt.
        ids: ids of a whole text.
    """

    texts: int
    prompt: int
    ids: int

    @classmethod
    def read(cls, manifest: Manifest) -> "DecoderLimits":
        """Those of an artifact that has a decoder."""
        profile = next(part.profile for part in manifest.parts if part.name == "decoder")
        _, texts, prompt = profile["input_ids"].max
        return cls(texts, prompt, profile["past"].max[5] + 2)  # the last id is only written, the one before it is new

    def check(self, texts: int, name: str, prompt: int, ids: int, source: str = "") -> None:
        """Refuse `texts` at once, which messages call `name`, or ids of a prompt or text, that exceed these limits."""
        for what, asked, most, fix in (
            (name, texts, self.texts, f"--beams {texts}"),
            ("ids of a prompt", prompt, self.prompt, f"--max-length {3 * prompt + 1}"),
            ("ids of a text", ids, self.ids, f"--max-length {ids}"),
        ):
            if not 1 <= asked <= most:
                raise InputError(
                    f"{asked} {what} were asked for{source}",
                    f"The artifact's decoder was built for 1 to {most}.",
                    f"Ask for fewer, or export again with {fix}." if asked > most else "Ask for one at least.",
                )

    def check_candidates(self, candidates: Sequence[str], ids: Sequence[Sequence[int]]) -> None:
        """Refuse a candidate that has no words, or more ids than these limits."""
        lengths = [len(row) for row in ids]
        if min(lengths) <= 2:  # [DEC] and [SEP]
            number = lengths.index(min(lengths))
            raise InputError(
                f"candidate {number}, {shown(candidates[number])}, has no words",
                "Nothing is left of it as the model reads it.",
                "Leave it out.",
            )
        number = lengths.index(max(lengths))
        self.check(1, "candidates", 1, max(lengths), f", by candidate {number}, {shown(candidates[number])}")
