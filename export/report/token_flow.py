"""The tokens of one sequence followed through the layers by their source ids."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LayerTokens:
    """An encoder's input tokens, by position (0 is the class token), after one layer."""

    kept: frozenset[int]  # still tokens of their own
    fresh: frozenset[int]  # merged in this layer
    swallowed: tuple[int, ...]  # source ids merged in this layer: positions, and merged tokens of earlier layers
    merged: dict[int, frozenset[int]]  # the merged tokens that are left, by the layer (from 0) that made them

    @property
    def tokens(self) -> int:
        """Tokens after the layer."""
        return len(self.kept) + len(self.merged)


def follow_tokens(layers: Sequence[Sequence[int]], length: int) -> list[LayerTokens]:
    """Follow every token through the layers of an encoder.

    Args:
        layers: source ids after each layer: a position, or -(l + 1) for the token merged in layer l.
        length: tokens that the encoder was given; their positions are 0 to length - 1.

    Raises:
        ValueError: ids that do not follow from those of the layer before.
    """
    stands_for = {position: frozenset([position]) for position in range(length)}
    flow = []
    for layer, ids in enumerate(layers):
        after, made = set(ids), -(layer + 1)
        swallowed = tuple(token for token in stands_for if token not in after)
        expected = stands_for.keys() - set(swallowed) | ({made} if swallowed else set())
        if after != expected or len(ids) != len(after):
            raise ValueError(f"the source ids of layer {layer} do not follow from those before: {sorted(ids)}")
        left = {token: positions for token, positions in stands_for.items() if token in after}
        if swallowed:
            left[made] = frozenset().union(*(stands_for[token] for token in swallowed))
        stands_for = left
        flow.append(
            LayerTokens(
                kept=frozenset(token for token in left if token >= 0),
                fresh=frozenset(token for token in swallowed if token >= 0),
                swallowed=swallowed,
                merged={-token - 1: positions for token, positions in left.items() if token < 0},
            )
        )
    return flow


def patch_runs(patches: frozenset[int], grid: int) -> list[tuple[int, int, int]]:
    """Patches (patch p at position p + 1; 0 is the class token) as runs along rows: (column, row, length)."""
    runs: list[tuple[int, int, int]] = []
    for position in sorted(patches - {0}):
        row, column = divmod(position - 1, grid)
        if runs and runs[-1][1] == row and sum(runs[-1][::2]) == column:
            runs[-1] = (runs[-1][0], row, runs[-1][2] + 1)
        else:
            runs.append((column, row, 1))
    return runs
