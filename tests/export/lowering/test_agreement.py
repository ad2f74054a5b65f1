"""What rows say of a quantised model: refused on evidence, told to be open without it, and never flattered in silence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from monograph.errors import ParityError
from monograph.export.lowering import LOWERING_KEY, LOWERINGS, Agreement, AgreementBound, lower
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.pipelines.lower import AGREEMENT_ROWS, CALIBRATION_ROWS, _calibration_rows
from monograph.pipelines.verify import verify_model


def found(agreeing: int, of: int, *, is_held_out: bool = True, rows: str = "real") -> Agreement:
    return Agreement(of, rows, agreeing / of, 0.1, 1.0, 0.999, AgreementBound(), is_held_out)


@pytest.mark.parametrize(
    ("agreement", "doubts"),
    [
        (found(200, 200), []),
        (found(10, 10), ["10 rows leave open whether its top-1 agreement reaches 90%: it is 100.0% [72.2%, 100.0%]"]),
        (found(100, 200), ["its top-1 agreement is 50.0%, less than 90%"]),
        (
            found(200, 200, is_held_out=False),
            ["it was compared on the rows that it was calibrated on: its agreement is flattered"],
        ),
        (found(1, 32, is_held_out=False, rows="random"), []),
    ],
)
def test_doubts(agreement: Agreement, doubts: list[str]):
    assert agreement.doubts() == doubts


def test_a_model_of_which_little_is_left_is_refused_or_on_request_warned_of(
    source: OnnxFile, calibration: Rows, unseen: Rows, tmp_path: Path
):
    """Calibrated on empty pictures, so that all that real ones make of the activations is cut off."""
    empty = replace(calibration, inputs={"pixels": np.zeros_like(calibration.inputs["pixels"])})
    bound = AgreementBound(cosine=-1.0)
    with pytest.raises(ParityError, match=r"does not agree .* real rows held out from calibration, expected at least 90%"):
        lower(LOWERINGS["qdq-int8"], source, tmp_path / "l.onnx", calibration=empty, rows=unseen, bound=bound)
    made = lower(
        LOWERINGS["qdq-int8"], source, tmp_path / "l.onnx", calibration=empty, rows=unseen, bound=bound, is_enforced=False
    )
    assert any("as qdq-int8: its top-1 agreement is" in warning for warning in made.warnings)


def test_rows_to_agree_on_are_none_of_those_that_calibrate(source: OnnxFile):
    class Given:
        def load(self, contract: object, tokenizer: object) -> Rows:
            pixels = np.arange(2000, dtype=np.float32).reshape(-1, 1, 1, 1) * np.ones((1, 1, 8, 8), np.float32)
            return Rows({"pixels": pixels}, np.zeros(2000, np.int64))

    calibrating, held_out = _calibration_rows(Given(), source.contract, source)  # type: ignore[arg-type] # only `load` is asked for
    assert (len(calibrating), len(held_out)) == (CALIBRATION_ROWS, AGREEMENT_ROWS)
    assert not set(calibrating.inputs["pixels"][:, 0, 0, 0]) & set(held_out.inputs["pixels"][:, 0, 0, 0])
    assert calibrating.labels is None


@pytest.mark.parametrize("name", ["qdq-int8", "qdq-htp"])
def test_a_quantised_file_can_be_verified(source: OnnxFile, calibration: Rows, unseen: Rows, tmp_path: Path, name: str):
    lower(LOWERINGS[name], source, tmp_path / "l.onnx", calibration=calibration, rows=unseen, batch_size=2)
    verification = verify_model(tmp_path / "l.onnx")
    assert verification.passed
    assert [check.batch_size for check in verification.golden] == [2]
    assert json.loads(read_onnx(tmp_path / "l.onnx").metadata[LOWERING_KEY])["agreement"]["is_held_out"]
