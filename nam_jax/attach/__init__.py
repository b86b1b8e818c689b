"""Attention after chosen modules of a linen model that nobody edits."""

import dataclasses
import functools
from typing import Any

from flax import linen as nn

from nam_jax.attach.calls import Calls, Selector, Trains
from nam_jax.attention import AttentionModule, configured
from nam_jax.attention.base import check_selector


def attach(
    model: nn.Module,
    attention: str | AttentionModule,
    *,
    after: str | Selector,
    name: str = "attention",
    train: Trains | None = None,
) -> nn.Module:
    """A copy of a linen model with attention on the output of some of its modules.

    .. math::
      y = attention(module(x))

    for every module that `after` selects. The copy has the type, fields and methods of the model.
    Variables that the model had keep their paths and, from the same key, their initial values;
    those of the attention lie below the selected module, such as
    `layer1/bn2/attention/channel/nam_bn/scale`. `nam_tied` adds none, and takes the scale of the
    selected module.

    Unless it was configured otherwise, the attention takes its dtype from the module's output,
    and its `axis_name` and its mode from the module: the first of `use_running_average`,
    `train`, `training`, `is_training` and `deterministic` that the module's call has, or its
    fields; where there is none, running statistics unless `batch_stats` are mutable.

    Attention takes part in what `init`, `apply` and the model's own methods call, not in calls of
    a submodule alone (`model.bind(variables).layer1(x)`). Modules that share one trace of
    `nn.jit`, since all their fields are equal, share what is attached in them.

    Args:
      model: Unbound linen model. Its images are (N, H, W, C).
      attention: Name of an attention, see `nam_jax.attention`, or a module of its own
        hyper-parameters, such as `nam_jax.NAM(gate_scale=2)`.
      after: Regular expression that must match the path of a module, such as `layer1/bn2`, in
        full; or a predicate (path, module).
      name: Name of the attention below the selected module.
      train: Predicate (module, args, kwargs): whether a call of a selected module is one of
        training, where neither its call nor its fields say so rightly.

    Returns:
      The copy; `none` attaches nothing. It can be pickled if the model, `after` and `train` can,
      the latter as functions at the top of a module.

    Raises:
      ValueError: an argument is not as above. When the copy is called: `after` selects nothing; a
        selected module returns no array, has a child or parameter called `name`, shares
        statistics in groups, or has no scale for `nam_tied`; or the attention cannot take its
        output.

    Example:
      >>> import jax, jax.numpy as jnp, nam_jax
      >>> from flax import linen as nn
      >>> model = nn.Sequential([nn.Conv(8, (3, 3)), nn.GroupNorm(4), nn.relu])
      >>> model = nam_jax.attach(model, "se", after="layers_1")
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((2, 8, 8, 3)))
      >>> sorted(shapes["params"]["layers_1"])
      ['attention', 'bias', 'scale']
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"nam_jax.attach takes a linen model; got {type(model).__name__}. For NNX there is "
            "nam_jax.nnx.attach."
        )
    if model.scope is not None:
        raise ValueError(
            f"attach takes an unbound model; got a bound {type(model).__name__}. Attach before the "
            "model is bound, or outside of the module that builds it."
        )
    template = configured(attention)
    if template is None:
        return model.clone()
    check_selector("after", after)
    base: Any = type(model)
    fields = _fields(model)
    return _attached_class(base, repr(fields), template, after, name, train)(**fields)


def _fields(model: nn.Module) -> dict[str, Any]:
    own = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.init}
    return {**own, "parent": None}


@functools.lru_cache(maxsize=256)  # equal models from equal arguments
def _attached_class(
    base: type[nn.Module],
    fields: str,  # those of one model alone, for a class remembers whether `after` has selected
    template: AttentionModule,
    after: str | Selector,
    name: str,
    train: Trains | None,
) -> type[nn.Module]:
    """A subclass of the model's that differs in nothing but what happens in its calls."""
    calls = Calls(template, after, name, train)

    @nn.nowrap
    def call_wrapped_method(self: Any, fun: Any, args: Any, kwargs: Any) -> Any:
        with calls.begin(() if self.scope is None else self.path):
            return base._call_wrapped_method(self, fun, args, kwargs)

    @nn.nowrap
    @functools.wraps(base.apply)
    def apply(self: Any, *args: Any, **kwargs: Any) -> Any:
        with calls.begin(()):
            return base.apply(self, *args, **kwargs)

    @nn.nowrap
    @functools.wraps(base.init_with_output)
    def init_with_output(self: Any, *args: Any, **kwargs: Any) -> Any:
        with calls.begin(()):
            result = base.init_with_output(self, *args, **kwargs)
            calls.check_selection()
        return result

    @nn.nowrap
    def reduce(self: Any) -> Any:
        if self.scope is not None:
            raise TypeError(
                f"Only an unbound {base.__name__} can be pickled; this one is bound. Pickle the "
                "one on which bind was called."
            )
        again = functools.partial(attach, attention=template, after=after, name=name, train=train)
        return again, (base(**_fields(self)),)

    namespace = {
        "_call_wrapped_method": call_wrapped_method,
        "apply": apply,
        "init_with_output": init_with_output,
        "__reduce__": reduce,
    }
    same = {key: getattr(base, key) for key in ("__module__", "__qualname__", "__doc__")}
    return type(base.__name__, (base,), {**namespace, **same})
