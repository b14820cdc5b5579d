"""What the command writes: a checkpoint, its vocabulary, and a folder of samples, all of it or nothing."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from madtp.demo import vocab_path
from madtp.errors import OutputError
from madtp.preprocess import Sample


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A hidden folder inside `folder`: its files move to their place there at the end of the block.

    They replace earlier ones; a block that raises leaves those as they were.

    Raises:
        OutputError: `folder` cannot be made or written to.
    """
    created = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".demo-", dir=folder) as stage:
            yield Path(stage)
            for path in sorted(path for path in Path(stage).rglob("*") if path.is_file()):
                target = folder / path.relative_to(stage)
                target.parent.mkdir(exist_ok=True)
                os.replace(path, target)
    except OSError as error:
        raise OutputError(
            f"cannot write into '{folder}'", error.strerror or str(error), "Name another folder with --out."
        ) from error
    finally:
        if created:
            with suppress(OSError):  # it stays unless it is empty
                folder.rmdir()


def write_samples(samples: Sequence[Sample], folder: Path, vocabulary: Path | None = None) -> None:
    """Write `samples` as `python -m export --samples` reads them: samples.json, PNG files and vocab.txt.

    A sample of two images is an entry of NLVR, one of a single image a caption's. `vocabulary` defaults to NLVR's.
    """
    folder.mkdir()
    entries: list[dict[str, str | list[str] | None]] = []
    for number, sample in enumerate(samples):
        pair = len(sample.images) > 1
        names = [f"{number}-left.png", f"{number}-right.png"] if pair else [f"{number}.png"]
        for name, image in zip(names, sample.images, strict=True):
            image.save(folder / name)
        if pair:
            entries.append({"sentence": sample.text, "label": str(sample.label), "images": names})
        else:
            entries.append({"caption": sample.text, "image": names[0]})
    (folder / "samples.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(vocabulary or vocab_path(), folder / "vocab.txt")
