"""From one model to what a target takes. A new lowering is one short file here and one entry in ``LOWERINGS``."""

from monograph.errors import ConfigError
from monograph.export.lowering.agreement import Agreement, AgreementBound
from monograph.export.lowering.branch_free import BRANCH_FREE
from monograph.export.lowering.fp16 import FP16
from monograph.export.lowering.int8_dynamic import INT8_DYNAMIC
from monograph.export.lowering.int8_static import INT8_STATIC
from monograph.export.lowering.lower import Mixed, is_quantised, lower, lowered_contract
from monograph.export.lowering.lowering import LOWERING_KEY, Lowered, Lowering, lowering_of
from monograph.export.lowering.qdq_htp import QDQ_HTP, QDQ_HTP_INT8
from monograph.export.lowering.qdq_int8 import QDQ_INT8
from monograph.export.lowering.qnn_context import QNN_CONTEXT
from monograph.export.lowering.sessions import SESSIONS, split_cascade
from monograph.export.lowering.static import STATIC_BATCH
from monograph.export.lowering.weight_forms import PROCESSORS, WEIGHT_FORMS

LOWERINGS: dict[str, Lowering] = {
    lowering.name: lowering
    for lowering in (
        STATIC_BATCH,
        QDQ_HTP,
        QDQ_HTP_INT8,
        QNN_CONTEXT,
        QDQ_INT8,
        INT8_STATIC,
        INT8_DYNAMIC,
        FP16,
        BRANCH_FREE,
    )
}


def find_lowering(name: str) -> Lowering:
    """Return the lowering called ``name``.

    Raises:
        ConfigError: there is no such lowering.
    """
    if name not in LOWERINGS:
        raise ConfigError(f"unknown lowering {name!r}: choose from {', '.join([*LOWERINGS, SESSIONS, 'ort'])}")
    return LOWERINGS[name]


__all__ = [
    "LOWERINGS", "LOWERING_KEY", "PROCESSORS", "SESSIONS", "WEIGHT_FORMS", "Agreement", "AgreementBound", "Lowered", "Lowering",
    "Mixed", "find_lowering", "is_quantised", "lower", "lowered_contract", "lowering_of", "split_cascade",
]  # fmt: skip
