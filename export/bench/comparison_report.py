"""The output of a comparison: tables, sentences, JSON, Markdown."""

import datetime
from dataclasses import asdict
from typing import Any

from rich.table import Table

from export.bench.artifact import identity
from export.bench.calls import Case
from export.bench.comparison import Compared, Comparison, Speed
from export.bench.latency import summarize
from export.bench.report import INTERVAL, MARK, machine_lines, table_of
from export.bench.summary import finite
from export.bench.words import milliseconds, ratio
from madtp.errors import printable
from madtp.files.outputs import Kind, json_kind

SCHEMA_VERSION = 1
COMPARISON: Kind = json_kind("a comparison of bench", "schema", "partial", "created", "compared", "samples", "machine")
COLUMNS = (
    *("", "precision", "MB", "p50", "p90", "p99", "first / this"),
    *("equal answers", "tokens", "equal layers", "Jaccard"),
)


def rows(comparison: Comparison, case: Case) -> list[list[str]]:
    """What the tables say of a case: a row for every artifact, with COLUMNS."""
    found = []
    for compared in comparison.compared:
        entry, first = compared.cases[case], compared is comparison.first
        latency, agreed = summarize(entry.series.milliseconds), entry.agreement
        more = agreed.tokens / comparison.first.cases[case].agreement.tokens - 1
        found.append(
            [
                compared.name,
                compared.precision,
                f"{compared.size / 1e6:.1f}",
                *map(milliseconds, (latency.p50, latency.p90, latency.p99)),
                "" if first else ratio(entry.speed_up, entry.speed != Speed.UNDECIDED),
                "" if first else f"{agreed.equal} of {agreed.requests}",
                f"{agreed.tokens:.1f}" + ("" if first else f" ({100 * more:+.1f} %)"),
                "" if first else f"{100 * agreed.layers_equal:.0f} %",
                "" if first or agreed.jaccard is None else f"{agreed.jaccard:.3f}",
            ]
        )
    return found


def heading(comparison: Comparison, case: Case) -> str:
    """The title of a case's table."""
    return f"{case}: milliseconds per call; answers and tokens against {comparison.first.name}"


def explanation(comparison: Comparison) -> str:
    """What the columns are."""
    measurement = comparison.measurement
    rounds = len(next(iter(measurement.cases.values())).milliseconds)
    return (
        f"{measurement.samples['origin']}; {rounds} rounds, ended by: {measurement.ended}; first / this: {INTERVAL}; "
        "tokens: of a request, summed over sequences and layers; equal layers: share with as many tokens; "
        "Jaccard: of kept tokens"
    )


def tables(comparison: Comparison) -> list[Table]:
    """A table for every case."""
    *cases, last = comparison.cases
    under = {last: explanation(comparison)}
    return [
        table_of(heading(comparison, case), COLUMNS, rows(comparison, case), under.get(case)) for case in (*cases, last)
    ]


def sentences(comparison: Comparison) -> list[str]:
    """For every artifact but the first, whether it is faster here, and its size."""
    return [_sentence(compared, comparison.first) for compared in comparison.compared[1:]]


def _sentence(compared: Compared, first: Compared) -> str:
    said = []
    for speed in Speed:
        cases = {case: entry.speed_up for case, entry in compared.cases.items() if entry.speed == speed}
        if cases:
            decided = speed != Speed.UNDECIDED
            numbers = [f"{case} {ratio(speed_up, True)}" if decided else str(case) for case, speed_up in cases.items()]
            said.append(f"{speed}: {', '.join(numbers)}")
    size = f"{compared.size / first.size:.2f}x the size of {first.name}"
    return f"{compared.name} ({compared.precision}): {'; '.join([*said, size])}"


def lines(comparison: Comparison) -> list[str]:
    """Machine, notes, and a sentence for every artifact, a line each."""
    measurement = comparison.measurement
    notes = [f"note: {note}" for note in measurement.caveats]
    state = ["interrupted: measuring had not ended"] if measurement.partial else []
    return [*machine_lines(measurement), *_executions(comparison), *notes, *state, *sentences(comparison)]


def _executions(comparison: Comparison) -> list[str]:
    """How each artifact ran, a line for all that ran alike; none for plans."""
    names: dict[str, list[str]] = {}
    for compared in comparison.compared:
        if compared.execution is not None:
            names.setdefault(str(compared.execution), []).append(compared.name)
    return [f"{', '.join(alike)}: {execution}" for execution, alike in names.items()]


def markdown(comparison: Comparison) -> str:
    """The tables for a pull request."""
    parts = [f"**Comparison with `{comparison.first.name}`**\n{MARK}"]
    for case in comparison.cases:
        table = [list(COLUMNS), ["---"] * len(COLUMNS), *rows(comparison, case)]
        parts.append(f"{heading(comparison, case)}\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in table))
    parts.append("\n".join(f"- {line}" for line in (explanation(comparison), *lines(comparison))))
    return printable("\n\n".join(parts) + "\n")


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Everything, all latencies included; unknown numbers are null."""
    measurement = comparison.measurement
    common = measurement.to_json()
    return {
        "schema": SCHEMA_VERSION,
        "partial": measurement.partial,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **{name: common[name] for name in ("samples", "machine", "before", "after", "warm_up", "ended", "neighbours")},
        "caveats": measurement.caveats,
        "compared": [_entry(compared) for compared in comparison.compared],
        "said": sentences(comparison),
    }


def _entry(compared: Compared) -> dict[str, Any]:
    return {
        "name": compared.name,
        **identity(compared.artifact),
        "bytes": compared.size,
        "execution": None if compared.execution is None else compared.execution.to_json(),
        "cases": [
            {
                **asdict(case),
                "latency": asdict(summarize(entry.series.milliseconds)),
                "speed_up": finite(asdict(entry.speed_up)),
                "speed": entry.speed.value,
                **asdict(entry.agreement),
                "milliseconds": entry.series.milliseconds,
                "waited_milliseconds": entry.series.waited,
            }
            for case, entry in compared.cases.items()
        ],
    }
