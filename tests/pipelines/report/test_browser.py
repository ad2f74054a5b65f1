"""The pages in a real Chromium: nothing fetched, nothing logged, nothing wider than a phone, readable in both schemes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from monograph.pipelines.distill import Distilled
from monograph.pipelines.report import Contender, Report, write_report
from monograph.pipelines.report.distillation_page import write_distillation_page
from monograph.runtime.results import Evidence

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium"),
]

MakeReport = Callable[..., Report]
MakeContender = Callable[..., Contender]
MakeDistilled = Callable[..., Distilled]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report_path(make_report: MakeReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The full report with warnings and a simulated target, so that every part of the page is there."""
    contenders = make_report().contenders
    warned = tuple(replace(one, measurement=replace(one.measurement, warnings=("It ran hot.",))) for one in contenders)
    simulated = tuple(
        replace(one, measurement=replace(one.measurement, evidence=Evidence.SIMULATED, target="qnn-htp"))
        for one in contenders[:4]
    )
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(make_report(contenders=warned + simulated), path)
    return path


@pytest.fixture(scope="module")
def distillation_path(make_distilled: MakeDistilled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a distillation with several teachers, warnings and a target that is only simulated."""
    made = make_distilled()
    second = replace(made.teachers[0], name="google/vit-base-patch16-224-in21k", macs=17_563_000_000)
    warned = tuple(replace(one, warnings=("It ran hot.",)) for one in made.measurements)
    simulated = tuple(replace(one, evidence=Evidence.SIMULATED, target="qnn-htp") for one in made.measurements)
    path = tmp_path_factory.mktemp("distillation") / "report.html"
    write_distillation_page(replace(made, teachers=(*made.teachers, second), measurements=warned + simulated), path)
    return path


@pytest.fixture(params=["report_path", "distillation_path"])
def page_path(request: pytest.FixtureRequest) -> Path:
    """Each kind of page in turn."""
    path = request.getfixturevalue(request.param)
    assert isinstance(path, Path)
    return path


def opened(browser: Any, path: Path, *, width: int = 1280, **options: Any) -> Any:
    """Open ``path`` in a context of its own; ``page.seen`` collects what it asked for and what it logged."""
    page = browser.new_context(viewport={"width": width, "height": 900}, **options).new_page()
    page.seen = []
    page.on("request", lambda request: page.seen.append(request.url))
    page.on("console", lambda message: page.seen.append(message.text))
    page.on("pageerror", lambda error: page.seen.append(str(error)))
    page.goto(path.as_uri(), wait_until="networkidle")
    return page


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two CSS colours ``rgb(r, g, b)`` as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        channels = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_asks_for_nothing_and_logs_nothing(browser: Any, page_path: Path, scheme: str, width: int) -> None:
    page = opened(browser, page_path, width=width, color_scheme=scheme)
    assert [one for one in page.seen if not one.startswith("data:")] == [page_path.as_uri()]
    page.context.close()


def test_nothing_is_wider_than_the_window(browser: Any, page_path: Path) -> None:
    page = opened(browser, page_path)
    for width in (320, 390, 768, 1000, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate("[...document.querySelectorAll('table')].every(t => t.scrollWidth <= t.parentElement.clientWidth)")
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_its_ground(browser: Any, report_path: Path, scheme: str) -> None:
    page = opened(browser, report_path, color_scheme=scheme)
    for selector in ("body", ".eyebrow", ".tiles .label", "figcaption", "thead th", "td small", ".badge", "summary", "a", ".ok"):
        colour = page.eval_on_selector(selector, "one => getComputedStyle(one).color")
        ground = page.eval_on_selector("body", "one => getComputedStyle(one).backgroundColor")
        assert contrast(colour, ground) >= 4.5, selector
    for selector, on in (("tr.fused th", "tr.fused th"), ("tr.fused td small", "tr.fused td"), (".callout strong", ".callout")):
        colour = page.eval_on_selector(selector, "one => getComputedStyle(one).color")
        ground = page.eval_on_selector(on, "one => getComputedStyle(one).backgroundColor")
        assert contrast(colour, ground) >= 4.5, selector
    label = page.eval_on_selector(".plot .wide text", "one => getComputedStyle(one).fill")
    assert contrast(label, page.eval_on_selector("body", "one => getComputedStyle(one).backgroundColor")) >= 4.5
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_student_and_what_is_told_of_it_stand_out(browser: Any, distillation_path: Path, scheme: str) -> None:
    page = opened(browser, distillation_path, color_scheme=scheme)
    for selector, on in (
        ("tr.student th", "tr.student th"),
        ("tr.student td small", "tr.student td"),
        ("tr.teacher td small", "body"),
        (".machine dt", "body"),
    ):
        colour = page.eval_on_selector(selector, "one => getComputedStyle(one).color")
        ground = page.eval_on_selector(on, "one => getComputedStyle(one).backgroundColor")
        assert contrast(colour, ground) >= 4.5, selector
    page.context.close()


def test_the_button_turns_the_page_and_its_figures_over(browser: Any, report_path: Path) -> None:
    page = opened(browser, report_path, color_scheme="light")

    def colours() -> list[str]:
        return [
            page.eval_on_selector("body", "one => getComputedStyle(one).backgroundColor"),
            page.eval_on_selector("body", "one => getComputedStyle(one).color"),
            page.eval_on_selector(".plot .wide text", "one => getComputedStyle(one).fill"),
        ]

    light = colours()
    page.click("#theme")
    dark = colours()
    assert all(before != after for before, after in zip(light, dark, strict=True))
    page.click("#theme")
    assert colours() == light
    page.context.close()
    by_system = opened(browser, report_path, color_scheme="dark")
    assert by_system.eval_on_selector("body", "one => getComputedStyle(one).backgroundColor") == dark[0]
    by_system.context.close()


@pytest.mark.parametrize(("width", "shown", "hidden"), [(390, "narrow", "wide"), (1280, "wide", "narrow")])
def test_each_figure_is_seen_once_at_its_size(browser: Any, report_path: Path, width: int, shown: str, hidden: str) -> None:
    page = opened(browser, report_path, width=width)
    assert page.locator(f".plot .{shown} svg").count() == 4
    for figure in page.locator(f".plot .{shown} svg").all():
        box = figure.bounding_box()
        assert box["width"] > 0.85 * min(width, 1008)
        assert box["height"] > 150
    assert not any(figure.is_visible() for figure in page.locator(f".plot .{hidden} svg").all())
    page.context.close()


@pytest.mark.parametrize(("width", "shown"), [(390, "narrow"), (1280, "wide")])
def test_each_figure_of_a_distillation_fits_its_page(browser: Any, distillation_path: Path, width: int, shown: str) -> None:
    page = opened(browser, distillation_path, width=width)
    figures = page.locator(f".plot .{shown} svg").all()
    assert len(figures) == 3, "accuracy over cost, training, the calls of the one target that was timed"
    for figure in figures:
        box = figure.bounding_box()
        right = figure.evaluate("one => Math.max(...[...one.querySelectorAll('text')].map(t => t.getBoundingClientRect().right))")
        assert box["width"] > 0.85 * min(width, 1008)
        assert right <= width
    page.context.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_names_of_close_points_do_not_overlap(
    browser: Any, make_report: MakeReport, make_contender: MakeContender, tmp_path: Path, width: int
) -> None:
    close = [make_contender(f"resnet20-seed{index}", "member", 0.4 + index / 1e3, 0.92, 900_000) for index in range(3)]
    fused = make_contender("fused", "fused", 1.16, 0.933, 2_700_000)
    write_report(make_report(contenders=(*close, fused)), tmp_path / "report.html")
    page = opened(browser, tmp_path / "report.html", width=width)
    shown = "narrow" if width == 390 else "wide"
    boxes = page.eval_on_selector_all(
        f"#trade .{shown} text", "all => all.map(one => one.getBoundingClientRect()).map(b => [b.left, b.top, b.right, b.bottom])"
    )
    assert len(boxes) > 8
    for (left, top, right, bottom), (left2, top2, right2, bottom2) in combinations(boxes, 2):
        # Line boxes are taller than their letters: let them share two pixels.
        assert min(right, right2) <= max(left, left2) or min(bottom, bottom2) <= max(top, top2) + 2
    page.context.close()


def test_the_page_is_complete_without_javascript(browser: Any, report_path: Path) -> None:
    page = opened(browser, report_path, java_script_enabled=False)
    assert page.locator("h1").inner_text().startswith("One graph of 3 members")
    assert page.locator("#theme").is_hidden()
    page.locator("summary").click()
    assert "lr: 1.0e-3" in page.locator("details pre").inner_text()
    page.context.close()


def test_on_paper_it_is_light_and_fits(browser: Any, page_path: Path) -> None:
    page = opened(browser, page_path, width=688, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.eval_on_selector("body", "one => getComputedStyle(one).backgroundColor") == "rgb(253, 253, 252)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 688
    assert page.locator("nav").is_hidden()
    page.context.close()
