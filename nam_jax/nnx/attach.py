"""Attention after chosen modules of an NNX model that nobody edits."""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx

from nam_jax.attention import AttentionModule, configured, nam
from nam_jax.attention.base import check_selector, uses_running_average
from nam_jax.nnx.from_linen import FromLinen
from nam_jax.nnx.nam import NAM, ChannelNAM, Options, SpatialNAM, TiedNAM

Model = TypeVar("Model", bound=nnx.Module)
Selector = Callable[[str, nnx.Module], bool]


def attach(
    model: Model,
    attention: str | AttentionModule,
    *,
    after: str | Selector,
    example: Any = None,
    name: str = "attention",
    rngs: nnx.Rngs | None = None,
) -> Model:
    """A clone of an NNX model with attention on the output of some of its modules.

    .. math::
      y = attention(module(x))

    for every module that `after` selects. Everything that the model had keeps its path; the
    variables of the attention lie below the selected module, such as
    `layer1/bn2/attention/channel/nam_bn/scale`. `nam_tied` adds none, and takes the scale of the
    selected module. Mode and dtype are those of the selected module's call and of its output,
    `axis_name` is the module's, unless the attention was configured otherwise.

    Args:
      model: NNX model. Its images are (N, H, W, C).
      attention: Name of an attention, see `nam_jax.attention`, or a linen module of its own
        hyper-parameters, such as `nam_jax.NAM(epsilon=1e-3)`. NAM becomes native NNX modules, all
        others are a `FromLinen`.
      after: Regular expression that must match the path of a module, such as `layer1/bn2` or
        `blocks/0/norm`, in full; or a predicate (path, module).
      example: Input of the model, an array or a `ShapeDtypeStruct`, or a function that calls the
        model: for the sizes of maps. Channel attention (`nam_channel`, `nam_tied`) needs none.
      name: Name of the attention below the selected module.
      rngs: Random keys for the attention's parameters (default: those of the seed 0); NAM's are
        not drawn.

    Returns:
      The clone; `none` attaches nothing. Clones of equal models, attached alike, have equal
      graph definitions. A clone cannot be pickled; its `nnx.state` can be saved.

    Raises:
      ValueError: an argument is not as above; `after` selects nothing; a selected module has an
        attribute called `name`, shares statistics in groups, has no scale for `nam_tied`, is
        stacked by `nnx.vmap`, or is not called with the example. In calls of the clone: the module
        returns no array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from nam_jax.nnx import attach
      >>> layers = nnx.Linear(3, 8, rngs=nnx.Rngs(0)), nnx.BatchNorm(8, rngs=nnx.Rngs(0))
      >>> model = attach(nnx.Sequential(*layers), "nam_channel", after="layers/1")
      >>> model(jnp.ones((2, 4, 4, 3))).shape, model.layers[1].attention.nam_bn.scale.shape
      ((2, 4, 4, 8), (8,))
    """
    if not isinstance(model, nnx.Module):
        kind = type(model).__name__
        raise ValueError(
            f"nam_jax.nnx.attach takes an NNX model; got {kind}. For linen there is nam_jax.attach."
        )
    template = configured(attention)
    model = nnx.clone(model)
    if template is None:
        return model
    chosen = _select(model, after)
    for path, module in chosen.items():
        _check(path, module, template, name)
    outputs = _outputs(model, chosen, example, name)
    rngs = nnx.Rngs(0) if rngs is None else rngs
    has_mode = template.use_running_average is not None
    for path, module in chosen.items():
        built = _build(template, path, module, outputs.get(path), rngs)
        _attend(module, built, name, has_mode=has_mode)
    return model


def _select(model: nnx.Module, after: str | Selector) -> dict[str, Any]:
    found = {"/".join(map(str, path)): module for path, module in nnx.iter_modules(model)}

    def selects(path: str, module: nnx.Module) -> bool:
        return after(path, module) if callable(after) else bool(re.fullmatch(after, path))

    check_selector("after", after)
    chosen = {path: module for path, module in found.items() if selects(path, module)}
    if not chosen:
        lines = (f"{path}: {type(module).__name__}" for path, module in found.items() if path)
        raise ValueError(
            f"attach: after={after!r} selects no module; an expression has to match a path in "
            "full. There are:\n" + "\n".join(lines)
        )
    return chosen


def _check(path: str, module: Any, template: AttentionModule, name: str) -> None:
    if hasattr(module, name):
        raise ValueError(
            f"attach, after {path}: the module has something called {name!r} already; give another "
            "name=."
        )
    if getattr(module, "axis_index_groups", None) is not None:
        raise ValueError(
            f"attach, after {path}: attention cannot share statistics in groups, as the module "
            "does (axis_index_groups). Select another module by after=."
        )
    is_tied = isinstance(template, nam.TiedNAM)
    if not is_tied and isinstance(module, nnx.BatchNorm) and module.mean.ndim > 1:
        raise ValueError(
            f"attach, after {path}: the module's mean has the shape {module.mean.shape}, that of "
            "several layers, stacked by nnx.vmap. Attach in the function that is stacked."
        )
    if is_tied and getattr(module, "scale", None) is None:
        raise ValueError(
            f"attach, after {path}: nam_tied needs the scale of a normalisation; the module has "
            "none. Select a BatchNorm by after=, or take nam."
        )


