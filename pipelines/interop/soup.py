"""What the mean of two models' weights gives, where they are one architecture: the one pair whose network must run anew."""

from __future__ import annotations

import hashlib
from pathlib import Path

from monograph.errors import InputError, ParityError
from monograph.export.fusion.soup import fuse_soup, plan_soup
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import read_onnx
from monograph.models.seen import seen_by
from monograph.pipelines.interop.members import Model
from monograph.pipelines.interop.result import Soup
from monograph.runtime.metrics import as_probabilities, score_classifier
from monograph.runtime.runner import run_all_rows
from monograph.runtime.session import open_session


def try_soup(first: Model, second: Model, rows: Rows, folder: Path) -> Soup:
    """Return whether the weights of two models can be averaged, and how right their mean with equal weights is.

    Args:
        first: whose graph the soup has.
        second: of the same architecture, or it does not fit.
        rows: labelled, as the first model takes them.
        folder: where the soup is written.
    """
    files = [first.file, second.file]
    path = folder / f"soup-{hashlib.sha256(f'{first.file.sha256} {second.file.sha256}'.encode()).hexdigest()[:16]}.onnx"
    try:
        plan = plan_soup(files, names=[first.name, second.name], rows=rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        fuse_soup(plan, path, rows=rows.take(slice(0, 64)), statistics_rows=rows, seen=seen_by(files))
    except (InputError, ParityError) as error:
        return Soup(first.name, second.name, fits=False, reason=" ".join(str(error).split()))
    made = read_onnx(path)
    output = run_all_rows(open_session(path, spinning=False), made.contract, rows)
    accuracy = score_classifier(as_probabilities(output, made.contract.kind), rows.required_labels())
    return Soup(first.name, second.name, fits=True, accuracy=accuracy)
