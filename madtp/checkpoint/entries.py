"""Which entry of a checkpoint holds the weights, and what training frameworks put around it and before its keys."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from madtp.checkpoint.format import SAVE
from madtp.errors import CheckpointError, listing, shorten

DEEPEST = 3  # dictionaries within dictionaries that are looked through
# Entries that hold the weights, where several could: MADTP's, PyTorch Lightning's, tutorials', DeepSpeed's.
USUAL = ("model", "state_dict", "model_state_dict", "module")
# Wrappers around a module or a part of it, which add a step to its keys: DDP, torch.compile, FSDP, checkpointing.
WRAPPERS = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_fpw_module"}
)
# Where the names of a model begin, whatever stands before them.
_ROOT = re.compile(
    r"((?:[^.]+\.)*?)(?:visual_encoder\.|text_encoder\.|text_decoder\.|space_dict$"
    r"|visual\.(?:conv1|class_embedding|positional_embedding|transformer)\b)"
)


@dataclass(frozen=True)
class Entries:
    """What a checkpoint holds.

    Attributes:
        state: the weights, under the names that the model has.
        others: entries beside them: epoch, temperature, config, ...
        notes: what was read in another way than official checkpoints ask for, a sentence each.
    """

    state: dict[str, Any]
    others: Mapping[Any, Any]
    notes: list[str] = field(default_factory=list)


def find_entries(content: Any, path: object) -> Entries:
    """The weights in what a file holds.

    Raises:
        CheckpointError: there are none, or several and none under a usual name.
    """
    if not isinstance(content, dict):
        raise _without_model(path, f"It holds a {type(content).__name__}")
    names, state, rest = _choose(content, path)
    if not all(isinstance(key, str) for key in state):
        raise CheckpointError(
            f"the {_quoted(names)} entry of '{path}' has keys that are not strings",
            "A state dict maps names to tensors.",
            SAVE,
        )
    others: dict[Any, Any] = {}
    inner: Any = content
    for name in names:
        others |= inner
        inner = inner[name]
    notes = [f"the weights in its entry {_quoted(other)} were left aside" for other in rest[:8]]
    if not names:
        others = {key: value for key, value in content.items() if key in ("temperature", "epoch", "config")}
        state = {key: value for key, value in state.items() if key not in others}
        notes.append("it holds the weights alone, not in a 'model' entry")
    elif names != ("model",):
        notes.append(f"its weights were read from the entry {_quoted(names)}")
    named, removed = _unwrap(state, path)
    if removed:
        notes.append(f"its keys were read without {listing(removed)}")
    return Entries(named, others, notes)


Names = tuple[Any, ...]  # keys that lead to an entry, outermost first; none lead to the file itself


def _choose(content: dict[Any, Any], path: object) -> tuple[Names, dict[Any, Any], list[Names]]:
    """Where the weights are, the weights, and where there are others of the kind."""
    found = dict(_states(content, ()))
    known = [names for names in found if any(map(_belongs, found[names]))]
    own = content.get("model")
    if isinstance(own, dict) and (("model",) in found or not found):
        return ("model",), own, [names for names in known if names != ("model",)]
    usual = [names for name in USUAL for names in known if names and names[-1] == name]
    if len(known) > 1 and not usual:
        raise CheckpointError(
            f"the checkpoint '{path}' holds several sets of weights",
            f"They are in {', '.join(map(_quoted, known[:8]))}.",
            f"Save the one that was trained as its 'model' entry: torch.save({{'model': content[{known[0][0]!r:.60}], "
            "'temperature': ...}, 'new.pt').",
        )
    chosen = next(iter(usual or known or found), None)
    if chosen is not None:
        return chosen, found[chosen], [names for names in known if names != chosen]
    keys = sorted(map(str, content))
    why = f"It holds a dictionary with {listing(keys)}" if keys else "It holds an empty dictionary"
    if isinstance(own, Tensor | str | list | tuple | int | float):
        why += f"; 'model' is a {type(own).__name__}"
    if "optimizer" in content or {"state", "param_groups"} <= content.keys():
        why += ": the state of an optimizer without the model's weights"
    raise _without_model(path, why)


def _belongs(key: Any) -> bool:
    """Whether a tensor of this name may be of a model of ours, whatever stands before it."""
    return isinstance(key, str) and _ROOT.match(_without_wrappers(key)) is not None


def _states(content: dict[Any, Any], names: Names) -> Iterator[tuple[Names, dict[Any, Any]]]:
    """Every dictionary that holds tensors by name, outermost first; the file itself only if it holds parameters."""
    tensors = [key for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)]
    if tensors if names else any("." in key for key in tensors):
        yield names, content
    elif len(names) < DEEPEST:
        for key, value in content.items():
            if isinstance(value, dict) and isinstance(key, str) and "optim" not in key:
                yield from _states(value, (*names, key))


def _unwrap(state: Mapping[Any, Any], path: object) -> tuple[dict[Any, Any], list[str]]:
    """`state` under the model's own names, and what its keys begin with, or hold, besides.

    Raises:
        CheckpointError: two keys become one, or there are several models side by side.
    """
    plain = {key: _without_wrappers(key) for key in state}
    roots = {match[1] for key in plain.values() if isinstance(key, str) and (match := _ROOT.match(key))}
    if len(roots) > 1 and "" not in roots:
        beginnings = listing([f"'{root}'" for root in sorted(roots)])
        raise CheckpointError(
            f"the checkpoint '{path}' holds several models",
            f"Their keys begin with {beginnings}.",
            "Save the one that was trained alone, its keys without what stands before them.",
        )
    root = next(iter(roots)) if len(roots) == 1 else ""
    names = {key: name.removeprefix(root) if isinstance(name, str) else name for key, name in plain.items()}
    removed = set[str]()
    given = dict[Any, Any]()
    for key, name in names.items():
        if name in given:
            raise CheckpointError(
                f"the checkpoint '{path}' holds a tensor twice",
                f"{shorten(str(key))} and {shorten(str(name))} are one, without what wrappers put before a name.",
                "Save one of them.",
            )
        given[name] = state[key]
        if name != key:
            removed.add(f"'{key.removesuffix(name)}'" if key.endswith(name) else f"'{_wrapper(key)}.'")
    return given, sorted(removed)


def _without_wrappers(key: Any) -> Any:
    if not isinstance(key, str):
        return key
    return ".".join(step for step in key.split(".") if step not in WRAPPERS)


def _wrapper(key: str) -> str:
    return next(step for step in key.split(".") if step in WRAPPERS)


def _without_model(path: object, why: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint '{path}' has no 'model' entry",
        f"{why}; official MADTP checkpoints hold 'model', 'epoch' and 'temperature'.",
        SAVE,
    )


def _quoted(names: Names) -> str:
    return ".".join(f"'{shorten(str(name), 60)}'" for name in names) or "the file itself"
