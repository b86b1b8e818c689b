"""Trained networks as their authors give them, on real images."""

import functools

import jax
import numpy as np
import pytest

from nam_jax import models, torch_import
from tests.helpers.real_data import real

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("name", "file", "wrong"),
    [
        pytest.param("resnet20", "resnet20-12fca82f.th", 69, marks=pytest.mark.slow),
        pytest.param("resnet56", "resnet56-4bfd9763.th", 54, marks=pytest.mark.long),
    ],
)
def test_errors_of_trained_networks(name, file, wrong):
    """Published errors on all 10,000 images: 8.27 and 6.61 %."""
    weights = real(f"weights/{file}")
    with np.load(real("weights/cifar10_test_1000.npz")) as stored:
        images, labels = stored["images"], stored["labels"]
    model = models.create(name, num_classes=10, stem="cifar")
    plan = torch_import.plan(model, torch_import.read(weights), (1, 32, 32, 3))
    assert plan.fresh == []
    x = ((images / 255 - MEAN) / STD).astype(np.float32)
    logits = jax.jit(functools.partial(model.apply, train=False))(plan.variables(), x)
    assert (np.argmax(logits, -1) != labels).sum() == wrong
