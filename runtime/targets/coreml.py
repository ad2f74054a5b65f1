"""Apple's CoreML, by ONNX Runtime's CoreML provider, which its package for macOS carries."""

from __future__ import annotations

from monograph.runtime.targets.predicted import predicted_target

# The newer of CoreML's two formats; ONNX Runtime's own default is NeuralNetwork.
COREML = predicted_target(
    "coreml",
    "Apple's CoreML",
    "CoreMLExecutionProvider",
    "on macOS (pip install onnxruntime) and on iOS",
    {"ModelFormat": "MLProgram"},
)
