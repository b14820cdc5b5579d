"""The two custom ops: what they are (`spec`), what they compute (`reference`), and watching them prune (`recorder`)."""
