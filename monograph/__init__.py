"""Many models, one graph: export, fuse, prove and measure ONNX models.

The public verbs load what they need when they are first used, so that ``import monograph`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monograph.pipelines.adapt import adapt_model
    from monograph.pipelines.bundle import bundle_model, verify_bundle
    from monograph.pipelines.cascade import cascade_models, plan_cascade_models
    from monograph.pipelines.distill import distill_model
    from monograph.pipelines.export import export_model
    from monograph.pipelines.fuse import fuse_models, plan_models
    from monograph.pipelines.gate import gate_model
    from monograph.pipelines.interop import interop_models
    from monograph.pipelines.lower import lower_model
    from monograph.pipelines.measure import measure_models
    from monograph.pipelines.run import run_pipeline
    from monograph.pipelines.soup import plan_soup_models, soup_models
    from monograph.pipelines.verify import verify_model

__version__ = "0.1.0"

_VERBS = {
    "adapt_model": "monograph.pipelines.adapt",
    "bundle_model": "monograph.pipelines.bundle",
    "verify_bundle": "monograph.pipelines.bundle",
    "cascade_models": "monograph.pipelines.cascade",
    "plan_cascade_models": "monograph.pipelines.cascade",
    "distill_model": "monograph.pipelines.distill",
    "export_model": "monograph.pipelines.export",
    "fuse_models": "monograph.pipelines.fuse",
    "plan_models": "monograph.pipelines.fuse",
    "gate_model": "monograph.pipelines.gate",
    "interop_models": "monograph.pipelines.interop",
    "lower_model": "monograph.pipelines.lower",
    "measure_models": "monograph.pipelines.measure",
    "run_pipeline": "monograph.pipelines.run",
    "plan_soup_models": "monograph.pipelines.soup",
    "soup_models": "monograph.pipelines.soup",
    "verify_model": "monograph.pipelines.verify",
}

__all__ = [
    "__version__",
    "adapt_model",
    "bundle_model",
    "cascade_models",
    "distill_model",
    "export_model",
    "fuse_models",
    "gate_model",
    "interop_models",
    "lower_model",
    "measure_models",
    "plan_cascade_models",
    "plan_models",
    "plan_soup_models",
    "run_pipeline",
    "soup_models",
    "verify_bundle",
    "verify_model",
]


def __getattr__(name: str) -> Any:
    if name not in _VERBS:
        raise AttributeError(f"module 'monograph' has no attribute {name!r}")
    return getattr(importlib.import_module(_VERBS[name]), name)
