"""State dicts into variables: names, layouts, and what is fresh."""

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from nam_jax.torch_import import names
from nam_jax.torch_import.misfit import check, is_real
from nam_jax.torch_import.wording import few
from nam_jax.variables import TreePath, abstract_variables, initial_variables, is_attention

_log = logging.getLogger(__name__)


def variables(
    module: nn.Module,
    state_dict: Mapping[str, Any],
    input_shape: tuple[int, ...],
    *,
    new_head: bool | None = False,
    key: jax.Array | None = None,
) -> dict[str, Any]:
    """Turns a PyTorch state dict into the variables of a Flax module.

    Convolutions (O, I, H, W) become (H, W, I, O), linear layers (O, I) become (I, O), and
    the scales of pixels (H·W,) become (H, W). Running variances are taken as they are: PyTorch's
    are unbiased, Flax's are not.

    Names are those of torchvision's ResNet and MobileNetV2, and of the reference code of
    each attention. Besides, what code in circulation does otherwise is understood: prefixes that
    all entries share (`module.`, `_orig_mod.`, `backbone.` and any others, in any combination); a
    classifier called `linear`, `head`, `classifier` or `last_linear`, or that is one of their
    parts; counters of averaging and of thop; linear layers as 1×1 convolutions and the
    other way round; triplet attention and ECA as released, ECA also with smaller kernels, which get
    zeros at both ends. A first convolution of several channels is
    summed over them for grey images, and one of grey images is spread over the channels, so that
    a grey image gives the same. `plan` says what of this was done.

    If a state dict has no entry of the network's attention at all, the attention keeps its fresh
    initialisation; `fresh` lists it, and so does a warning of the logger `nam_jax.torch_import`.
    Such a network has to be trained before it is of use: its fresh gates are near 0.5, where the
    weights were trained without any.

    Args:
      module: Network of `nam_jax.models`, or attention module with parameters.
      state_dict: Arrays by PyTorch's names, such as from `read`; anything that NumPy takes for an
        array.
      input_shape: Shape (N, H, W, C) of the module's input, such as (1, 224, 224, 3).
      new_head: Whether the classifier is fresh too, whatever the state dict has: for another
        number of classes. None: only where the state dict has none for this number.
      key: Random key of what is fresh (default: that of seed 0).

    Returns:
      A dict of `params` and `batch_stats`, of NumPy arrays in the dtypes of the state dict, and of
      float32 arrays where it is fresh.

    Raises:
      MisfitError: Entries are missing, left over, of another shape, or no real numbers; the
        message says why that may be, and names the first of each kind.
      TypeError: there is no naming for this kind of module.

    Example:
      >>> import nam_jax, numpy as np
      >>> names = "bn2.weight", "bn2.bias", "bn2.running_mean", "bn2.running_var"
      >>> state_dict = {name: np.ones(8, np.float32) for name in names}
      >>> variables = nam_jax.torch_import.variables(
      ...     nam_jax.ChannelNAM(), state_dict, input_shape=(1, 4, 4, 8)
      ... )
      >>> sorted(variables)
      ['batch_stats', 'params']
    """
    planned = plan(module, state_dict, input_shape, new_head=new_head)
    if planned.fresh:
        _log.warning("fresh, not from the state dict: %s", few(planned.fresh))
    if planned.adaptations:
        _log.info("adapted: %s", "; ".join(planned.adaptations))
    return planned.variables(key)


def fresh(
    module: nn.Module,
    state_dict: Mapping[str, Any],
    input_shape: tuple[int, ...],
    *,
    new_head: bool | None = False,
) -> list[str]:
    """The modules that `variables` initialises afresh, such as `layer1_0/attention` and `fc`.

    Args:
      module: Network or attention module, as for `variables`.
      state_dict: Arrays by PyTorch's names.
      input_shape: Shape (N, H, W, C) of the module's input.
      new_head: Whether the classifier is fresh too, as for `variables`.

    Returns:
      Paths of modules, each once.

    Raises:
      MisfitError: the state dict does not fit, as for `variables`.
      TypeError: there is no naming for this kind of module.
    """
    return plan(module, state_dict, input_shape, new_head=new_head).fresh


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a state dict becomes the variables of a module.

    Attributes:
      module: Module that the variables are for.
      input_shape: Shape (N, H, W, C) of its input.
      imported: PyTorch's array and the shape here, by path.
      fresh_paths: Paths of all other variables.
      adaptations: What was taken otherwise than it stands in the state dict, a phrase each.
    """

    module: nn.Module
    input_shape: tuple[int, ...]
    imported: dict[TreePath, tuple[np.ndarray, tuple[int, ...]]]
    fresh_paths: list[TreePath]
    adaptations: list[str]

    @property
    def fresh(self) -> list[str]:
        """Paths of the attention modules and classifiers that are initialised afresh."""

        def module(path: TreePath) -> str:
            last = next((i for i, name in enumerate(path) if is_attention(name)), 1)
            return "/".join(path[1 : last + 1])

        return list(dict.fromkeys(map(module, self.fresh_paths)))

    def variables(self, key: jax.Array | None = None) -> dict[str, Any]:
        """The variables.

        Args:
          key: Random key of what is fresh (default: that of seed 0).
        """
        leaves: dict[TreePath, Any] = {
            path: _from_torch(path, *source) for path, source in self.imported.items()
        }
        if self.fresh_paths:
            leaves |= _initial(self.module, self.input_shape, key, self.fresh_paths)
        return traverse_util.unflatten_dict(leaves)


def plan(
    module: nn.Module,
    state_dict: Mapping[str, Any],
    input_shape: tuple[int, ...],
    *,
    new_head: bool | None = False,
) -> Plan:
    """Finds out how a state dict becomes the variables of a module, as `variables` does.

    Args:
      module: Network or attention module, as for `variables`.
      state_dict: Arrays by PyTorch's names.
      input_shape: Shape (N, H, W, C) of the module's input.
      new_head: Whether the classifier is fresh too, as for `variables`.

    Returns:
      What is taken, what is fresh and what was adapted; its `variables(key)` makes the variables.

    Raises:
      MisfitError: the state dict does not fit, as for `variables`.
      TypeError: there is no naming for this kind of module.
    """
    rules = names.rules_of(module)
    wanted = traverse_util.flatten_dict(abstract_variables(module, input_shape))
    torch_names = {path: names.torch_name(path, rules) for path in wanted}
    shapes = {torch_names[path]: _torch_shape(path, leaf) for path, leaf in wanted.items()}
    head = {path: torch_names[path] for path in wanted if path[1] == "fc"}
    classifier = next((name.rpartition(".")[0] for name in head.values()), None)
    kept = [name for name in state_dict if not names.is_counter(name)]
    matched = names.matched(kept, shapes, classifier)
    state = {new: np.asarray(state_dict[old]) for old, new in matched.names.items()}
    if new_head is None:
        given = {name: state[name].shape for name in matched.head}
        new_head = _classes(given) != _classes({name: shapes[name] for name in head.values()})
    if new_head:
        state = {name: value for name, value in state.items() if name not in matched.head}
    adaptations = [*_renamings(matched, classifier, new_head), *_adapt(state, shapes)]
    fresh_paths = list(head) if new_head else []
    attention = [path for path in wanted if any(map(is_attention, path))]
    if not any(torch_names[path] in state for path in attention):
        fresh_paths += attention
    imported = [path for path in wanted if path not in set(fresh_paths)]
    check(module, state, {torch_names[path]: shapes[torch_names[path]] for path in imported})
    sources = {path: (state[torch_names[path]], wanted[path].shape) for path in imported}
    return Plan(module, input_shape, sources, fresh_paths, adaptations)


def _classes(head: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The number of classes that each entry of a classifier is for, from their shapes."""
    return {name: shape[:1] for name, shape in head.items()}


