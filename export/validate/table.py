"""What a person sees of a verdict."""

from rich.table import Table

from export.validate.comparator import PairResult
from export.validate.result import ValidationResult

SHOWN = 8  # failures


def result_table(verdict: ValidationResult, title: str) -> Table:
    """A section for every pair and temperature: a row for each output, and one for the kept tokens."""
    table = Table(title=title, caption=f"compared on {verdict.samples['origin']}")
    table.add_column("compared", overflow="fold")  # in a narrow terminal too, no name or number is cut
    for name in ("worst |difference|", "mean", "cosine", "error (allowed)", "equal"):
        table.add_column(name, justify="right", overflow="fold")
    for result in verdict.results:
        table.add_row(f"{result.pair} at {result.temperature:g}", style="bold")
        for output in result.outputs.values():
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
        table.add_row(*_tokens_row(result))
        table.add_section()
    return table


def _tokens_row(result: PairResult) -> tuple[str, ...]:
    layers = result.selection.layers
    least = [min(layer.jaccards) for layer in layers if layer.jaccards]
    compared = f"kept tokens (least Jaccard {min(least):.3f})" if least else "token counts"
    left_out = f", {result.explained} of {result.requests} requests left out" if result.explained else ""
    equal = f"{result.selection.layers_equal}/{len(layers)} layers{left_out}"
    # Where no row has failed and yet all of it has, nothing was run or compared to the end.
    elsewhere = any(output.failures for output in result.outputs.values())
    passed = result.selection.passed and (result.passed or elsewhere)
    return (compared, "", "", "", "passed" if passed else "FAILED", equal)


def result_lines(verdict: ValidationResult) -> list[str]:
    """What a table cannot say, one line each; the verdict last."""
    lines = [f"changed since the export: {', '.join(verdict.changed)}"] if verdict.changed else []
    if verdict.samples["kind"] == "demo":
        lines.append("the images are the demo's, real but maybe unlike yours: name your own with --samples or --data")
    if verdict.samples["words"] == "hashed":
        lines.append("the words were only hashed to ids, which mean nothing to the model: no vocabulary fits")
    if verdict.samples["kind"] == "synthetic":
        lines.append("compared on generated inputs: they say nothing about the tokens that real images keep")
    explained = sum(result.explained for result in verdict.results)
    if explained:
        requests = sum(result.requests for result in verdict.results)
        lines.append(
            f"{explained} of {requests} requests were left out: within rounding of a threshold, both choices are right"
        )
    lines += _dependence_lines(verdict)
    if verdict.runs_plan is False:
        lines.append("the plan was not run: no GPU here can execute it; ONNX traced from the checkpoint was compared")
    lines += verdict.notes
    failures = verdict.failures
    lines += failures[:SHOWN]
    if len(failures) > SHOWN:
        lines.append(f"and {len(failures) - SHOWN} more failures")
    lines += [line for line in (verdict.bisected, verdict.repro) if line]
    status = {"passed": "passed", "failed": "FAILED", "not run": "passed as far as it could be run; the plan: not run"}
    return [*lines, f"validation {status[verdict.artifact_status]}"]


def _dependence_lines(verdict: ValidationResult) -> list[str]:
    lines = []
    for mates in ("ordinary", "hostile"):
        found = [entry for entry in verdict.dependences if entry.mates == mates and entry.contestant == "torch"]
        if found:
            slots, tokens, answers = (
                sum(getattr(entry, name) for entry in found) for name in ("slots", "tokens", "answers")
            )
            lines.append(
                f"among {mates} batch mates torch itself keeps another number of tokens in {tokens} and gives another "
                f"answer or value in {answers} of {slots} batches than alone (one K serves a batch)"
            )
    return lines
