"""How a range is taken from values; in a module of its own, for what must start without torch."""

METHODS = ("minmax", "entropy", "percentile")
