"""The PyTorch peers compute what nam_jax computes; skipped without PyTorch."""

import jax
import numpy as np
import pytest
from flax import traverse_util

import nam_jax
from tests.helpers.arrays import assert_close

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

# These import torch, which the line above has found.
from benchmarks.peers import nam as peer_nam  # noqa: E402
from benchmarks.peers import resnet as peer_resnet  # noqa: E402

SHAPE = (4, 6, 6, 5)

MODULES = {
    "nam_channel": lambda n, h, w, c: peer_nam.ChannelNAM(c),
    "nam_spatial": lambda n, h, w, c: peer_nam.SpatialNAM(h, w),
    "nam": lambda n, h, w, c: peer_nam.NAM(c, h, w),
}
NETWORKS = [
    *(("resnet20", "cifar", 8, name) for name in peer_resnet.ATTENTIONS),
    ("resnet18", "imagenet", 64, "nam"),
    ("resnet50", "cifar", 16, "nam"),
    # Stages of odd size.
    ("resnet18", "cifar", 9, "nam"),
]

pytestmark = pytest.mark.usefixtures("x64")


def randomised(peer):
    """Scales of both signs, and statistics that are not those of the start."""
    generator = torch.Generator().manual_seed(0)
    peer = peer.double()
    for name, tensor in peer.state_dict().items():
        if tensor.ndim == 1:
            drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(0.5 + drawn**2 if name.endswith("running_var") else drawn)
    return peer


def imported(module, peer, shape):
    entries = {name: tensor.numpy() for name, tensor in peer.state_dict().items()}
    return nam_jax.torch_import.variables(module, entries, shape)


def gradients_of(module, peer, shape):
    """The peer's gradients, as the variables of the module that they belong to."""
    entries = {name: tensor.numpy() for name, tensor in peer.state_dict().items()}
    entries |= {name: parameter.grad.numpy() for name, parameter in peer.named_parameters()}
    return nam_jax.torch_import.variables(module, entries, shape)["params"]


def as_torch(x, channels_last):
    tensor = torch.tensor(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return tensor.contiguous(memory_format=layout).requires_grad_()


def as_numpy(tensor):
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def compare(module, peer, shape, channels_last, call):
    """Outputs, all gradients and new running means in training, and outputs in evaluation."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape)
    variables = imported(module, peer, shape)
    expected = jax.jit(lambda v, x: call(v, x, False)[0])(variables, x)
    assert_close(as_numpy(peer.eval()(as_torch(x, channels_last))), np.asarray(expected))

    cotangent = rng.standard_normal(expected.shape)

    def loss(params, x):
        y, update = call({**variables, "params": params}, x, True)
        return (y * cotangent).sum(), (y, update["batch_stats"])

    step = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    (dparams, dx), (y, statistics) = step(variables["params"], x)
    theirs = as_torch(x, channels_last)
    output = peer.train()(theirs)
    output.backward(
        as_torch(cotangent, channels_last) if output.ndim == 4 else torch.tensor(cotangent)
    )
    assert_close(as_numpy(output), np.asarray(y))
    assert_close(as_numpy(theirs.grad), np.asarray(dx))
    assert_close(gradients_of(module, peer, shape), jax.tree.map(np.asarray, dparams))
    assert_close(means(imported(module, peer, shape)["batch_stats"]), means(statistics))


def means(statistics):
    """PyTorch's running variances are unbiased, and differ."""
    flat = traverse_util.flatten_dict(statistics)
    return {path: np.asarray(leaf) for path, leaf in flat.items() if path[-1] == "mean"}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_modules(name, channels_last):
    module = nam_jax.attention(name)()

    def call(variables, x, train):
        if train:
            return module.apply(variables, x, use_running_average=False, mutable="batch_stats")
        return module.apply(variables, x, use_running_average=True), None

    compare(module, randomised(MODULES[name](*SHAPE)), SHAPE, channels_last, call)


@pytest.mark.parametrize(("name", "stem", "size", "attention"), NETWORKS)
def test_networks(name, stem, size, attention):
    # Statistics of few values would amplify what rounding leaves of them.
    shape = (4, size, size, 3)
    options = {"num_classes": 7, "attention": attention, "stem": stem, "width": 4}
    module = nam_jax.models.create(name, **options)
    peer = peer_resnet.create(name, **options, image_shape=shape[1:])

    def call(variables, x, train):
        if train:
            return module.apply(variables, x, train=True, mutable="batch_stats")
        return module.apply(variables, x, train=False), None

    compare(module, randomised(peer), shape, True, call)