class _Outputs:
    """The outputs of the selected modules in one call, by path: an attribute, and no data."""

    def __init__(self) -> None:
        self.by_path: dict[str, jax.ShapeDtypeStruct] = {}


class _Probe(nnx.Module):
    """In place of an attention: notes what it is called with."""

    def __init__(self, path: str, outputs: _Outputs):
        self.path, self.outputs, self.dtype = path, outputs, None

    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        self.outputs.by_path[self.path] = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return x


def _outputs(
    model: nnx.Module, chosen: dict[str, Any], example: Any, name: str
) -> dict[str, jax.ShapeDtypeStruct]:
    outputs = _Outputs()
    if example is None:
        return outputs.by_path
    probed = nnx.clone(model)
    modules = {"/".join(map(str, path)): module for path, module in nnx.iter_modules(probed)}
    for path in chosen:
        _attend(modules[path], _Probe(path, outputs), name)
    if callable(example):
        nnx.eval_shape(example, probed)
    else:
        nnx.eval_shape(lambda model, x: model(x), probed, example)
    if missing := chosen.keys() - outputs.by_path.keys():
        raise ValueError(
            f"attach: the example does not call {', '.join(sorted(missing))}. Give an "
            "example= that does, or select others by after=."
        )
    return outputs.by_path


def _build(
    template: AttentionModule,
    path: str,
    module: Any,
    output: jax.ShapeDtypeStruct | None,
    rngs: nnx.Rngs,
) -> nnx.Module:
    options = {
        key: getattr(template, key) for key in Options.__annotations__ if hasattr(template, key)
    }
    options["use_running_average"] = bool(template.use_running_average)
    if template.axis_name is None:
        options["axis_name"] = getattr(module, "axis_name", None)
    kind = type(template)
    if kind is nam.TiedNAM:
        own = ("normalization", "weight_gradient", "gate_scale", "dtype")
        return TiedNAM(**{key: options[key] for key in own})
    num_features = getattr(module, "num_features", None) if output is None else output.shape[-1]
    if kind is nam.ChannelNAM and num_features is not None:
        return ChannelNAM(num_features, **options)
    place = path or "the model itself"
    if output is None:
        raise ValueError(
            f"attach, after {place}: {kind.__name__} depends on the module's "
            "output; give example=, an input of the model."
        )
    if len(output.shape) != 4:
        raise ValueError(
            f"attach, after {place}: {kind.__name__} takes (N, H, W, C) "
            f"arrays; the module gives the shape {output.shape}. Select another by after=."
        )
    if kind is nam.SpatialNAM:
        return SpatialNAM(output.shape[1:3], **options)
    if kind is nam.NAM:
        return NAM(output.shape[-1], output.shape[1:3], **options)
    # It takes its mode from the attribute.
    modeless = template.clone(axis_name=options["axis_name"], use_running_average=None)
    wrapped = FromLinen(modeless, output, rngs=rngs)
    wrapped.use_running_average = options["use_running_average"]
    return wrapped


def _attend(
    module: nnx.Module, attention: nnx.Module, name: str, *, has_mode: bool = False
) -> None:
    setattr(module, name, attention)
    module.__class__ = _attended_class(type(module), name, has_mode)


@functools.cache  # one class for each, so that graph definitions compare equal
def _attended_class(base: type[nnx.Module], name: str, has_mode: bool) -> type[nnx.Module]:
    """A subclass that differs in its call alone; an attention may have a mode of its own."""
    call: Any = base.__call__

    @functools.wraps(call)
    def attended(self: Any, *args: Any, **kwargs: Any) -> jax.Array:
        y = call(self, *args, **kwargs)
        if not isinstance(y, jax.Array):
            kind = type(y).__name__
            raise ValueError(
                f"attach: attention takes an array; {base.__name__} returns {kind}. Select another "
                "module by after=."
            )
        attention = getattr(self, name)
        scale = {"scale": self.scale[...]} if isinstance(attention, TiedNAM) else {}
        mode = None if has_mode else _uses_running_average(call, self, args, kwargs)
        z = attention(y, mode, **scale)
        return z if attention.dtype is not None else z.astype(y.dtype)

    same = {key: getattr(base, key) for key in ("__module__", "__qualname__", "__doc__")}
    return type(base.__name__, (base,), {"__call__": attended, **same})


def _uses_running_average(call: Any, module: Any, args: Any, kwargs: Any) -> bool | None:
    """The mode of a module's call; None where nothing tells of one."""
    bound = inspect.signature(call).bind(module, *args, **kwargs)
    bound.apply_defaults()
    return uses_running_average({**bound.arguments, **bound.kwargs}, vars(module))
