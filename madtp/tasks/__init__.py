"""Requests on top of parts: generation, ranking, and what each task makes of its parts."""
