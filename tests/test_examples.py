"""The examples run as they stand, and learn."""

import os
from pathlib import Path

import pytest

from examples import linen_model, nnx_model, pretrained_model
from tests.helpers.values import with_slow

pytestmark = pytest.mark.usefixtures("quick_compilation")


@with_slow("attention", ["nam", "none", "bam"], ("none", "bam"))
def test_linen_model_learns(attention: str) -> None:
    losses = linen_model.train(attention, steps=5)
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_nnx_model_learns() -> None:
    losses = nnx_model.train(steps=5)
    assert losses[-1] < losses[0]


@pytest.mark.long
def test_pretrained_network_keeps_its_error() -> None:
    data = Path(os.environ.get("NAM_JAX_TEST_DATA", ""))
    weights = data / "weights/mobilenet_v2-b0353104.pth"
    if not weights.exists():
        pytest.skip("NAM_JAX_TEST_DATA has no weights/mobilenet_v2-b0353104.pth")
    images, classes = data / "imagenet_samples", data / "imagenet_classes.txt"
    plain, once, twice = pretrained_model.main(str(weights), str(images), str(classes)).values()
    assert plain == 16.5
    assert once > 95
    assert abs(twice - plain) <= 1
