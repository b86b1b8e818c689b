"""What a run tells of the machine."""

import datetime
import json
import platform
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


def test_versions_and_devices() -> None:
    described = environment.describe()
    keys = {"versions", "platform", "processor", "device_kind", "devices", "processes", "date"}
    assert described.keys() == keys
    packages = {"python", "jax", "jaxlib", "flax", "optax", "nam_jax"}
    assert described["versions"].keys() == packages
    assert all(version[0].isdigit() for version in described["versions"].values())
    assert (described["device_kind"], described["devices"]) == ("cpu", 4)
    assert described["processes"] == 1
    datetime.date.fromisoformat(described["date"])


def test_name_of_the_machine_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "secret-host"
    uname = platform.uname()
    monkeypatch.setattr(platform, "uname", lambda: uname._replace(node=name))
    monkeypatch.setattr(platform, "node", lambda: name)
    assert name not in json.dumps(environment.describe())