def _renamings(matched: names.Matched, classifier: str | None, new_head: bool) -> Iterator[str]:
    """Says which names of the state dict were taken for others."""
    if matched.prefix:
        yield f"prefix {matched.prefix!r} dropped"
    if new_head and len(matched.head_layers) > 1:
        yield f"classifier of several layers left out ({', '.join(matched.head_layers)})"
    if not new_head and matched.head_layers not in ([], [classifier]):
        yield f"{matched.head_layers[0]!r} taken for the classifier {classifier!r}"


def _adapt(state: dict[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Gives arrays the shapes that are wanted, where they hold the same; says what it did."""
    num_longer = 0
    for name in state.keys() & wanted.keys():
        if _without_ones(state[name].shape) == _without_ones(wanted[name]):
            state[name] = state[name].reshape(wanted[name])
        longer = _lengthened(state[name], wanted[name])
        num_longer += longer is not state[name]
        state[name] = longer
        if name in names.STEMS and state[name].ndim == 4 and is_real(state[name].dtype):
            given, channels = state[name].shape[1], wanted[name][1]
            if channels == 1 < given:
                state[name] = _summed(state[name])
                yield f"{name} summed over its {given} channels"
            if given == 1 < channels:
                state[name] = np.repeat(state[name] / channels, channels, 1)
                yield f"{name} spread over {channels} channels"
    if num_longer:
        yield f"{num_longer} kernels along the channels (ECA) with zeros at both ends"


def _lengthened(kernel: np.ndarray, wanted: tuple[int, ...]) -> np.ndarray:
    """A kernel of one axis that does the same, where it is shorter than is wanted."""
    missing = wanted[-1] - kernel.shape[-1] if kernel.ndim == len(wanted) == 3 else 0
    if missing <= 0 or missing % 2:
        return kernel
    return np.pad(kernel, ((0, 0), (0, 0), (missing // 2, missing // 2)))


def _summed(kernel: np.ndarray) -> np.ndarray:
    """The sum over the channels; a whole number's own type may be too small for it."""
    dtype = kernel.dtype if jnp.issubdtype(kernel.dtype, jnp.floating) else np.float32
    return kernel.sum(1, keepdims=True, dtype=dtype)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a linear layer for that of a 1×1 convolution, (O, I, 1, 1)."""
    return shape[:2] if set(shape[2:]) <= {1} else shape


def _initial(
    module: nn.Module, input_shape: tuple[int, ...], key: jax.Array | None, paths: list[TreePath]
) -> dict[TreePath, jax.Array]:
    def init(key: jax.Array) -> list[jax.Array]:
        every = traverse_util.flatten_dict(initial_variables(module, key, jnp.zeros(input_shape)))
        return [every[path] for path in paths]

    # Compiled, so that the forward pass and the other variables cost nothing.
    leaves = jax.jit(init)(jax.random.key(0) if key is None else key)
    return dict(zip(paths, leaves, strict=True))


def _torch_shape(path: TreePath, leaf: Any) -> tuple[int, ...]:
    if path[-1] != "kernel":
        return (math.prod(leaf.shape),)
    *spatial, inputs, outputs = leaf.shape
    return (outputs, inputs, *spatial)


def _from_torch(path: TreePath, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if path[-1] == "kernel":
        value = value.transpose(*range(2, value.ndim), 1, 0)
    if "gate_h" in path and path[-1] == "kernel":
        # The reference turns this plane: (C, W), where it is (W, C) here.
        value = value.swapaxes(0, 1)
    return np.array(value, order="C").reshape(shape)
