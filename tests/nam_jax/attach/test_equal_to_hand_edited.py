"""An attached model is the one whose source was edited by hand, under every transformation."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

import nam_jax
from nam_jax.models.resnet import BasicBlock, ResNet
from tests.helpers.networks import _step, image, random_variables, train_step

SHAPE = (4, 5, 3, 8)


def by_hand(attention: str, base: type[nn.Module] = nn.BatchNorm) -> type[nn.Module]:
    """The source of a BatchNorm, edited."""

    class BatchNorm(base):
        @nn.compact
        def __call__(self, x: Any, use_running_average: bool | None = None) -> Any:
            y = super().__call__(x, use_running_average)
            averages = nn.merge_param("", self.use_running_average, use_running_average)
            module = nam_jax.attention(attention)(
                use_running_average=averages, axis_name=self.axis_name, name="attention"
            )
            tied = {"scale": self.variables["params"]["scale"]} if attention == "nam_tied" else {}
            return module(y, **tied)

    return BatchNorm


class Block(nn.Module):
    norm: Any

    @nn.compact
    def __call__(self, x: Any, use_running_average: bool) -> Any:
        y = nn.Conv(x.shape[-1], (1, 1))(x)
        return nn.relu(x + self.norm(name="bn")(y, use_running_average))


class Plain(nn.Module):
    norm: Any
    block: Any = Block

    @nn.compact
    def __call__(self, x: Any, use_running_average: bool) -> Any:
        x = self.block(self.norm)(x, use_running_average)
        return self.block(self.norm)(x, use_running_average)


class Setup(nn.Module):
    norm: Any

    def setup(self) -> None:
        self.conv = nn.Dense(8)
        self.bn = self.norm()

    def __call__(self, x: Any, use_running_average: bool) -> Any:
        y = self.bn(self.conv(x), use_running_average)
        return self.bn(y + x, use_running_average)  # called twice


class Scanned(nn.Module):
    norm: Any

    @nn.compact
    def __call__(self, x: Any, use_running_average: bool) -> Any:
        def body(block: Any, x: Any, _: Any) -> Any:
            return block(x, use_running_average), None

        scan = nn.scan(
            body,
            length=3,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
        )
        return scan(Block(self.norm), x, None)[0]


def vmapped(target: Any) -> Any:
    return nn.vmap(
        target,
        in_axes=(0, None),
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
    )


class Ensemble(nn.Module):
    norm: Any

    @nn.compact
    def __call__(self, x: Any, use_running_average: bool) -> Any:
        x = vmapped(Block)(self.norm)(jnp.stack([x, 2 * x]), use_running_average)
        return vmapped(self.norm)(name="bn")(x, use_running_average).sum(0)


class JittedByDecorator(nn.Module):
    norm: Any

    @nn.jit
    @nn.compact
    def __call__(self, x: Any) -> Any:
        averages = not self.is_mutable_collection("batch_stats")
        return self.norm(use_running_average=averages, name="bn")(x)


class Decorated(nn.Module):
    norm: Any

    @nn.compact
    def __call__(self, x: Any, use_running_average: bool) -> Any:
        return JittedByDecorator(self.norm)(x)


class Inherited(nn.Module):
    norm: Any

    @nn.compact
    def __call__(self, x: Any, use_running_average: bool) -> Any:
        class Halving(self.norm.func):
            @nn.compact
            def __call__(self, x: Any, use_running_average: bool) -> Any:
                return super().__call__(x / 2, use_running_average)

        return Halving(name="bn")(x, use_running_average)


class Child(nn.Module):
    norm: Any

    @nn.compact
    def __call__(self, x: Any, use_running_average: bool) -> Any:
        return 2 * Plain(self.norm, name="body")(x, use_running_average)


class ImageNetExample(nn.Module):
    """Of the shape of Flax's ImageNet example: layers are partials that know the mode."""

    norm: Any

    @nn.compact
    def __call__(self, x: Any, use_running_average: bool) -> Any:
        conv = functools.partial(nn.Conv, use_bias=False, dtype=jnp.float64)
        norm = functools.partial(
            self.norm, use_running_average=use_running_average, momentum=0.9, dtype=jnp.float64
        )
        x = nn.relu(norm(name="bn_init")(conv(8, (7, 7), (2, 2), name="conv_init")(x)))
        for filters, strides in ((8, (1, 1)), (16, (2, 2))):
            x = ImageNetBlock(filters, strides, conv, norm)(x)
        return nn.Dense(8)(x.mean((1, 2)))[:, None, None]


class ImageNetBlock(nn.Module):
    filters: int
    strides: tuple[int, int]
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        y = nn.relu(self.norm()(self.conv(self.filters, (3, 3), self.strides)(x)))
        y = self.norm(scale_init=nn.initializers.zeros)(self.conv(self.filters, (3, 3))(y))
        if x.shape != y.shape:
            x = self.conv(self.filters, (1, 1), self.strides, name="conv_proj")(x)
            x = self.norm(name="norm_proj")(x)
        return nn.relu(x + y)


class SetupStyle(nn.Module):
    """Everything is made in setup, in lists, and by methods that the call calls."""

    norm: Any

    def setup(self) -> None:
        self.convs = [nn.Conv(8, (3, 3)) for _ in range(2)]
        self.norms = [self.norm() for _ in range(2)]
        self.head = nn.Sequential([nn.LayerNorm(), nn.Dense(3)])

    def features(self, x: Any, training: bool) -> Any:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + nn.relu(norm(conv(x), use_running_average=not training))
        return x

    def __call__(self, x: Any, use_running_average: bool) -> Any:
        return self.head(self.features(x, not use_running_average)).sum(-1, keepdims=True)


