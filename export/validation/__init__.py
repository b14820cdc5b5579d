"""Proof of parity: what `python -m export validate` compares, and how it judges (docs/validation.md)."""
