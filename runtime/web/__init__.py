"""A model measured in a real browser: a page on loopback that runs ONNX Runtime Web, and what drives it."""