class Trained(nn.Module):
    """A network that takes `train`, or finds out, to be called as attention modules are."""

    model: nn.Module
    takes_train: bool = True

    def __call__(self, x: Any, use_running_average: bool) -> Any:
        call = {"train": not use_running_average} if self.takes_train else {}
        return self.model(x, **call)


AFTER = r"(.*/)?(bn|bn_init|norm_proj|norms_\d|BatchNorm_\d)"
REMAT = functools.partial(Plain, block=nn.remat(Block, static_argnums=(2,)))
JITTED = functools.partial(Plain, block=nn.jit(Block, static_argnums=2))
MODELS = {
    "plain": Plain,
    "setup, called twice": Setup,
    "remat": REMAT,
    "scan": Scanned,
    "vmap": Ensemble,
    "jit": JITTED,
    "jit by decorator": Decorated,
    "jit of the norm": lambda norm: Plain(nn.jit(norm, static_argnums=2)),
    "remat of the norm": lambda norm: Plain(nn.remat(norm, static_argnums=(2,))),
    "super().__call__": Inherited,
    "a child's child": Child,
    "Flax's ImageNet example": ImageNetExample,
    "setup style": SetupStyle,
}


def programs(model: nn.Module, x: Any) -> list[str]:
    """What initialisation, training and evaluation compute, with all names and constants."""
    init = functools.partial(model.init_with_output, jax.random.key(0), use_running_average=True)
    y, variables = jax.eval_shape(init, x)

    def step(variables: Any, x: Any) -> Any:
        return _step(model, variables, x, jnp.ones(y.shape, y.dtype))

    apply = functools.partial(model.apply, use_running_average=True)
    traced = [(init, (x,)), (step, (variables, x)), (apply, (variables, x))]
    return [str(jax.make_jaxpr(function)(*args)) for function, args in traced]


SLOW_KINDS = ("jit by decorator", "jit of the norm", "remat of the norm", "Flax's ImageNet example")
ONE_ATTENTION = [
    pytest.param(kind, "nam_channel", marks=pytest.mark.slow if kind in SLOW_KINDS else ())
    for kind in MODELS
]
# What is attached is the same for every kind: three of them have each attention.
OTHER_ATTENTIONS = [
    pytest.param(*pair, marks=pytest.mark.slow)
    for pair in itertools.product(("plain", "remat", "scan"), ("nam", "nam_tied", "se"))
]


@pytest.mark.parametrize(("kind", "attention"), ONE_ATTENTION + OTHER_ATTENTIONS)
def test_attached_is_hand_edited(x64, kind, attention):
    # Partial, for nn.jit takes any two classes with the same fields for one another.
    plain, edited = (functools.partial(norm) for norm in (nn.BatchNorm, by_hand(attention)))
    attached = nam_jax.attach(MODELS[kind](plain), attention, after=AFTER)
    x = jax.ShapeDtypeStruct(SHAPE, np.float64)
    assert programs(attached, x) == programs(MODELS[kind](edited), x)


@pytest.mark.slow
def test_attached_is_our_own_network(x64):
    """There the attention stands beside the BatchNorm, and is given its moments."""
    create = functools.partial(
        ResNet, BasicBlock, (1, 1), num_classes=4, stem="cifar", width=8, shortcut="pad_end"
    )
    attached = nam_jax.attach(create(attention="none"), "nam", after=r"layer\d_\d/bn2")
    networks = {
        name: Trained(model) for name, model in (("a", attached), ("b", create(attention="nam")))
    }
    x = image((2, 8, 8, 3), dtype=np.float64)
    variables = random_variables(networks["b"], x)
    moved = moved_below(variables)
    cotangent = np.random.default_rng(2).standard_normal((2, 4))
    actual = train_step(networks["a"], moved, x, cotangent)
    expected = train_step(networks["b"], variables, x, cotangent)
    expected = expected._replace(
        statistics=moved_below(expected.statistics), dparams=moved_below(expected.dparams)
    )
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def moved_below(tree: Any) -> Any:
    """With attention below the BatchNorm of its block, not beside it."""
    return unflatten_dict(
        {
            tuple(
                key for name in path for key in (["bn2", name] if name == "attention" else [name])
            ): leaf
            for path, leaf in flatten_dict(tree).items()
        }
    )


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # of theirs
@pytest.mark.parametrize("attention", ["nam", "nam_tied", "se"])
def test_attached_to_jax_resnet(attention):
    """Of PyPI's jax-resnet: no argument says the mode."""
    resnet = pytest.importorskip("jax_resnet").ResNet18
    norms = [functools.partial(norm, momentum=0.9) for norm in (nn.BatchNorm, by_hand(attention))]
    plain, edited = (resnet(n_classes=5, norm_cls=norm) for norm in norms)
    attached = nam_jax.attach(plain, attention, after=AFTER)
    x = jax.ShapeDtypeStruct((2, 64, 64, 3), np.float32)
    actual, expected = (programs(Trained(model, False), x) for model in (attached, edited))
    assert actual == expected


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # of theirs
@pytest.mark.parametrize("attention", ["nam", "nam_tied", "se"])
def test_attached_to_flaxmodels(monkeypatch, attention):
    """Of PyPI's flaxmodels: its BatchNorm is its own."""
    ops = pytest.importorskip("flaxmodels.resnet.ops")
    from flaxmodels.resnet.resnet import ResNet18

    model = ResNet18(output="logits", pretrained=None, normalize=False, num_classes=5)
    x = jax.ShapeDtypeStruct((2, 64, 64, 3), np.float32)
    actual = programs(Trained(nam_jax.attach(model, attention, after=AFTER)), x)
    monkeypatch.setattr(ops, "BatchNorm", by_hand(attention, ops.BatchNorm))
    assert actual == programs(Trained(model), x)
