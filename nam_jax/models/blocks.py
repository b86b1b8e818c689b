"""Building blocks that the networks share."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict
from flax.typing import Dtype, Initializer

from nam_jax.attention import attention as find_attention
from nam_jax.attention.base import AttentionModule
from nam_jax.layers import initializers
from nam_jax.layers.batch_norm import AxisNames, BatchNorm
from nam_jax.layers.convolution import convolution
from nam_jax.layers.dtypes import widened

Stem = Literal["imagenet", "cifar"]
STEMS: tuple[str, ...] = get_args(Stem)


class Attention(NamedTuple):
    """The attention of a network.

    Attributes:
      name: Name of the attention, see `nam_jax.attention`.
      hyperparameters: Fields of the module that differ from their defaults.
    """

    name: str
    hyperparameters: Mapping[str, Any] = FrozenDict()

    def module(self, options: Mapping[str, Any], name: str) -> AttentionModule | None:
        """The module, with fields from `shared_options`; None of no attention."""
        kind: type[AttentionModule] | None = find_attention(self.name)
        return None if kind is None else kind(**options, **self.hyperparameters, name=name)


def shared_options(
    *, train: bool, dtype: Dtype | None, axis_name: AxisNames | None
) -> dict[str, Any]:
    """The fields that a network's BatchNorms and attention modules have in common."""
    return {"use_running_average": not train, "dtype": dtype, "axis_name": axis_name}


def conv(
    features: int,
    kernel_size: int,
    strides: int = 1,
    *,
    groups: int = 1,
    dtype: Dtype | None,
    name: str,
) -> nn.Conv:
    """A convolution without bias, padded on every side by half its kernel.

    Not "SAME": with strides that would pad unevenly.
    """
    return nn.Conv(
        features,
        (kernel_size, kernel_size),
        strides=strides,
        padding=(kernel_size - 1) // 2,
        feature_group_count=groups,
        use_bias=False,
        kernel_init=initializers.conv_kernel,
        conv_general_dilated=convolution,
        dtype=dtype,
        name=name,
    )


def batch_norm(
    options: dict[str, Any], *, name: str, scale_init: Initializer = nn.initializers.ones
) -> BatchNorm:
    """A BatchNorm with the momentum of PyTorch's, which is 0.1 in its own terms.

    Args:
      options: Fields from `shared_options`.
      name: Name of the module.
      scale_init: Initialiser of the scale.
    """
    return BatchNorm(**options, momentum=0.9, scale_init=scale_init, name=name)


def norm_and_attention(
    x: jax.Array,
    attention: Attention,
    options: dict[str, Any],
    *,
    norm_name: str,
    scale_init: Initializer = nn.initializers.ones,
) -> jax.Array:
    """The last BatchNorm of a block and the attention over its output.

    The BatchNorm hands the moments of its output on, so that channel attention has none to
    compute. With `nam_tied` the BatchNorm itself is called `nam_bn`: its scale is the NAM
    scale, and the attention owns nothing. BAM stands between stages, not in blocks.

    Args:
      x: Output of the block's last convolution, (N, H, W, C).
      attention: Attention of the network.
      options: Fields from `shared_options`.
      norm_name: Name of the BatchNorm where it is not `nam_bn`.
      scale_init: Initialiser of the BatchNorm's scale.
    """
    tied = attention.name == "nam_tied"
    module = None if attention.name == "bam" else attention.module(options, "attention")
    # Unrounded into attention, which rounds its own result: the compiler then fuses the two.
    norm_options = options if module is None else {**options, "dtype": None}
    bn = batch_norm(norm_options, name="nam_bn" if tied else norm_name, scale_init=scale_init)
    x, moments = bn(x, return_moments=True)
    if module is None:
        return x
    call = {"scale": bn.variables["params"]["scale"]} if tied else {"moments": moments}
    return module(x, **call)


