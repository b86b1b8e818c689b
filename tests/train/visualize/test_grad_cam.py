"""Grad-CAM against what follows from the network's own weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from nam_jax.models import mobilenet_v2
from nam_jax.models.mobilenet_v2 import MobileNetV2, Stage
from nam_jax.models.resnet import BasicBlock, Bottleneck, ResNet
from tests.helpers.arrays import assert_close
from tests.helpers.networks import random_variables
from train.visualize.grad_cam import grad_cam

IMAGES = np.random.default_rng(3).standard_normal((3, 16, 16, 3))
CLASSES = np.array([4, 0, 1])
FAMILIES = {
    "basic": lambda **fields: ResNet(BasicBlock, (1, 1), width=8, **fields),
    "bottleneck": lambda **fields: ResNet(Bottleneck, (1, 1), width=4, **fields),
    "mobilenet_v2": lambda **fields: MobileNetV2(width_multiplier=0.25, **fields),
}


@pytest.fixture(autouse=True)
def short_mobilenet(monkeypatch):
    monkeypatch.setattr(mobilenet_v2, "STAGES", (Stage(6, 16, 2, 1), Stage(6, 32, 1, 2)))


def applied(model, variables):
    return lambda images: model.apply(variables, images, train=False)


def pooled_map(model, variables):
    """What the global average pooling takes, from the outputs of modules."""
    _, state = model.apply(variables, IMAGES, train=False, capture_intermediates=True)
    outputs = state["intermediates"]
    if isinstance(model, MobileNetV2):
        [normalised] = outputs["last_bn"]["__call__"]
        return nn.relu6(normalised)
    [output] = outputs["layer2_0"]["__call__"]
    return output


@pytest.mark.parametrize(
    ("family", "stem", "attention"),
    [
        ("basic", "cifar", "nam"),
        pytest.param("basic", "imagenet", "cbam", marks=pytest.mark.slow),
        pytest.param("bottleneck", "imagenet", "bam", marks=pytest.mark.slow),
        ("mobilenet_v2", "cifar", "nam_tied"),
        pytest.param("mobilenet_v2", "imagenet", "none", marks=pytest.mark.slow),
    ],
)
def test_maps_of_the_networks_follow_from_the_classifier(x64, family, stem, attention):
    model = FAMILIES[family](num_classes=5, stem=stem, attention=attention)
    variables = random_variables(model, IMAGES)

    @jax.jit
    def both(variables):
        features = pooled_map(model, variables)
        # Behind a pooling, alpha is the weight of the channel in the class / (H W).
        kernel = variables["params"]["fc"]["kernel"][:, CLASSES]
        expected = nn.relu(jnp.einsum("nhwc,cn->nhw", features, kernel))
        expected /= features.shape[1] * features.shape[2]
        return grad_cam(applied(model, variables), IMAGES, CLASSES), expected

    actual, expected = both(variables)
    assert actual.shape[0] == len(IMAGES)
    assert (np.asarray(expected).max((1, 2)) > 0).any()
    assert_close(actual, np.asarray(expected))


class Nonlinear(nn.Module):
    """A network whose logits depend on the places of the map, and not linearly."""

    def setup(self):
        self.conv, self.fc1, self.fc2 = nn.Conv(6, (3, 3)), nn.Dense(7), nn.Dense(5)

    def features(self, x):
        return jnp.tanh(self.conv(x))

    def head(self, x):
        return self.fc2(jnp.tanh(self.fc1(x.reshape(len(x), -1))))

    def __call__(self, x, train):
        return self.head(self.features(x))


def test_map_before_a_nonlinear_head(x64):
    model, images = Nonlinear(), IMAGES[:, :4, :5]
    variables = random_variables(model, images)

    def logit(features, row):
        logits = model.apply(variables, features[None], method="head")
        return logits[0, CLASSES[row]]

    @jax.jit
    def both(images):
        features = model.apply(variables, images, method="features")
        weights = jnp.stack([jax.grad(logit)(features[row], row).mean((0, 1)) for row in range(3)])
        expected = jnp.maximum((features * weights[:, None, None]).sum(-1), 0)
        return grad_cam(applied(model, variables), images, CLASSES), expected

    actual, expected = both(images)
    assert_close(actual, np.asarray(expected))


@pytest.mark.slow
def test_images_do_not_depend_on_one_another_nor_on_jit(x64):
    # Without jit every operation is compiled by itself: few of them are enough.
    model = ResNet(BasicBlock, (1,), width=8, num_classes=5, stem="cifar", attention="nam")
    variables = random_variables(model, IMAGES)

    @jax.jit
    def compiled(variables, images, classes):
        return grad_cam(applied(model, variables), images, classes)

    together = np.asarray(grad_cam(applied(model, variables), IMAGES, CLASSES))
    alone = [compiled(variables, IMAGES[i : i + 1], CLASSES[i : i + 1])[0] for i in range(3)]
    assert_close(jnp.stack(alone), together)


@pytest.mark.slow
def test_blocks_computed_anew_have_the_same_map(x64):
    fields = {"num_classes": 5, "stem": "cifar", "attention": "nam"}
    kept, anew = FAMILIES["basic"](**fields), FAMILIES["basic"](**fields, remat=True)
    variables = random_variables(kept, IMAGES)
    maps = [
        jax.jit(lambda v, m=model: grad_cam(applied(m, v), IMAGES, CLASSES))(variables)
        for model in (kept, anew)
    ]
    assert_close(maps[1], np.asarray(maps[0]))


def test_bfloat16_network_gives_a_float32_map():
    model = FAMILIES["basic"](num_classes=5, stem="cifar", attention="nam", dtype=jnp.bfloat16)
    variables = random_variables(model, IMAGES, np.float32)
    images = jnp.asarray(IMAGES, jnp.bfloat16)
    maps = jax.eval_shape(lambda v: grad_cam(applied(model, v), images, CLASSES), variables)
    assert (maps.shape, maps.dtype) == ((3, 8, 8), jnp.float32)


def test_what_the_logits_do_not_depend_on_is_passed_over():
    kernel = jnp.array([[1.0, -1.0], [0.0, 2.0]])

    def network(images):
        features = nn.relu(images)
        jnp.exp(features)
        return features.mean((1, 2)) @ kernel

    images = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2, 2, 2)), jnp.float32)
    expected = nn.relu(nn.relu(images) @ kernel[:, 1]) / 4
    maps = grad_cam(network, images, jnp.array([1, 1, 1]))
    np.testing.assert_allclose(maps, expected, rtol=1e-6)


def test_map_beside_another_output_of_its_equation():
    kernel = jnp.array([[1.0, -1.0], [0.0, 2.0]])

    def network(images, among=lambda function: function):
        both = among(lambda x: (x.mean((1, 2)), nn.relu(x)))(images)
        return both[1].mean((1, 2)) @ kernel + both[0]

    images = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2, 2, 2)), jnp.float32)
    classes = jnp.array([0, 1, 1])
    maps = grad_cam(lambda images: network(images, jax.jit), images, classes)
    np.testing.assert_allclose(maps, grad_cam(network, images, classes), rtol=1e-6)


def test_network_without_a_map():
    with pytest.raises(ValueError, match=r"needs a network that computes an array \(N, H, W, C\)"):
        grad_cam(lambda images: images.mean((1, 2)), IMAGES, CLASSES)
