"""Reading checkpoints: files, forms, sizes and task."""