def between_stages(
    x: jax.Array, attention: Attention, options: dict[str, Any], *, name: str
) -> jax.Array:
    """The attention where the resolution is about to drop: BAM, or none.

    Args:
      x: Output of a stage, (N, H, W, C).
      attention: Attention of the network.
      options: Fields from `shared_options`.
      name: Name of the module.
    """
    module = attention.module(options, name) if attention.name == "bam" else None
    return x if module is None else module(x)


def relu(x: jax.Array) -> jax.Array:
    """max(x, 0), for GPUs with a derivative that reads the result: x need not be kept for it.

    On TPUs the same would move more: see benchmarks/README.md.
    """
    return jax.lax.platform_dependent(x, cuda=_relu_of_result, default=nn.relu)


@jax.custom_jvp
def _relu_of_result(x: jax.Array) -> jax.Array:
    return nn.relu(x)


@_relu_of_result.defjvp
def _relu_of_result_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    y, (dx,) = _relu_of_result(*primals), tangents
    # XLA would make y > 0 the same of x again.
    return y, jnp.where(y != 0, dx, 0)


def drop_rates(drop_path: float, num_blocks: int) -> list[float]:
    """The rate of every block's `drop_path`: from 0 for the first, linearly, to the last's."""
    return [drop_path * number / max(1, num_blocks - 1) for number in range(num_blocks)]


def needed_keys(
    row_keys: jax.Array | None, rows: int, *rates: float, train: bool
) -> jax.Array | None:
    """The random keys of the rows, or None where nothing is dropped.

    Raises:
      ValueError: there are not as many keys as rows, and something is to be dropped; or a rate is
        not in [0, 1).
    """
    if not all(0 <= rate < 1 for rate in rates):
        raise ValueError(f"drop_path and dropout have to be in [0, 1); got {rates}.")
    if not train or not any(rates):
        return None
    # One key for all would drop the same of each.
    if row_keys is None or row_keys.shape[:1] != (rows,):
        got = "none" if row_keys is None else f"the shape {row_keys.shape}"
        raise ValueError(
            "drop_path and dropout need row_keys in training: a random key for every image, such "
            f"as jax.random.split(key, len(x)), here {rows}; got {got}."
        )
    return row_keys


def keys_of(row_keys: jax.Array | None, place: int) -> jax.Array | None:
    """The keys of the rows for one place of a network; None where there are none."""
    if row_keys is None:
        return None
    return jax.vmap(lambda key: jax.random.fold_in(key, place))(row_keys)


def drop(
    x: jax.Array, keys: jax.Array | None, rate: float, shape: tuple[int, ...] = (1, 1, 1)
) -> jax.Array:
    """Sets parts of each row to zero at random, and divides the rest by 1 − rate.

    Args:
      x: Rows, (N, …).
      keys: Random key of each row, (N,); None: nothing is dropped.
      rate: Probability that a part is zero, in [0, 1).
      shape: Shape of a row's draws: of ones for stochastic depth, all or nothing, and that of the
        row for dropout.

    Source: G. Huang, Y. Sun, Z. Liu, D. Sedra and K. Weinberger, Deep Networks with Stochastic
    Depth, 2016, https://arxiv.org/abs/1603.09382; N. Srivastava, G. Hinton, A. Krizhevsky, I.
    Sutskever and R. Salakhutdinov, Dropout, 2014, https://jmlr.org/papers/v15/srivastava14a.html.
    """
    if keys is None or not rate:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, shape))(keys)
    return jnp.where(kept, x / (1 - rate), 0)


def head(
    x: jax.Array, num_classes: int, keys: jax.Array | None = None, dropout: float = 0.0
) -> jax.Array:
    """Global average pooling, dropout and the classifier `fc`, in float32 or wider.

    Args:
      x: Output of the last block, (N, H, W, C).
      num_classes: Number of logits.
      keys: Random key of each row, (N,); None: nothing is dropped.
      dropout: Probability that a feature is dropped.
    """
    x = widened(x).mean((1, 2))
    x = drop(x, keys, dropout, x.shape[1:])
    return nn.Dense(
        num_classes,
        kernel_init=initializers.linear_kernel,
        bias_init=initializers.bias(x.shape[-1]),
        name="fc",
    )(x)
