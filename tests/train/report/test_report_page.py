"""The pages of train.report in a real browser: light, dark, and on a phone."""

import time
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from tests.helpers import fake_run
from train.report.write_report import write_report

pytestmark = pytest.mark.page

DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports by what they are of."""
    top = tmp_path_factory.mktemp("pages")
    # As deep as a ResNet-50, whose heat maps are the highest.
    run = fake_run.write(top / "run", saved=fake_run.params(16))
    going_on = fake_run.write(top / "going_on", epochs=1, finished=False)
    comparison = fake_run.write_comparison(top / "comparison")
    workdirs = {"run": run, "run that goes on": going_on, "comparison": comparison}
    return {name: Path(write_report(workdir)) for name, workdir in workdirs.items()}


class Opened:
    """A page in the browser, and what it asked for and complained of."""

    def __init__(self, chromium: Any, path: Path, size: dict[str, int], theme: str):
        self._context = chromium.new_context(viewport=size, color_scheme=theme, offline=True)
        self.page = self._context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri(), wait_until="load")

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *error: object) -> None:
        self._context.close()

    def images(self, what: str) -> list[Any]:
        """An expression of every image `i` of the page."""
        return self.page.evaluate(f"[...document.images].map(i => {what})")


KINDS = pytest.mark.parametrize("kind", ["run", "run that goes on", "comparison"])
LOOKS = pytest.mark.parametrize(
    ("size", "theme"), [(DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light"), (PHONE, "dark")]
)


@KINDS
@LOOKS
def test_page_is_whole_and_asks_for_nothing(
    chromium: Any, pages: dict[str, Path], kind: str, size: dict[str, int], theme: str
) -> None:
    with Opened(chromium, pages[kind], size, theme) as opened:
        assert opened.complaints == []
        others = [url for url in opened.requests if not url.startswith("data:")]
        assert others == [pages[kind].as_uri()]
        assert all(width > 0 for width in opened.images("i.complete && i.naturalWidth"))
        # Wide pictures are scrolled; of all others the whole width is seen.
        assert all(opened.images("i.checkVisibility() && i.getBoundingClientRect().width > 200"))
        assert all(opened.images("i.alt.length > 20"))
        assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@KINDS
def test_images_are_not_distorted_and_inside_of_the_phone(
    chromium: Any, pages: dict[str, Path], kind: str
) -> None:
    with Opened(chromium, pages[kind], PHONE, "light") as opened:
        shapes = opened.images(
            "(r => r.width / r.height * i.naturalHeight / i.naturalWidth)"
            "(i.getBoundingClientRect())"
        )
        assert shapes == pytest.approx([1] * len(shapes), rel=0.02)
        outside = "!i.closest('.wide') && i.getBoundingClientRect().right > innerWidth"
        assert not any(opened.images(outside))


def test_themes_differ_in_paper_ink_and_pictures(chromium: Any, pages: dict[str, Path]) -> None:
    looks = []
    for theme in ("light", "dark"):
        with Opened(chromium, pages["run"], DESKTOP, theme) as opened:
            style = opened.page.evaluate(
                "(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))"
            )
            looks.append([*style, *opened.images("i.currentSrc")])
    light, dark = looks
    assert len(light) == len(dark)
    assert all(a != b for a, b in zip(light, dark, strict=True))
    assert light[:2] == ["rgb(31, 35, 40)", "rgb(255, 255, 255)"]


def test_wide_tables_scroll_by_themselves(chromium: Any, pages: dict[str, Path]) -> None:
    with Opened(chromium, pages["comparison"], PHONE, "light") as opened:
        box = opened.page.locator(".scroll").first
        assert box.evaluate("e => e.scrollWidth > e.clientWidth")
        box.focus()
        opened.page.keyboard.press("ArrowRight")
        deadline = time.monotonic() + 10
        while not box.evaluate("e => e.scrollLeft > 0"):
            assert time.monotonic() < deadline


def test_link_leads_to_the_report_of_a_run(chromium: Any, pages: dict[str, Path]) -> None:
    comparison = pages["comparison"].parent
    run = Path(write_report(epath.Path(comparison / "nam-seed0")))
    write_report(epath.Path(comparison))
    with Opened(chromium, pages["comparison"], DESKTOP, "light") as opened:
        opened.page.get_by_role("link", name="report").click()
        assert opened.page.url == run.as_uri()
        assert opened.page.title() == "resnet20 with attention nam on digits"
