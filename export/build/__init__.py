"""From a checkpoint to an artifact: what `python -m export` does."""
