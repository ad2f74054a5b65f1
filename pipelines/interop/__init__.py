"""The verb ``interop``: how well pretrained models help one another, by fusion, distillation and adaptation."""

from monograph.pipelines.interop.result import Interop
from monograph.pipelines.interop.verb import interop_models

__all__ = ["Interop", "interop_models"]
