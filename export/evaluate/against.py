"""The answers of an evaluation beside those of an earlier one, e.g. of another precision."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.errors import OptionError
from madtp.files.inputs import read_json

MAY_DIFFER = ("artifacts", "op_library")  # of what answers depend on: it is what is compared


@dataclass(frozen=True)
class Earlier:
    """A result of `python -m export evaluate` to compare with."""

    path: Path
    results: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> "Earlier":
        """Read results.json of an earlier run.

        Raises:
            OptionError: it cannot be read, or is none.
        """
        try:
            results = read_json(path)
        except (OSError, ValueError, RecursionError) as error:
            raise OptionError(f"cannot read --against '{path}'", str(error)) from error
        known = isinstance(results, dict) and {"identity", "answers", "mean_tokens"} <= results.keys()
        if not known or not isinstance(results["identity"], dict):
            raise OptionError(f"--against '{path}' is no result of evaluate", fix="Name a results.json.")
        return cls(path, results)

    def check(self, identity: Mapping[str, Any]) -> None:
        """Refuse results of other data, of another checkpoint, or at other settings.

        Raises:
            OptionError: saying what differs.
        """
        before = self.results["identity"]
        names = [name for name in identity if name not in MAY_DIFFER and before.get(name) != identity[name]]
        if names:
            raise OptionError(
                f"--against '{self.path}' does not compare with this run",
                f"It has another {' and another '.join(name.replace('_', ' ') for name in names)}.",
                "Evaluate both artifacts of one checkpoint with the same options.",
            )

    def agreement(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """How many answers are the same, and how many more tokens there are, in percent by encoder.

        Raises:
            OptionError: the file's answers are not those of such an evaluation.
        """
        try:
            pairs = list(zip(decided(self.results["answers"]), decided(results["answers"]), strict=True))
            more = {
                encoder: round(100 * (sum(layers) / sum(self.results["mean_tokens"][encoder]) - 1), 2)
                for encoder, layers in results["mean_tokens"].items()
            }
        except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
            raise OptionError(f"--against '{self.path}' is malformed", fix="Evaluate that artifact again.") from error
        return {
            "path": str(self.path),
            "precision": self.results.get("precision"),
            "answers": len(pairs),
            "equal": sum(left == right for left, right in pairs),
            "tokens_percent": more,
        }


def decided(answers: Any) -> list[Any]:
    """What each answer comes to: without probabilities, and of a ranking the first."""
    if isinstance(answers, dict):  # of retrieval and clip
        return [entry["texts"][0] for entry in answers["images"]] + [entry["images"][0] for entry in answers["texts"]]
    return [entry["caption"] if "caption" in entry else entry["answer"] for entry in answers]
