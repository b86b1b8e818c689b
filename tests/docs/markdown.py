"""The pages of the documentation, and the code in them."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
README = REPOSITORY / "README.md"
BESIDE = (README, REPOSITORY / "README.zh-CN.md", REPOSITORY / "benchmarks/README.md")
PAGES = (*BESIDE, *sorted(DOCS.rglob("*.md")))


def name(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def code_blocks(page: Path) -> list[str]:
    """The fenced and indented blocks of a page, in their order, without comments."""
    text = re.sub(
        r"^```\w*\n(.*?)^```$", _indented, page.read_text(), flags=re.DOTALL | re.MULTILINE
    )
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, re.MULTILINE)
    return [re.sub(r" *(?<=[ \n])# .*", "", block).strip("\n") for block in blocks]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    """The commands `python -m train.NAME …` of a page, each `NAME …` in one line."""
    lines = "\n".join(code_blocks(page)).replace("\\\n", " ")
    # In YAML an option begins a line.
    lines = re.sub(r"\n +--", " --", lines)
    found = re.findall(r"python -m train\.(\w.*?)'?$", lines, re.MULTILINE)
    return [" ".join(command.split()) for command in found]


def _indented(fenced: re.Match[str]) -> str:
    return "\n" + re.sub("^", "    ", fenced[1], flags=re.MULTILINE) + "\n"
