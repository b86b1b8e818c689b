"""The bottleneck attention module."""

import jax
from flax import linen as nn

from nam_jax.attention.base import AttentionModule, check_at_least_1, check_rank, shared_fields
from nam_jax.attention.parts import MLP, hidden_features
from nam_jax.layers import initializers
from nam_jax.layers.batch_norm import Moments
from nam_jax.layers.convolution import convolution
from nam_jax.layers.dtypes import widened


class BAM(AttentionModule, kw_only=True):
    """Channel and spatial attention side by side: y = (1 + sigmoid(M_c M_s)) x.

    .. math::
      M_c = fc2(relu(BN(fc1(mean x))))
      M_s = conv1(layer(layer(reduce(x))))

    The mean is over the map; reduce is a 1×1 convolution to C/reduction channels and layer a
    dilated 3×3 convolution, each followed by BN and ReLU, and conv1 a 1×1 convolution to one
    channel.

    The paper adds the branches; they are multiplied here, as in its authors' code. All
    layers have biases. Unlike the other modules it stands between the stages of a network.

    Attributes:
      reduction: Number of channels for every feature inside both branches (at least one
        feature is left).
      dilation: Dilation of the 3×3 convolutions, in pixels.
      momentum: Decay rate for the running statistics, in [0, 1].
      epsilon: Small positive number added to the variance.
      use_running_average, dtype, param_dtype, axis_name: see `AttentionModule`.

    Example:
      >>> import jax, jax.numpy as jnp, nam_jax
      >>> x = jnp.ones((2, 4, 4, 32))
      >>> module = nam_jax.BAM(use_running_average=True)
      >>> variables = module.init(jax.random.key(0), x)
      >>> module.apply(variables, x).shape
      (2, 4, 4, 32)

    Source: J. Park, S. Woo, J.-Y. Lee and I. S. Kweon, BAM: Bottleneck Attention Module,
    2018, https://arxiv.org/abs/1807.06514, section 3.
    """

    reduction: int = 16
    dilation: int = 4
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        moments: Moments | None = None,
    ) -> jax.Array:
        """Gates x.

        Args:
          x: Input (N, H, W, C).
          use_running_average: The attribute of this name, unless given at construction.
          moments: Not used.

        Returns:
          Gated input (1 + sigmoid(M_c M_s)) x, of the shape of x.

        Raises:
          ValueError: x is no (N, H, W, C) array, or a hyper-parameter is out of its range.
        """
        del moments
        check_rank(self, x)
        check_at_least_1(self, "dilation")
        channel = self._channel_branch(widened(x), use_running_average)
        spatial = self._spatial_branch(widened(x), use_running_average)
        return self._gated(x, 1 + nn.sigmoid(channel * spatial))

    def _channel_branch(self, x: jax.Array, use_running_average: bool | None) -> jax.Array:
        mlp = MLP(**shared_fields(self, MLP), use_bias=True, name="channel")
        bn = self._batch_norm("channel_bn")
        return mlp(x.mean((1, 2)), lambda y: bn(y, use_running_average))[:, None, None]

    def _spatial_branch(self, x: jax.Array, use_running_average: bool | None) -> jax.Array:
        features = hidden_features(x.shape[-1], self.reduction)
        for name, kernel_size in (("reduce", 1), ("dilated0", 3), ("dilated1", 3)):
            x = self._conv(x, features, kernel_size, f"spatial_{name}")
            x = nn.relu(self._batch_norm(f"spatial_{name}_bn")(x, use_running_average))
        return self._conv(x, 1, 1, "spatial_final")

    def _conv(self, x: jax.Array, features: int, kernel_size: int, name: str) -> jax.Array:
        return nn.Conv(
            features,
            (kernel_size, kernel_size),
            kernel_dilation=int(self.dilation),
            kernel_init=initializers.conv_kernel,
            bias_init=initializers.bias(x.shape[-1] * kernel_size**2),
            conv_general_dilated=convolution,
            param_dtype=self.param_dtype,
            name=name,
        )(x)
