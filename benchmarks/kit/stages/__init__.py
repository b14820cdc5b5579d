"""A module a stage; each has `run(stage) -> bool`, whether what it looked at is as it has to be."""
