"""What happens in the calls of a model that has attention attached."""

import dataclasses
import inspect
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.core import meta

from nam_jax.attention import AttentionModule, TiedNAM
from nam_jax.attention.base import uses_running_average
from nam_jax.layers.batch_norm import BatchNorm, Moments

Selector = Callable[[str, nn.Module], bool]
# From a module and the arguments of its call, positional and by keyword.
Trains = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], bool]

# Part of the key of JAX's caches: the plain model and the attached one would else take each
# other's trace of a module under nn.jit, wherever the variables of the two are alike.
_attached = jax.make_user_context(())


class Calls:
    """What attach() was told about a class of models, and its calls in this thread."""

    def __init__(
        self,
        template: AttentionModule,
        after: str | Selector,
        name: str,
        train: Trains | None,
    ) -> None:
        self.template, self.after, self.name, self.train = template, after, name, train
        self.has_selected = False  # ever: a trace that JAX has kept selects nothing anew
        self.thread = threading.local()

    @contextmanager
    def begin(self, root: tuple[str, ...]) -> Iterator[None]:
        """A call of the model at this path, unless one has begun already."""
        if getattr(self.thread, "is_busy", None) is not None:
            yield
            return
        self.thread.root, self.thread.is_busy = root, False
        self.thread.open, self.thread.called = [], {}
        try:
            with _attached((*_attached.value, self)), nn.intercept_methods(self._intercept):
                yield
        finally:
            self.thread.is_busy = None

    def check_selection(self) -> None:
        """Refuses an `after` that no module matches; call it when the model has been called."""
        if not self.has_selected:
            lines = (f"{kind}: {', '.join(ps)}" for kind, ps in self.thread.called.items())
            raise ValueError(
                f"attach: after={self.after!r} selects none of the modules that were called; an "
                f"expression has to match a path in full. Called were:\n" + "\n".join(lines)
            )

    def _intercept(self, method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, call = context.module, self.thread
        if call.is_busy or context.method_name != "__call__" or module.scope is None:
            return method(*args, **kwargs)
        path = "/".join(module.path[len(call.root) :])
        call.called.setdefault(type(module).__name__, {})[path or "the model itself"] = None
        # In the same module's call: that of the class above.
        if path in call.open or not self._selects(path, module):
            y = method(*args, **kwargs)
        else:
            self.has_selected = True
            call.open.append(path)
            try:
                y = method(*args, **kwargs)
            finally:
                call.open.remove(path)
            y = self._attend(module, path, args, kwargs, y)
        if not path:
            self.check_selection()
        return y

    def _selects(self, path: str, module: nn.Module) -> bool:
        if callable(self.after):
            return self.after(path, module)
        return re.fullmatch(self.after, path) is not None

    def _attend(self, module: Any, path: str, args: Any, kwargs: Any, y: Any) -> Any:
        self.thread.is_busy = True
        try:
            # BatchNorm's pair of ours: its moments serve the attention, and are not those of y.
            if isinstance(module, BatchNorm) and isinstance(y, tuple):
                return self._apply(module, args, kwargs, *y), None
            return self._apply(module, args, kwargs, y)
        except ValueError as error:
            raise ValueError(f"attach, after {path or 'the model itself'}: {error}") from error
        finally:
            self.thread.is_busy = False

    def _apply(
        self, module: Any, args: Any, kwargs: Any, y: Any, moments: Moments | None = None
    ) -> jax.Array:
        if not isinstance(y, jax.Array | np.ndarray):
            raise ValueError(
                f"attention takes an array; the module returns {type(y).__name__}. Select another "
                "module by after=."
            )
        if getattr(module, "axis_index_groups", None) is not None:
            raise ValueError(
                "attention cannot share statistics in groups, as the module does "
                "(axis_index_groups). Select another module by after=."
            )
        self._reserve_name(module)
        extra = {"scale": _scale(module, y)} if isinstance(self.template, TiedNAM) else {}
        follows: dict[str, Any] = {
            "dtype": y.dtype,
            "axis_name": getattr(module, "axis_name", None),
            "use_running_average": self._uses_running_average(module, args, kwargs),
        }
        unset = {key: new for key, new in follows.items() if getattr(self.template, key) is None}
        # A scope, which modules without nn.compact have too, and which all calls of one share.
        scope = module.scope.push(self.name, reuse=True)
        attention = self.template.clone(parent=scope, name=self.name, **unset)
        return attention(y, moments=moments, **extra)

    def _uses_running_average(self, module: nn.Module, args: Any, kwargs: Any) -> bool:
        if self.train is not None:
            return not self.train(module, args, kwargs)
        call = inspect.signature(type(module).__call__).bind(module, *args, **kwargs)
        call.apply_defaults()
        fields = {f.name: getattr(module, f.name, None) for f in dataclasses.fields(module)}
        told = uses_running_average({**call.arguments, **call.kwargs}, fields)
        return not module.is_mutable_collection("batch_stats") if told is None else told

    def _reserve_name(self, module: Any) -> None:
        mark = f"attached {id(self)}"
        if module._state.children.setdefault(self.name, mark) != mark:
            raise ValueError(
                f"the module has something called {self.name!r} already; give another name=."
            )


def _scale(module: nn.Module, y: Any) -> jax.Array:
    scale = meta.unbox(module.get_variable("params", "scale"))
    if scale is None:
        raise ValueError(
            "nam_tied needs the scale of a normalisation; the module has none. Select a BatchNorm "
            "by after=, or take nam."
        )
    if scale.size != y.shape[-1]:
        raise ValueError(
            f"nam_tied needs a scale for each of {y.shape[-1]} channels; got the shape "
            f"{scale.shape}. Select a BatchNorm by after=, or take nam."
        )
    return scale.reshape(-1)
