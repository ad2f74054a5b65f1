"""Take the README's picture of a report: ``python docs/picture.py runs/quickstart/report.html`` writes docs/report.png."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

_SIZE = {"width": 1180, "height": 1120}


def main() -> None:
    """Open the report in headless Chromium, in light, and write the top of it."""
    report = Path(sys.argv[1]).resolve()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-background-networking"]
        )
        page = browser.new_page(viewport=_SIZE, color_scheme="light")
        page.goto(report.as_uri())
        page.screenshot(path=Path(__file__).parent / "report.png")
        browser.close()


if __name__ == "__main__":
    main()
