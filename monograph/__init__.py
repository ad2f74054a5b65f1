"""Many models, one graph: export, fuse, prove and measure ONNX models."""
