"""Real, demo and synthetic inputs for an artifact."""
