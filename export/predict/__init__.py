"""What execution providers that are not here would take of a model, from their operator lists and rules."""

from collections.abc import Callable, Mapping

from monograph.export.predict.coreml import MLPROGRAM, coreml
from monograph.export.predict.nnapi import nnapi
from monograph.export.predict.predict import predict
from monograph.export.predict.rules import RuleBook
from monograph.export.predict.work import with_work
from monograph.export.predict.xnnpack import XNNPACK

RULE_BOOKS: Mapping[str, Callable[[Mapping[str, str]], RuleBook]] = {
    "CoreMLExecutionProvider": lambda options: coreml(options.get("ModelFormat", MLPROGRAM)),
    "NnapiExecutionProvider": lambda options: nnapi(),
    "XnnpackExecutionProvider": lambda options: XNNPACK,
}
"""By the provider; each is told the provider's options."""

__all__ = ["RULE_BOOKS", "RuleBook", "predict", "with_work"]
