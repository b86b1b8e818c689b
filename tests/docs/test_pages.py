"""The pages: what has to be on them, and where they lead; `make docs` looks at the rest."""

import importlib
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.docs.markdown import DOCS, PAGES, README, code_blocks, name

CHINESE = {
    README: README.with_name("README.zh-CN.md"),
    DOCS / "start/first_steps.md": DOCS / "zh/first_steps.md",
}


def test_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 180


@pytest.mark.parametrize("page", CHINESE, ids=name)
def test_chinese_page_has_the_same_code(page: Path) -> None:
    assert code_blocks(page)
    assert code_blocks(CHINESE[page]) == code_blocks(page)


@pytest.mark.parametrize(
    ("page", "other"), [*CHINESE.items(), *((v, k) for k, v in CHINESE.items())]
)
def test_languages_lead_to_one_another(page: Path, other: Path) -> None:
    beginning = "".join(page.read_text().splitlines()[:5])
    links = re.findall(r"\]\(([^)]*)\)", beginning)
    assert other in [(page.parent / link).resolve() for link in links]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]*)", page.read_text()):
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_promises_name_tests_that_are_there() -> None:
    named = set(re.findall(r"`(test_\w+\.py)`", (DOCS / "training/reliability.md").read_text()))
    there = Counter(path.name for path in (DOCS.parent / "tests").rglob("test_*.py"))
    assert {name: there[name] for name in named} == dict.fromkeys(named, 1)
    assert len(named) > 20


def test_everything_public_is_in_the_reference() -> None:
    text = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    described = re.findall(r"^\.\. auto\w+:: (\S+)$", text, re.MULTILINE)
    assert len(described) == len(set(described))
    for module in ("nam_jax", "nam_jax.models", "nam_jax.nnx", "nam_jax.torch_import"):
        names = {f"{module}.{name}" for name in importlib.import_module(module).__all__}
        assert names - {"nam_jax.models", "nam_jax.torch_import"} <= {*described}
