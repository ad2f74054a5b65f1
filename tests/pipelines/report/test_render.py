from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from monograph.errors import ConfigError
from monograph.pipelines.report import Contender, MemberWeight, Ratio, Report, write_report
from monograph.pipelines.report.render import render_html
from monograph.pipelines.report.view import proof_figures, ratio_spans, record_json, weight_spans
from monograph.runtime.results import Evidence

MakeReport = Callable[..., Report]
MakeContender = Callable[..., Contender]
MakeMeasurement = Callable[..., Any]
HOSTILE = "</script><script>alert(1)</script><!--"


@pytest.fixture(scope="module")
def full_html(make_report: MakeReport) -> str:
    return render_html(make_report())


class Page(HTMLParser):
    """What a test asks of a page: its text without styles and scripts, its scripts, ids and addresses."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self._inside: tuple[str, dict[str, str | None]] = ("", {})
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = (tag, dict(attrs))
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.addresses += [value for name, value in attrs if name in ("href", "src", "action", "data", "srcset") and value]

    def handle_endtag(self, tag: str) -> None:
        self._inside = ("", {})

    def handle_data(self, data: str) -> None:
        tag, attributes = self._inside
        if tag == "script":
            self.scripts.append((attributes, data))
        elif tag != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def record(self) -> dict[str, Any]:
        (text,) = (text for attributes, text in self.scripts if attributes.get("id") == "monograph-result")
        record = json.loads(text)
        assert isinstance(record, dict)
        return record


def row_of(html: str, name: str, caption: str) -> str:
    """The words of the row of ``name`` in the table under ``caption``."""
    table = html[html.index(caption) :]
    row = re.search(rf"<tr[^>]*><th scope=\"row\">{re.escape(name)}<.*?</tr>", table, re.DOTALL)
    assert row is not None
    return Page(row.group()).text


def test_the_whole_report_stands_in_one_small_file_in_order(make_report: MakeReport, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_report(make_report(), path)
    assert path.stat().st_size < 600_000
    assert [one.name for one in path.parent.iterdir()] == ["report.html"]
    page = Page(path.read_text(encoding="utf-8"))
    sections = ["trade", "contenders", "ratios", "fusion", "proofs", "training", "times", "machine", "again"]
    assert [one for one in page.ids if one in sections] == sections
    for words in (
        "One graph of 3 members reaches 97.9%",
        "O = Σ αᵢOᵢ",
        "AMD EPYC 7B13",
        "monograph run digits.yaml",
        "lr: 1.0e-3",
    ):
        assert words in page.text


def test_the_same_report_gives_the_same_page(make_report: MakeReport, full_html: str) -> None:
    assert render_html(make_report()) == full_html


def test_nothing_is_fetched_and_every_link_resolves(full_html: str) -> None:
    page = Page(full_html)
    assert len(page.ids) == len(set(page.ids))
    for address in page.addresses:
        assert address == "data:," or (address.startswith("#") and address[1:] in page.ids)


def test_a_failed_write_leaves_the_old_report(make_report: MakeReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")
    monkeypatch.setattr("monograph.pipelines.report.render.headline", lambda report: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(make_report(), path)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_the_users_to_mend(make_report: MakeReport, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="choose another output path"):
        write_report(make_report(), tmp_path / "file" / "report.html")


def test_hostile_text_stays_text_everywhere(make_report: MakeReport) -> None:
    report = make_report()
    report = replace(
        report,
        title=HOSTILE,
        data=HOSTILE,
        created=HOSTILE,
        version=HOSTILE,
        contenders=tuple(
            replace(one, name=HOSTILE + one.name, note=HOSTILE, measurement=replace(one.measurement, warnings=(HOSTILE,)))
            for one in report.contenders
        ),
        proofs=tuple(replace(one, subject=HOSTILE, reference=HOSTILE) for one in report.proofs),
        curves=tuple(replace(one, name=HOSTILE) for one in report.curves),
        ratios=tuple(replace(one, name=HOSTILE, note=HOSTILE) for one in report.ratios),
        commands=(HOSTILE,),
        pipeline_yaml=HOSTILE,
        notes=(HOSTILE,),
    )
    html = render_html(report)
    assert html.count("<script") == 2
    assert html.count("</script") == 2
    assert "<!--" not in html
    page = Page(html)
    assert page.record["title"] == HOSTILE
    assert HOSTILE in page.text


def test_the_embedded_record_is_complete_but_for_the_samples(full_html: str) -> None:
    record = Page(full_html).record
    latencies = [one["measurement"]["latency"] for one in record["contenders"]]
    assert all("samples_ns" not in one and one["sample_count"] == 1000 for one in latencies)
    assert latencies[3]["p50_s"]["estimate"] == pytest.approx(0.000325, abs=1e-6)
    assert record["contenders"][3]["measurement"]["environment"]["packages"]["onnxruntime"] == "1.24.1"
    assert record["fusion"]["members"][2] == {"name": "resnet-mini", "weight": 0.563}


def test_values_that_json_lacks_become_null(make_report: MakeReport) -> None:
    report = make_report(ratios=(Ratio("a / b", float("nan"), 0.1, float("inf"), ""),))
    assert "[0.100, ∞]" in Page(render_html(report)).text
    ratio = json.loads(record_json(report))["ratios"][0]
    assert (ratio["estimate"], ratio["low"], ratio["high"]) == (None, 0.1, None)


def test_a_row_shows_every_figure_of_a_contender(full_html: str) -> None:
    assert row_of(full_html, "fused", "How right they are") == (
        "fused fused · logits, fitted weights 97.9 [97.2, 98.5] 97.8 0.0797 0.63 1,797"
    )
    assert row_of(full_html, "fused", "How fast and how large they are") == (
        "fused fused 0.325 [0.324, 0.326] 0.366 [0.353, 0.375] 0.407 [0.401, 0.832] 2.96 21.0 36,894 batch 256 "
        "2.17 MB 80.5 MB CPU 14 executed"
    )


@pytest.mark.parametrize("evidence", [Evidence.SIMULATED, Evidence.PREDICTED])
def test_a_time_that_no_hardware_took_is_not_shown_as_a_latency(make_report: MakeReport, evidence: Evidence) -> None:
    contenders = make_report().contenders
    unreal = replace(contenders[0], name="elsewhere", measurement=replace(contenders[0].measurement, evidence=evidence))
    html = render_html(make_report(contenders=(*contenders, unreal)))
    row = row_of(html, "elsewhere", "How fast and how large they are")
    assert f"{evidence.value}: not a latency" in row
    assert "0.0981" not in row
    assert "122,213" not in row
    assert f"Not drawn: elsewhere ({evidence.value}: not a latency)" in Page(html).text


def test_too_few_runs_for_a_p99_show_a_dash(make_report: MakeReport) -> None:
    one = make_report().contenders[0]
    assert one.measurement.latency is not None
    short = replace(one, measurement=replace(one.measurement, latency=replace(one.measurement.latency, p99_s=None)))
    assert "0.108 [0.105, 0.112] \u2013 0.893" in row_of(
        render_html(make_report(contenders=(short,))), "lenet-5", "How fast and how large they are"
    )


def test_warnings_are_announced_at_the_top_and_listed_once(make_report: MakeReport, full_html: str) -> None:
    warned = [replace(one, measurement=replace(one.measurement, warnings=("It ran hot.",))) for one in make_report().contenders]
    text = Page(render_html(make_report(contenders=tuple(warned[:2])))).text
    assert "1 warning came up while measuring" in text
    assert text.count("It ran hot.") == 1
    assert "(lenet-5, mlp-256)" in text
    assert "warning" not in Page(full_html).text


def test_each_target_has_its_own_figures(make_report: MakeReport) -> None:
    contenders = make_report().contenders
    cuda = tuple(replace(one, measurement=replace(one.measurement, target="cuda")) for one in contenders)
    page = Page(render_html(make_report(contenders=contenders + cuda)))
    assert page.text.count("On cpu") == page.text.count("On cuda") == 2
    assert len(page.ids) == len(set(page.ids))


def test_an_almost_empty_report_is_still_a_page(make_report: MakeReport, make_measurement: MakeMeasurement) -> None:
    bare = make_measurement("model", 1.0, None, 4_000_000, latency=None, throughput=(), peak_memory_bytes=None)
    report = make_report(
        contenders=(Contender("model", "member", replace(bare, placement=())),),
        proofs=(), fusion=None, curves=(), ratios=(), commands=(), pipeline_yaml="", notes=(),
    )  # fmt: skip
    page = Page(render_html(report))
    assert "model measured: neither accuracy nor latency is known." in page.text
    assert {"contenders", "machine"} <= set(page.ids)
    assert not {"trade", "ratios", "fusion", "proofs", "training", "times", "warnings", "again"} & set(page.ids)
    assert Page(render_html(replace(report, contenders=()))).record["contenders"] == []


def test_a_proof_shows_its_worst_figures(make_report: MakeReport, full_html: str) -> None:
    parity = make_report().proofs[0].parity
    shown = proof_figures(parity)
    assert (shown.batch_sizes, shown.rows, shown.holds) == ("1, 2, 5", "real", True)
    assert shown.max_abs_error == parity.batches[2].max_abs_error
    assert shown.cosine == min(one.cosine for one in parity.batches)
    assert not proof_figures(replace(parity, tolerance=1e-9)).holds
    assert "lenet-5.onnx lenet-5 in PyTorch 1, 2, 5 real 3.8 × 10⁻⁶ 19.2" in Page(full_html).text


def test_kept_epochs_are_told_where_they_are_known(make_report: MakeReport, full_html: str) -> None:
    marked = tuple(replace(one, kept_epoch=index) for index, one in enumerate(make_report().curves))
    told = "Upright lines mark the epochs whose weights were kept."
    html = render_html(make_report(curves=marked))
    assert told in Page(html).text
    assert "Training curves of lenet-5, epoch 1 kept, mlp-256, epoch 2 kept" in html
    assert told not in Page(full_html).text


def test_negative_weights_are_drawn_left_of_zero(make_report: MakeReport) -> None:
    fusion = make_report().fusion
    assert fusion is not None
    members = (MemberWeight("a", 0.75), MemberWeight("b", -0.25))
    plus, minus = weight_spans(replace(fusion, members=members))
    assert (plus.left, plus.width) == (25, 75)
    assert (minus.left, minus.width) == (0, 25)


def test_ratios_lie_on_one_logarithmic_scale_with_one_inside() -> None:
    spans, one = ratio_spans([Ratio("a / b", 0.5, 0.45, 0.55, ""), Ratio("b / a", 2.0, 1.9, 2.1, "")])
    assert 0 < spans[0].left < spans[0].point < one < spans[1].point < 100
    assert one - spans[0].point == pytest.approx(spans[1].point - one, abs=0.05)
