"""`python -m madtp.demo.default_samples`: write the library's samples for nlvr, in `madtp/data/defaults`."""

import json

from PIL import Image

from madtp.data.default_samples import DIGIT_SIZE, DIGITS, STATEMENTS
from madtp.data.preprocess import Sample
from madtp.demo.data import held_out_samples

FIRST = 16  # what an export validates on
COUNT = 24  # what a bench measures on


def default_samples() -> list[Sample]:
    """COUNT samples, all different. A draw depends on its number, so that the first ones are a draw of their own."""
    return held_out_samples(FIRST) + held_out_samples(COUNT)[FIRST:]


def main() -> None:
    """Write both files."""
    samples = default_samples()
    rows = Image.new("RGB", (COUNT * DIGIT_SIZE, 2 * DIGIT_SIZE))
    for number, sample in enumerate(samples):
        for row, image in enumerate(sample.images):
            rows.paste(image, (number * DIGIT_SIZE, row * DIGIT_SIZE))
    rows.save(DIGITS, optimize=True)
    entries = [{"sentence": sample.text, "label": sample.label} for sample in samples]
    STATEMENTS.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
