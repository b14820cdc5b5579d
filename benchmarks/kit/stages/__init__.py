"""A module a stage; each has `run(stage)`: whether what it looked at is as it has to be, or SKIPPED."""
