"""Running the parts of an artifact in ONNX Runtime and TensorRT."""
