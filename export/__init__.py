"""PyTorch to ONNX, and many ONNX graphs to one."""
