"""What a run tells of the machine."""

from pathlib import Path

import pytest

from train.core.devices import environment

CPUINFO = """processor\t: 0
model name\t: Fast CPU @ 2 GHz
flags\t\t: fpu avx avx2 fma avx512f amx_tile
processor\t: 1
model name\t: Another
flags\t\t: fpu
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [(CPUINFO, "Fast CPU @ 2 GHz (avx, avx2, fma, avx512f, amx_tile)"), ("", "aarch64")],
)
def test_processor_is_named_with_its_instruction_sets(
    monkeypatch: pytest.MonkeyPatch, text: str, expected: str
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    monkeypatch.setattr(environment.platform, "processor", lambda: "")
    monkeypatch.setattr(environment.platform, "machine", lambda: "aarch64")
    assert environment.processor() == expected
