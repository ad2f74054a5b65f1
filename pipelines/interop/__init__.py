"""The verb ``interop``: how well pretrained models help one another, by fusion, distillation and adaptation."""

from monograph.pipelines.interop.result import Interop
from monograph.pipelines.interop.verb import evaluate_interop

__all__ = ["Interop", "evaluate_interop"]
