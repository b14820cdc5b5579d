"""ONNX: tracing a part, function bodies of the custom ops, and passes over graphs."""
