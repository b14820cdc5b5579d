"""The table and the lines that show the result of a validation."""

from rich.table import Table

from export.runtime.execution import Execution
from export.validate.comparator import PairResult
from export.validate.result import ValidationResult

SHOWN = 8  # failures


def result_table(result: ValidationResult, title: str) -> Table:
    """A section for every pair and temperature: a row for each output, and one for the kept tokens."""
    table = Table(title=title, caption=f"samples: {result.samples.origin}")
    table.add_column("compared", overflow="fold")  # in a narrow terminal too, no name or number is cut
    for name in ("max |difference|", "mean", "cosine", "error (allowed)", "equal"):
        table.add_column(name, justify="right", overflow="fold")
    for pair in result.pairs:
        table.add_row(f"{pair.pair} at {pair.temperature:g}", style="bold")
        for output in pair.outputs.values():
            floats = output.cosine is not None
            judged = [f"{output.error:.1e} ({output.allowed:.0e})"] if floats else []
            judged += ["FAILED"] if output.failures else []
            table.add_row(
                output.output,
                f"{output.worst:.1e}" if floats else "",
                f"{output.mean:.1e}" if floats else "",
                f"{output.cosine:.6f}" if floats else "",
                "\n".join(judged),
                f"{output.decided}/{output.decisions}" if output.decisions else "",
            )
        table.add_row(*_tokens_row(pair))
        table.add_section()
    return table


def _tokens_row(pair: PairResult) -> tuple[str, ...]:
    layers = pair.selection.layers
    least = [min(layer.jaccards) for layer in layers if layer.jaccards]
    compared = f"kept tokens (min Jaccard {min(least):.3f})" if least else "token counts"
    excluded = f", {pair.excluded} of {pair.requests} requests excluded" if pair.excluded else ""
    equal = f"{pair.selection.layers_equal}/{len(layers)} layers{excluded}"
    # Where no row has failed and yet all of it has, nothing was run or compared to the end.
    elsewhere = any(output.failures for output in pair.outputs.values())
    passed = pair.selection.passed and (pair.passed or elsewhere)
    return (compared, "", "", "", "passed" if passed else "FAILED", equal)


def result_lines(result: ValidationResult) -> list[str]:
    """What a table cannot say, one line each; whether it passed last."""
    lines = [f"changed since the export: {', '.join(result.changed)}"] if result.changed else []
    if result.samples.kind == "demo":
        lines.append("samples are the demo's: real images, but maybe unlike yours; name yours with --samples or --data")
    if result.samples.words == "hashed":
        lines.append("words were hashed to ids that mean nothing to the model: no vocabulary fits")
    if result.samples.kind == "synthetic":
        lines.append("samples are synthetic: they say nothing about the tokens that real images keep")
    excluded = sum(pair.excluded for pair in result.pairs)
    if excluded:
        requests = sum(pair.requests for pair in result.pairs)
        lines.append(f"{excluded} of {requests} requests excluded: a score within rounding of the threshold")
    lines += [f"{pair.pair} at {pair.temperature:g}: {pair.cost}" for pair in result.pairs if pair.cost is not None]
    lines += _invariance_lines(result)
    if result.execution is not None:
        lines.append(_execution_line(result.execution))
    if result.runs_plan is False:
        lines.append("the plan was not run: no GPU here can run it; compared ONNX traced from the checkpoint")
    lines += result.notes
    failures = result.failures
    lines += failures[:SHOWN]
    if len(failures) > SHOWN:
        lines.append(f"and {len(failures) - SHOWN} more failures")
    lines += result.bisection_lines
    status = {"passed": "passed", "failed": "FAILED", "not run": "passed as far as it could be run; the plan: not run"}
    return [*lines, f"validation {status[result.artifact_status]}"]


def _execution_line(execution: Execution) -> str:
    if execution.library is None:
        return f"the file was run as {execution}"
    return f"onnx: function bodies; kernels: the same file on {execution} (sha256 {execution.library.sha256:.12})"


def _invariance_lines(result: ValidationResult) -> list[str]:
    lines = []
    for others in ("ordinary", "hostile"):
        is_packed = result.layout == "packed"  # torch runs every request alone
        found = [
            entry
            for entry in result.batch_invariance
            if entry.others == others and (entry.runner == "torch") != is_packed
        ]
        if found and not is_packed:
            slots, tokens, answers = (
                sum(getattr(entry, name) for entry in found) for name in ("slots", "tokens", "answers")
            )
            lines.append(
                f"batch invariance among {others} requests: torch itself has other token counts in {tokens} and gives "
                f"other answers or values in {answers} of {slots} batches than alone (one K serves the batch)"
            )
        elif found:
            runners = list(dict.fromkeys(entry.runner for entry in found))
            lines.append(
                f"batch invariance among {others} requests: {', '.join(runners)} gave in {sum(e.slots for e in found)} "
                f"batches what the request gives alone, but for {sum(e.tokens for e in found)} token counts and "
                f"{sum(e.answers for e in found)} answers or values"
            )
    return lines
