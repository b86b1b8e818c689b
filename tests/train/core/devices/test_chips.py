"""The peaks of chips, by what JAX calls them."""

import pytest

from train.core.devices import chips


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA H200 NVL", 835.5),
    ],
)
def test_peak_of_a_device(kind, tflops):
    assert chips.peak_flops(kind) == 1e12 * tflops


@pytest.mark.parametrize("kind", ["cpu", "TPU v3", "NVIDIA H100 NVL", "NVIDIA GeForce RTX 4090"])
def test_what_is_not_known_has_none(kind):
    assert chips.peak_flops(kind) is None
