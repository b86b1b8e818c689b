"""Every attention module gives the numbers of its reference implementation."""

import jax
import pytest
from flax import traverse_util

from nam_jax.attention import has_nam_scales
from tests.helpers.arrays import assert_close
from tests.helpers.networks import GOLDEN, MODULES, train_step, vectors

# The vectors that have to be there; those of a further module are found by its name.
STORED = ("nam_channel", "nam_spatial", "nam", "se", "bam", "cbam", "tam", "eca", "simam")
STORED += ("coordatt",)
each_name = pytest.mark.parametrize(
    "name", [name for name in MODULES if name in STORED or (GOLDEN / f"{name}.npz").exists()]
)


@each_name
def test_evaluation(x64, name):
    module = MODULES[name](use_running_average=True)
    golden = vectors(name, module)
    assert_close(jax.jit(module.apply)(golden.variables, golden.x), golden.eval_y)


@each_name
def test_training(x64, name):
    module = MODULES[name]()
    golden = vectors(name, module)
    actual = train_step(module, golden.variables, golden.x, golden.cotangent)
    assert_close(actual.y, golden.step.y)
    assert_close((actual.dx, actual.dparams), (golden.step.dx, golden.step.dparams))
    if golden.step.statistics:
        assert_close(actual.statistics, golden.step.statistics)


@pytest.mark.parametrize("name", [name for name in STORED if has_nam_scales(name)])
def test_scales_have_both_signs(name):
    params = traverse_util.flatten_dict(vectors(name, MODULES[name]()).variables["params"])
    assert any((leaf < 0).any() for path, leaf in params.items() if path[-1] == "scale"), (
        "The vectors say nothing about the absolute values in W."
    )
