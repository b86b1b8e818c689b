"""The README's Python examples run, in the order in which they stand."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def namespace() -> dict[str, Any]:
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    return names


def test_block_trains(namespace: dict[str, Any]) -> None:
    scale = namespace["variables"]["params"]["NAM_0"]["channel"]["nam_bn"]["scale"]
    assert scale.shape == (8,)
    assert not np.array_equal(scale, np.ones(8))


def test_tied_block_owns_only_its_batch_norm(namespace: dict[str, Any]) -> None:
    x = jnp.ones((2, 4, 4, 8))
    variables = namespace["TiedBlock"]().init(jax.random.key(0), x, train=False)
    assert list(variables["params"]) == ["nam_bn"]
    # The BatchNorm passes the ones on; each of 8 equal scales weighs 1/8.
    y = namespace["TiedBlock"]().apply(variables, x, train=False)
    np.testing.assert_allclose(y, 1 / (1 + np.exp(-1 / 8)), rtol=1e-4)


def test_commands_name_files_that_exist() -> None:
    for path in re.findall(r"configs/\w+\.py", README.read_text()):
        assert (README.parent / path).exists()
