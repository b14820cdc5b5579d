"""Command lines: consoles, messages, and how a run ends."""
