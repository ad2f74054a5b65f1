"""Run a model, time it, score it with ONNX Runtime. Never imports torch: this is what travels to a device."""
