"""What of measurements is told in tables, on the page and on a terminal."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from monograph.pipelines.report import terminal_tables
from monograph.pipelines.report.formats import MISSING
from monograph.pipelines.report.measurements import write_measurement_report
from monograph.pipelines.report.sections import page_sections
from monograph.runtime.results import Evidence, Measurement, Placed, PredictedNode, Prediction, Profile, ProfiledNode, Share

MakeMeasurement = Callable[..., Measurement]
REASON = "ceil_mode is 1, it takes 0"


@pytest.fixture
def mixed(make_measurement: MakeMeasurement) -> Measurement:
    """Two providers: 9 of 10 multiply-accumulates and four fifths of the time on the first."""
    shares = (Share("WebGpuExecutionProvider", 2, 0.004, 0.8), Share("CPUExecutionProvider", 1, 0.001, 0.2))
    nodes = (ProfiledNode("c", "Conv", "WebGpuExecutionProvider", 0.004),)
    return make_measurement(
        "net",
        5.0,
        None,
        1000,
        target="webgpu",
        placement=(
            Placed("WebGpuExecutionProvider", ("c", "d"), ("Conv", "Conv"), 2, macs=900),
            Placed("CPUExecutionProvider", ("s",), ("Sum",), 1, macs=100),
        ),
        profile=Profile(1, 20, 0.006, 0.005, 0.001, nodes, (Share("Conv", 3, 0.005, 1.0),), shares),
    )


@pytest.fixture
def predicted(make_measurement: MakeMeasurement) -> Measurement:
    nodes = (
        PredictedNode("c", "Conv", (), True, None, 0, 900),
        PredictedNode("p", "MaxPool", (), False, REASON, None, 0),
        PredictedNode("q", "MaxPool", (), True, None, 1, 0),
    )
    prediction = Prediction("NnapiExecutionProvider", "NNAPI rules", nodes, (1, 1), 2 / 3, 1.0, {"batch": 1}, 0.0, ())
    base = make_measurement("net", 5.0, None, 1000, target="nnapi")
    return replace(base, evidence=Evidence.PREDICTED, latency=None, throughput=(), placement=(), prediction=prediction)


def printed(measurements: list[Measurement]) -> str:
    stream = io.StringIO()
    console = Console(width=100, file=stream)
    for table in terminal_tables(measurements):
        console.print(table)
    return stream.getvalue()


def test_a_mixture_is_told_by_nodes_parts_work_and_time(mixed: Measurement):
    lines = [line.split() for line in printed([mixed]).splitlines()]
    assert ["net.onnx", "·", "webgpu", "WebGpu", "2", "2", "90.0%", "80.0%"] in lines
    assert ["net.onnx", "·", "webgpu", "CPU", "1", "1", "10.0%", "20.0%"] in lines


def test_what_one_provider_ran_takes_no_table(make_measurement: MakeMeasurement):
    assert page_sections([make_measurement("net", 5.0, None, 1000)]) == []
    assert printed([make_measurement("net", 5.0, None, 1000)]) == ""


def test_a_prediction_is_told_by_model_and_on_the_page_by_operator(predicted: Measurement):
    text = printed([predicted])
    assert f"1 × MaxPool: {REASON}" in " ".join(text.split())
    assert "each operator" not in text
    (section,) = page_sections([predicted])
    summary, support = section.grids
    assert summary.rows == (("net.onnx · nnapi", "2/3", "2", "100.0%", f"1 × MaxPool: {REASON}"),)
    assert support.rows == (("MaxPool", "1/2", f"1 × {REASON}"), ("all others", "1/1", MISSING))
    assert support.note == "by NNAPI rules, with batch=1"


def test_the_page_shows_every_section_and_links_to_it(mixed: Measurement, predicted: Measurement, tmp_path: Path):
    write_measurement_report(tmp_path / "r.html", [mixed, predicted], "rows", 1.0)
    page = (tmp_path / "r.html").read_text()
    for key in ("profile", "placement", "prediction"):
        assert f'href="#{key}"' in page
        assert f'<section id="{key}">' in page
    assert 'href="#scores"' not in page
    assert REASON in page
