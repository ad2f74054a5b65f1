"""The forms of fusion. A new one is one short file here and one entry in ``FORMS``."""

from monograph.export.fusion.forms.form import Form, emit_weighted_sum, weighted_sum
from monograph.export.fusion.forms.logits import WEIGHTED_LOGITS
from monograph.export.fusion.forms.mean import WEIGHTED_MEAN
from monograph.export.fusion.forms.probabilities import WEIGHTED_PROBABILITIES

FORMS: dict[str, Form] = {form.name: form for form in (WEIGHTED_LOGITS, WEIGHTED_PROBABILITIES, WEIGHTED_MEAN)}

__all__ = ["FORMS", "Form", "emit_weighted_sum", "weighted_sum"]
