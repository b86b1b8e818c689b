"""Every attention module gives the numbers of its reference implementation."""

import jax
import pytest

from nam_jax.attention import NAMES, attention
from tests.helpers.parity import assert_close, train_step, vectors

each_name = pytest.mark.parametrize("name", [n for n in NAMES if n not in ("none", "nam_tied")])


@each_name
def test_evaluation(x64, name):
    module = attention(name)(use_running_average=True)
    golden = vectors(name, module)
    assert_close(jax.jit(module.apply)(golden.variables, golden.x), golden.eval_y)


@each_name
def test_training(x64, name):
    module = attention(name)()
    golden = vectors(name, module)
    actual = train_step(module, golden.variables, golden.x, golden.cotangent)
    assert_close(actual.y, golden.step.y)
    assert_close((actual.dx, actual.dparams), (golden.step.dx, golden.step.dparams))
    if golden.step.statistics:
        assert_close(actual.statistics, golden.step.statistics)
