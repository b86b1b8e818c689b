"""The site in a real browser, on a desktop and on a phone, light and dark, without a network."""

from typing import Any

import pytest

from tests.docs.markdown import DOCS

pytestmark = pytest.mark.page

SITE = DOCS.parent / "build/html"  # `make docs` makes it.
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
IS_WIDE = "document.documentElement.scrollWidth > window.innerWidth"
FORMULAS = "[...document.querySelectorAll('math')].map(math => math.getBoundingClientRect().width)"
PICTURES = "[...document.images].map(image => image.naturalWidth)"


@pytest.mark.parametrize(
    ("size", "theme"),
    [(DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light"), (PHONE, "dark")],
)
def test_every_page_fits_and_is_whole(chromium: Any, size: dict[str, int], theme: str) -> None:
    context = chromium.new_context(viewport=size, color_scheme=theme, offline=True)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(request.url))
    formulas = pictures = 0
    for path in sorted(SITE.rglob("*.html")):
        page.goto(path.as_uri(), wait_until="load")
        widths, sizes = page.evaluate(FORMULAS), page.evaluate(PICTURES)
        assert not page.evaluate(IS_WIDE), path
        assert all(width > 5 for width in widths), path
        assert all(sizes), path
        formulas, pictures = formulas + len(widths), pictures + len(sizes)
    assert complaints == []
    assert formulas > 20
    assert pictures > 3
    context.close()
