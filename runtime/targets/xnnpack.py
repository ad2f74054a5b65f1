"""XNNPACK, Google's kernels for mobile processors, by ONNX Runtime's XNNPACK provider."""

from __future__ import annotations

from dataclasses import replace

from monograph.runtime.targets.predicted import predicted_target

_TARGET = predicted_target(
    "xnnpack",
    "XNNPACK's kernels for mobile processors",
    "XnnpackExecutionProvider",
    "on Android (onnxruntime-android from Maven), on iOS, and in a build of your own with --use_xnnpack",
)
# XNNPACK has threads of its own; ONNX Runtime's, spinning beside them, would take the cores from them.
XNNPACK = replace(_TARGET, session=replace(_TARGET.session, config={"session.intra_op.allow_spinning": "0"}))
