"""Android's Neural Networks API, by ONNX Runtime's NNAPI provider, which only its Android library carries."""

from __future__ import annotations

from monograph.runtime.targets.predicted import predicted_target

NNAPI = predicted_target(
    "nnapi",
    "Android's Neural Networks API",
    "NnapiExecutionProvider",
    "on Android (onnxruntime-android from Maven)",
)
