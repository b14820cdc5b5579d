"""Keeps results of the kit: `python -m benchmarks.kit.status RESULTS_DIR` copies them into benchmarks/results/ and
writes the runs into docs/gpu-status.md.
"""

import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from benchmarks.gpu.markdown import table
from benchmarks.kit.files import read_json, write_text
from madtp.errors import InputError, MadtpError

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "gpu-status.md"
BEGIN, END = "<!-- written by python -m benchmarks.kit.status -->", "<!-- until here -->"
FILES = ("results.json", "results.md")


def keep(results: Path) -> Path:
    """Copy the results of a run on a GPU to where they are kept, and return that folder.

    Raises:
        InputError: they are missing, or of a rehearsal.
    """
    content = read_json(results / "results.json")
    if content is None:
        raise InputError(f"'{results}' holds no results.json", "", "Name the folder that run.sh was given.")
    gpu = next((stage["result"]["gpu"] for stage in content["stages"] if "gpu" in (stage["result"] or {})), None)
    if content["rehearsal"] or gpu is None:
        raise InputError(
            f"the results in '{results}' are not of a GPU", "A rehearsal shows nothing of one.", "Run the kit on a GPU."
        )
    name = re.sub(r"[^a-z0-9]+", "-", gpu["name"].lower()).strip("-")
    target = KEPT / f"{name}-{content['began'][:10]}"
    if read_json(target / "results.json") not in (None, content):  # another run of that day
        target = KEPT / f"{target.name}-{content['began'][11:16].replace(':', '')}"
    target.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        shutil.copyfile(results / file, target / file)
    return target


def section(runs: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """Return the part of the page about every kept run, given as (name of its folder, results.json)."""
    rows = []
    for folder, content in runs:
        states = [f"{stage['name']} {stage['state']}" for stage in content["stages"] if stage["state"] != "passed"]
        passed = sum(stage["state"] == "passed" for stage in content["stages"])
        link = f"[{folder}](../benchmarks/results/{folder}/results.md)"
        sources = (content.get("kit") or {}).get("commit", "?")
        rows.append((link, sources, f"{passed}/{len(content['stages'])}", "; ".join(states) or "none"))
    header = ("run", "sources", "stages passed", "others")
    return table(header, rows) if rows else "The kit has not run on a GPU yet."


def kept_runs() -> list[tuple[str, Any]]:
    """Read the runs in benchmarks/results, by name."""
    files = sorted(KEPT.glob("*/results.json"))
    return [(file.parent.name, read_json(file)) for file in files]


def updated(page: str) -> str:
    """Return the page with its section rewritten."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{section(kept_runs())}\n\n{END}{after}"


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
def main(results: Path) -> None:
    """Keep the results of a run on a GPU, and write docs/gpu-status.md."""
    try:
        target = keep(results)
    except MadtpError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    write_text(PAGE, updated(PAGE.read_text(encoding="utf-8")))
    click.echo(f"{target}, {PAGE}")


if __name__ == "__main__":
    main()
