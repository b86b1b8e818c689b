"""What a release tells of itself, in the places where it stands."""

import json
import re
from pathlib import Path

import nam_jax

ROOT = Path(__file__).parents[1]


def test_version_is_the_same_everywhere() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", nam_jax.__version__)
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {nam_jax.__version__}\n" in citation
    newest = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = re.search(r"^date-released: \"(.+)\"$", citation, re.MULTILINE)
    assert newest
    assert released
    assert newest[1] in (f"{nam_jax.__version__} ({released[1]})", "Unreleased")


def test_tour_is_small_and_has_its_outputs() -> None:
    path = ROOT / "examples/tour.ipynb"
    assert path.stat().st_size < 300_000
    cells = json.loads(path.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", ()) for output in outputs) >= 3
    # Neither errors nor warnings, and nobody's paths but those of temporary files.
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
    assert {output["name"] for output in outputs if "name" in output} == {"stdout"}
    told = "".join(text for output in outputs for text in output.get("text", ()))
    assert set(re.findall(r"(?<![\w.])/[\w.-]+/", told)) <= {"/tmp/"}
