"""Operations that no network of the library has, or has in other forms; and what is refused."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from flax import linen as nn

import nam_jax
from nam_jax.export import UnsupportedOperationError

SHAPE = (6, 4, 5)
X = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
SCALES = np.arange(1, 6, dtype=np.float32)
W = np.random.default_rng(1).standard_normal((5, 3)).astype(np.float32)


class Function(nn.Module):
    """A network without weights."""

    function: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return self.function(x)


def exported(function: Callable[[jax.Array], jax.Array], **options: Any) -> bytes:
    return nam_jax.export_onnx(Function(function), {}, SHAPE, **options)


def simam(x: jax.Array) -> jax.Array:
    d = jnp.square(x - x.mean((1, 2), keepdims=True))
    return x * jax.nn.sigmoid(d / (4 * (d.mean((1, 2), keepdims=True) + 1e-4)) + 0.5)


def coordinates(x: jax.Array) -> jax.Array:
    rows, columns = x.mean(2, keepdims=True), x.mean(1, keepdims=True)
    y = jnp.concatenate([rows, columns.transpose(0, 2, 1, 3)], axis=1)
    y = jax.nn.hard_swish(y)
    row_gate, column_gate = y[:, :6], y[:, 6:].transpose(0, 2, 1, 3)
    return x * jax.nn.sigmoid(row_gate) * jax.nn.sigmoid(column_gate)


def along_channels(x: jax.Array) -> jax.Array:
    y = x.mean((1, 2))[..., None]
    kernel = jnp.asarray([0.5, -1, 2])[:, None, None]
    y = jax.lax.conv_general_dilated(
        y, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )
    return x * jax.nn.sigmoid(y.squeeze(-1))[:, None, None]


def convolved(x: jax.Array) -> jax.Array:
    """Maps (N, 6, 4, 4), as wide as they have channels."""
    kernel = jnp.linspace(-1, 1, 20).reshape(1, 1, 5, 4)
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)


def scaled_and_used_twice(x: jax.Array) -> jax.Array:
    y = 0.5 * convolved(x)
    return jax.nn.relu(y) + jnp.tanh(3 * y)


def turned_and_used_twice(x: jax.Array) -> jax.Array:
    y = convolved(x)
    turned = jnp.transpose(y, (0, 1, 3, 2)) + jnp.arange(4.0)
    return jnp.tanh(turned).sum((1, 2)) + jnp.tanh(y).sum((1, 3))


FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "SimAM": simam,
    "coordinate attention": coordinates,
    "ECA": along_channels,
    "half of it": lambda x: x * jnp.full((5,), 0.5),
    "a constant minus it": lambda x: 1 - x / 3,
    "a constant over it": lambda x: 2 / (x * x + 1),
    "negative": lambda x: -(3 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "split": lambda x: jnp.multiply(*jnp.split(x, 2, axis=2)),
    "indexed": lambda x: x[:, 2:4, :, -1],
    "powers": lambda x: jnp.abs(x) ** 0.5 + x**3,
    "norm": lambda x: x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1),
    "exp and log": lambda x: jnp.log(jnp.exp(jnp.tanh(x)) + 1),
    "clipped": lambda x: jnp.maximum(jnp.minimum(x, 0.5), -0.5),
    "leaky": lambda x: jnp.maximum(0.1 * x, x),
    "pooled": lambda x: nn.max_pool(x, (3, 2), (2, 1), ((1, 1), (0, 1))),
    "flattened": lambda x: x.reshape(x.shape[0], -1),
    "turned": lambda x: x.transpose(0, 2, 1, 3) @ W,
    "padded": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 0), (0, 3)), constant_values=2),
    "a scaled gate": lambda x: x * (1.5 * (0.5 + 0.5 * jnp.tanh(x))),
    "tanh and a sum": lambda x: 0.5 + 0.25 * jnp.tanh(x),
    "a gate used twice": lambda x: (0.5 + 0.5 * jnp.tanh(x)) * (x + jnp.tanh(x)),
    "a layer used twice": lambda x: (x @ W) * 2 + (x @ W).sum(-1, keepdims=True),
    "a scaled layer used twice": scaled_and_used_twice,
    "a turned layer used twice": turned_and_used_twice,
    "a turned layer": lambda x: jnp.transpose(convolved(x), (0, 1, 3, 2)) + jnp.arange(4.0),
    "a product for each channel": lambda x: x * SCALES,
    "a gate for each channel": lambda x: x * jax.nn.sigmoid(x * SCALES + 1),
    "a gate of tanh for each channel": lambda x: SCALES * (1 + jnp.tanh(x)),
    "a sum wider than its value": lambda x: (x.mean(-1, keepdims=True) + SCALES)[..., 3],
    "a wider sum, summed": lambda x: (x.mean(-1, keepdims=True) + SCALES).sum((1, 2, 3)) / 24,
    "a product wider than its value": lambda x: x.mean(-1, keepdims=True) * SCALES + 1,
    "a vector wider than its value": lambda x: x.mean((1, 2, 3))[:, None] * SCALES + 1,
    "the batch last": lambda x: (x.transpose(1, 2, 3, 0) * 2.0).transpose(3, 0, 1, 2),
    "rematerialised": lambda x: jax.checkpoint(jnp.tanh)(x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operations(name: str) -> None:
    function = FUNCTIONS[name]
    session = onnxruntime.InferenceSession(exported(function), providers=["CPUExecutionProvider"])
    for count in (1, 2):
        (result,) = session.run(None, {"images": X[:count]})
        wanted = jax.jit(function)(X[:count])
        assert result.shape == wanted.shape
        np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-6)


def test_probabilities_and_metadata() -> None:
    file = exported(lambda x: x.mean((1, 2)), probabilities=True, metadata={"classes": '["数"]'})
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (result,) = session.run(["probabilities"], {"images": X})
    np.testing.assert_allclose(result, jax.nn.softmax(X.mean((1, 2))), rtol=1e-5)
    assert session.get_modelmeta().custom_metadata_map == {"classes": '["数"]'}


def test_bytes_become_floats_once() -> None:
    graph = onnx.load_from_string(exported(lambda x: 2 * x, mean=[0.5], std=[0.25])).graph
    assert [node.op_type for node in graph.node] == ["Cast", "Mul", "Add", "Identity"]


REFUSED: dict[str, tuple[Callable[[jax.Array], jax.Array], str]] = {
    "an unknown operation": (lambda x: jnp.cumsum(x, 1), "knows no operation cumsum"),
    "a loop": (
        lambda x: jax.lax.fori_loop(0, 3, lambda i, x: x * i, x),
        r"knows no operation (scan|while) .* StableHLO \(nam_jax\.export\) can hold every network",
    ),
    "indices with strides": (lambda x: x[:, ::2], "indexes by constant numbers and whole ranges"),
    "a product of two maps": (
        lambda x: jnp.einsum("nhwc,nhwd->ncd", x, x),
        "products with constant matrices alone",
    ),
    "no use of the images": (lambda x: jnp.ones(3), "result that depends on the input"),
    "whole numbers": (lambda x: x.astype(int), "converts to floating types alone"),
    "a map that is broadcast, then reduced": (
        lambda x: jnp.broadcast_to(x.mean(1, keepdims=True), x.shape).sum(1),
        "in sums, products and the like alone",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_refused(name: str) -> None:
    function, message = REFUSED[name]
    with pytest.raises(UnsupportedOperationError, match=message) as error:
        exported(function)
    assert str(error.value).count("StableHLO") == 1
