"""The models of all tasks, and the parts that are exported of each."""
