"""Backbones give the logits of torchvision 0.28, in float64, for weights in its naming."""

import functools

import jax
import numpy as np
import pytest

from nam_jax import models, torch_import
from tests.helpers.arrays import assert_close
from tests.helpers.networks import GOLDEN, draw_state_dict, nhwc


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
def test_logits_of_torchvision(x64, name):
    with np.load(GOLDEN / "torchvision.npz") as file:
        stored = {key.split(":")[1]: file[key] for key in file.files if key.startswith(name)}
    state_dict = draw_state_dict(stored["names"], stored["shapes"], int(stored["seed"]))
    x = nhwc(stored["x"])
    model = models.create(name, num_classes=stored["eval_logits"].shape[1])
    variables = torch_import.variables(model, state_dict, x.shape)
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, x)
    assert_close(logits, stored["eval_logits"])
