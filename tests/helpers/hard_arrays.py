"""Arrays that are hard on arithmetic, for hypothesis to draw."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# The fixture `x64` is the same for all examples.
in_float64 = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

Normal = Callable[..., np.ndarray]

KINDS: dict[str, Callable[[Normal, tuple[int, ...]], np.ndarray]] = {
    "normal": lambda normal, shape: normal(shape),
    "zeros": lambda normal, shape: np.zeros(shape),
    "negative": lambda normal, shape: -np.abs(normal(shape)),
    "some zeros": lambda normal, shape: np.maximum(normal(shape), 0),
    "constant channels": lambda normal, shape: normal(shape[-1:]) + np.zeros(shape),
    "far from zero": lambda normal, shape: 1000 + normal(shape),
    "one spike": lambda normal, shape: 1e4 * (normal(shape).argsort(None).reshape(shape) == 0),
    "huge": lambda normal, shape: 1e10 * normal(shape),
    "tiny": lambda normal, shape: 1e-30 * normal(shape),
    "subnormal": lambda normal, shape: 1e-40 * normal(shape),
    "all sizes": lambda normal, shape: normal(shape) * 10.0 ** (5 * normal(shape)).clip(-30, 10),
}


def hard_array(
    rng: np.random.Generator, kind: str, shape: tuple[int, ...], dtype: Any
) -> np.ndarray:
    """An array of one of the kinds, as far as the dtype holds it; nothing in it is infinite."""
    largest = float(jnp.finfo(dtype).max)
    return KINDS[kind](rng.standard_normal, shape).clip(-largest, largest).astype(dtype)


def hard_arrays(
    shape: tuple[int, ...], dtype: Any, kinds: Sequence[str] = tuple(KINDS)
) -> st.SearchStrategy[np.ndarray]:
    """Arrays of some kinds."""
    rngs = st.integers(0, 2**32 - 1).map(np.random.default_rng)
    return st.builds(hard_array, rngs, st.sampled_from(kinds), st.just(shape), st.just(dtype))
