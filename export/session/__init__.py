"""Images and texts in, the product of the task out."""
