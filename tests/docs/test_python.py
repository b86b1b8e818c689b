"""The Python of the pages runs as it stands, each page's in its order, and does what it says."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from nam_jax import models
from nam_jax.torch_import import names
from nam_jax.variables import abstract_variables
from tests.docs.markdown import DOCS, PAGES, README, name, python_blocks

MODEL, WEIGHTS = DOCS / "library/your_model.md", DOCS / "library/pytorch_weights.md"
# The first has the README's block, which is held equal; what the other shows takes minutes.
NOT_RUN = {README.with_name("README.zh-CN.md"), DOCS / "training/reliability.md"}


def test_every_page_with_python_is_run() -> None:
    assert {page for page in PAGES if python_blocks(page)} == {README, MODEL, WEIGHTS} | NOT_RUN


@functools.cache
def namespace(page: Path) -> dict[str, Any]:
    """What the blocks of a page define."""
    names: dict[str, Any] = {}
    for block in python_blocks(page):
        exec(compile(block, name(page), "exec"), names)
    return names


def test_model_of_others_has_attention() -> None:
    params = namespace(README)["variables"]["params"]["layers_1"]["attention"]
    assert params["channel"]["nam_bn"]["scale"].shape == (8,)
    assert params["spatial"]["nam_bn"]["scale"].shape == (16, 16)


def test_selected_modules_have_attention() -> None:
    init = functools.partial(namespace(MODEL)["network"].init, train=False)
    params = jax.eval_shape(init, jax.random.key(0), jnp.ones((1, 16, 16, 3)))["params"]
    assert params["BatchNorm_1"]["attention"]["channel"]["nam_bn"]["scale"].shape == (16,)


def test_block_trains() -> None:
    scale = namespace(MODEL)["variables"]["params"]["NAM_0"]["channel"]["nam_bn"]["scale"]
    assert scale.shape == (8,)
    assert not np.array_equal(scale, np.ones(8))


def test_tied_block_owns_only_its_batch_norm() -> None:
    block, x = namespace(MODEL)["TiedBlock"](), jnp.ones((2, 4, 4, 8))
    variables = block.init(jax.random.key(0), x, train=False)
    assert list(variables["params"]) == ["nam_bn"]
    # The BatchNorm passes the ones on; each of 8 equal scales weighs 1/8.
    y = block.apply(variables, x, train=False)
    np.testing.assert_allclose(y, 1 / (1 + np.exp(-1 / 8)), rtol=1e-4)


def test_nnx_model_has_attention() -> None:
    norm = namespace(MODEL)["nnx_network"].layers[1]
    assert norm.attention.channel.nam_bn.scale.shape == (8,)
    assert norm.attention.spatial.nam_bn.scale.shape == (16, 16)


def test_weights_keep_the_attention_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # In place of weights that would have to be downloaded: zeros, of the same names.
    np.savez(tmp_path / "weights.npz", **resnet50())
    (tmp_path / "weights.npz").rename(tmp_path / "resnet50.pth")
    monkeypatch.chdir(tmp_path)
    params = namespace(WEIGHTS)["variables"]["params"]
    assert not params["layer1_0"]["conv1"]["kernel"].any()
    assert (params["layer1_0"]["attention"]["channel"]["nam_bn"]["scale"] == 1).all()


def resnet50() -> dict[str, np.ndarray]:
    """The weights of a ResNet-50 without attention, as PyTorch has them."""
    model = models.create("resnet50", num_classes=1000)
    shapes = abstract_variables(model, (1, 224, 224, 3))
    rules = names.rules_of(model)
    return {
        names.torch_name(path, rules): np.zeros(leaf.shape[::-1], np.float32).swapaxes(-1, -2)
        if leaf.ndim == 4
        else np.zeros(leaf.shape[::-1], np.float32)
        for path, leaf in traverse_util.flatten_dict(shapes).items()
    }
