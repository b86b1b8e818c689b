"""Building blocks that the networks share."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from nam_jax.attention import attention
from nam_jax.batch_norm import AxisNames, BatchNorm


def norm_options(
    *, train: bool, dtype: Dtype | None, axis_name: AxisNames | None
) -> dict[str, Any]:
    """The fields that a network's BatchNorms and attention modules have in common."""
    return {
        "use_running_average": not train,
        "momentum": 0.9,
        "epsilon": 1e-5,
        "dtype": dtype,
        "axis_name": axis_name,
    }


def conv(
    features: int, kernel_size: int, strides: int = 1, *, dtype: Dtype | None, name: str
) -> nn.Conv:
    """A convolution without bias, padded on every side by half its kernel.

    Not "SAME": with strides that would pad unevenly. The kernels are uniform in
    ±sqrt(6 / fan_in), as in the authors' code.
    """
    return nn.Conv(
        features,
        (kernel_size, kernel_size),
        strides=strides,
        padding=(kernel_size - 1) // 2,
        use_bias=False,
        kernel_init=nn.initializers.he_uniform(),
        dtype=dtype,
        name=name,
    )


def norm_and_attention(
    x: jax.Array,
    attention_name: str,
    options: dict[str, Any],
    *,
    norm_name: str,
    scale_init: Initializer = nn.initializers.ones,
) -> jax.Array:
    """The last BatchNorm of a block and the attention over its output.

    The BatchNorm hands the moments of its output on, so that channel attention has none to
    compute. With `nam_tied` the BatchNorm itself is called `nam_bn`: its scale is the NAM
    scale, and the attention owns nothing.

    Args:
      x: (N, H, W, C).
      attention_name: a name of `nam_jax.attention`.
      options: from `norm_options`.
      norm_name: name of the BatchNorm where it is not `nam_bn`.
      scale_init: initialiser of the BatchNorm's scale.
    """
    tied = attention_name == "nam_tied"
    bn = BatchNorm(**options, scale_init=scale_init, name="nam_bn" if tied else norm_name)
    x, moments = bn(x, return_moments=True)
    module = attention(attention_name)
    if module is None:
        return x
    call = {"scale": bn.variables["params"]["scale"]} if tied else {"moments": moments}
    return module(**options, name="attention")(x, **call)


def head(x: jax.Array, num_classes: int) -> jax.Array:
    """Global average pooling and the classifier `fc`, in float32 or wider.

    Weights and biases are uniform in ±1 / sqrt(fan_in), as PyTorch initialises them.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2))
    bound = x.shape[-1] ** -0.5

    def bias_init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    return nn.Dense(num_classes, kernel_init=kernel_init, bias_init=bias_init, name="fc")(x)
