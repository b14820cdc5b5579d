"""Token counts request by request: what each layer keeps of a request that is alone, all layers together.

Layers depend on each other, and a batch needs the sum over its requests, so a histogram of each layer is not enough.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from calibration.tokens import SAVE_EVERY, Source, partial_path
from madtp.errors import CapacityError, OutputError
from madtp.files.outputs import json_kind, write_output
from madtp.files.versioned import read_versioned
from madtp.models.config import BlipConfig, ClipConfig
from madtp.models.parts import Part
from madtp.tasks.requests import count_tokens, torch_runners

SCHEMA_VERSION = 1
PARTIAL = json_kind("a partial file of token counts", "schema", "checkpoint_sha256", "sequences", "rows")
ANEW = "Delete the file to begin anew, or name another output."


@dataclass
class RequestCounts:
    """Rows that requests keep, each alone.

    Attributes:
        sequences: by encoder, those of one request (NLVR's image encoder has two).
        rows: by encoder, for every request its tokens after each layer, summed over its sequences.
        longest_text: most ids of a request's text, 0 if there are none.
    """

    source: Source
    sequences: dict[str, int] = field(default_factory=dict)
    rows: dict[str, list[list[int]]] = field(default_factory=dict)
    longest_text: int = 0

    @property
    def samples(self) -> int:
        """Requests so far."""
        return max((len(rows) for rows in self.rows.values()), default=0)

    def add(self, counts: Mapping[str, Tensor], text: int) -> None:
        """Add one request: counts by encoder, [sequences, layers] int32, and the ids of its text."""
        for encoder, tokens in counts.items():
            self.sequences[encoder] = len(tokens)
            self.rows.setdefault(encoder, []).append(tokens.sum(dim=0).tolist())
        self.longest_text = max(self.longest_text, text)

    def of(self, encoders: Sequence[str]) -> NDArray[np.int64]:
        """[samples, layers] of several encoders side by side."""
        return np.concatenate([np.array(self.rows[encoder], dtype=np.int64) for encoder in encoders], axis=1)

    def to_json(self) -> dict[str, Any]:
        """Content of a partial file."""
        return {
            "schema": SCHEMA_VERSION,
            **asdict(self.source),
            "sequences": self.sequences,
            "rows": self.rows,
            "longest_text": self.longest_text,
        }


def collect_counts(
    config: BlipConfig | ClipConfig,
    parts: Mapping[str, Part],
    requests: Sequence[Callable[[], Mapping[str, Tensor]]],
    source: Source,
    path: Path,
    on_sample: Callable[[int], None] = lambda _: None,
) -> RequestCounts:
    """Counts of requests (inputs of `run_request`, batch 1 each) at the source's temperature.

    They are in `<path>.part` beside the output `path`, from which a run that was cut short goes on; whoever has written
    the output removes that file.

    Raises:
        CapacityError: the partial file is of something else.
        OutputError: the partial file cannot be written.
    """
    partial, runners = partial_path(path), torch_runners(parts)
    counts = _resume(partial, source, len(requests))
    on_sample(counts.samples)
    try:
        while counts.samples < len(requests):
            inputs = requests[counts.samples]()
            ids = inputs.get("input_ids")
            tokens = count_tokens(config, runners, inputs, source.temperature)
            counts.add(tokens, 0 if ids is None else ids.shape[1])
            on_sample(counts.samples)
            if counts.samples % SAVE_EVERY == 0:
                with suppress(OutputError):  # raised at the end, if there is no room then either
                    write_partial(counts, partial)
    finally:  # whatever follows may be asked for in another way
        if counts.samples:
            write_partial(counts, partial)
    return counts


def write_partial(counts: RequestCounts, partial: Path) -> None:
    """Write what was counted so far."""
    write_output(partial, json.dumps(counts.to_json()) + "\n", PARTIAL)


def _resume(partial: Path, source: Source, available: int) -> RequestCounts:
    if not partial.exists():
        return RequestCounts(source)
    content = read_versioned(partial, "the partial token counts", (SCHEMA_VERSION,), CapacityError, ANEW)
    try:
        counts = RequestCounts(
            Source.from_json(content),
            {str(encoder): int(number) for encoder, number in content["sequences"].items()},
            {
                str(encoder): [[int(count) for count in request] for request in requests]
                for encoder, requests in content["rows"].items()
            },
            int(content["longest_text"]),
        )
        shapes = {np.array(requests).shape[:1] for requests in counts.rows.values()}  # raises for ragged ones
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CapacityError(f"the partial token counts '{partial}' are malformed", repr(error), ANEW) from error
    if len(shapes) != 1 or counts.sequences.keys() != counts.rows.keys():
        raise CapacityError(
            f"the partial token counts '{partial}' contradict themselves", "Encoders differ in their requests.", ANEW
        )
    if counts.source != source or counts.samples > available:
        raise CapacityError(
            f"the partial token counts '{partial}' are of something else",
            f"They are of checkpoint {counts.source.checkpoint_sha256[:16]}... at temperature "
            f"{counts.source.temperature:g} and of {counts.source.data}.",
            ANEW,
        )
    return counts
