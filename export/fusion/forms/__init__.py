"""The forms of fusion. A new one is one short file here and one entry in ``FORMS``."""

from monograph.export.fusion.forms.class_weights import CLASS_WEIGHTS
from monograph.export.fusion.forms.concat import CONCATENATION
from monograph.export.fusion.forms.form import Form, Mixing, Stacking, emit_weighted_sum, weighted_sum
from monograph.export.fusion.forms.geometric import GEOMETRIC_MEAN
from monograph.export.fusion.forms.logits import WEIGHTED_LOGITS
from monograph.export.fusion.forms.mean import WEIGHTED_MEAN
from monograph.export.fusion.forms.probabilities import WEIGHTED_PROBABILITIES
from monograph.export.fusion.forms.stacking import STACKING
from monograph.export.fusion.forms.vote import MAJORITY_VOTE

FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        WEIGHTED_LOGITS,
        WEIGHTED_PROBABILITIES,
        CLASS_WEIGHTS,
        GEOMETRIC_MEAN,
        MAJORITY_VOTE,
        WEIGHTED_MEAN,
        CONCATENATION,
        STACKING,
    )
}

__all__ = ["FORMS", "Form", "Mixing", "Stacking", "emit_weighted_sum", "weighted_sum"]
