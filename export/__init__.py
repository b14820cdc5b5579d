"""The pipeline from a trained MADTP checkpoint to a validated engine; `python -m export` is its command line."""
