"""The precision that statistics and gates are computed in."""

import jax
import jax.numpy as jnp


def widened(x: jax.Array) -> jax.Array:
    """Converts x to float32 unless it is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
