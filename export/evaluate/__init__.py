"""Data sets through an artifact, and their metrics."""
