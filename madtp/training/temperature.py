"""The pruning temperature during training."""


def ramp(position: float, between: tuple[float, float]) -> float:
    """Zero before the first of `between`, one after the second, and rising linearly from one to the other."""
    start, end = between
    return min(max((position - start) / (end - start), 0.0), 1.0)
