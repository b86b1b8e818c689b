"""StableHLO files, in this process and in one with JAX and flatbuffers alone."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import nam_jax
from nam_jax.models.resnet import BasicBlock, ResNet
from tests.helpers.networks import random_variables

MEAN, STD = (0.5, 0.4, 0.3), (0.25,)
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 16, 12, 3)).astype(np.uint8)
NORMALISED = ((IMAGES / 255 - MEAN) / STD).astype(np.float32)

ALONE = """
import sys
for name in ("flax", "nam_jax", "optax", "train"):
    sys.modules[name] = None
import jax
import numpy as np
file, images, logits = sys.argv[1:]
network = jax.export.deserialize(bytearray(open(file, "rb").read()))
assert network.platforms == ("cpu", "cuda", "tpu")
np.save(logits, network.call(np.load(images)))
"""


@pytest.fixture(scope="module")
def network() -> tuple[ResNet, Any]:
    model = ResNet(BasicBlock, (1, 1), num_classes=6, attention="nam", width=8)
    return model, random_variables(model, NORMALISED, np.float32)


def expected(network: tuple[ResNet, Any]) -> np.ndarray:
    model, variables = network
    return np.asarray(jax.jit(lambda x: model.apply(variables, x, train=False))(NORMALISED))


def test_jax_alone_runs_it(network: Any, tmp_path: Path) -> None:
    file = nam_jax.export(*network, IMAGES.shape[1:], mean=MEAN, std=STD)
    (tmp_path / "network").write_bytes(file)
    np.save(tmp_path / "images.npy", IMAGES)
    names = [str(tmp_path / name) for name in ("network", "images.npy", "logits.npy")]
    subprocess.run([sys.executable, "-c", ALONE, *names], check=True)
    logits, wanted = np.load(names[-1]), expected(network)
    assert np.abs(logits - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_file_does_not_tell_where_it_was_made(network: Any) -> None:
    limit = jax.config.jax_traceback_in_locations_limit
    for _ in range(2):
        file = nam_jax.export(*network, IMAGES.shape[1:], platforms=["cpu"])
        assert b"batch_norm.py" not in file
        assert jax.config.jax_traceback_in_locations_limit == limit
        # As it would be where the lines of the source are known from another trace.
        jax.jit(lambda x: network[0].apply(network[1], x, train=False)).lower(NORMALISED)


def test_normalised_images_and_any_number_of_them(network: Any) -> None:
    file = nam_jax.export(*network, IMAGES.shape[1:], platforms=["cpu"], probabilities=True)
    exported = jax.export.deserialize(bytearray(file))
    assert exported.platforms == ("cpu",)
    assert exported.in_avals[0].dtype == np.float32
    wanted = np.asarray(jax.nn.softmax(expected(network)))
    for count in (1, 3):
        np.testing.assert_allclose(exported.call(NORMALISED[:count]), wanted[:count], atol=1e-5)


def test_the_weights_are_in_it_once(network: Any) -> None:
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(network[1]))
    file = nam_jax.export(*network, IMAGES.shape[1:])
    assert size < len(file) < 2 * size + 100_000


@pytest.mark.parametrize("platforms", ["cpu", (), ["cpu", "gpu"], ["CPU"]])
def test_platforms_that_there_are_not(network: Any, platforms: Any) -> None:
    with pytest.raises(ValueError, match=r"some of cpu, cuda, rocm, tpu; got"):
        nam_jax.export(*network, IMAGES.shape[1:], platforms=platforms)


@pytest.mark.parametrize("export", [nam_jax.export, nam_jax.export_onnx])
def test_wrong_arguments(network: Any, export: Any) -> None:
    with pytest.raises(ValueError, match="mean and std belong together"):
        export(*network, IMAGES.shape[1:], mean=MEAN)
    with pytest.raises(ValueError, match=r"has to be \(H, W, C\), .*; got \(3, 16, 12, 3\)"):
        export(*network, IMAGES.shape)
    with pytest.raises(ValueError, match=r"each at least 1; got \(0, 12, 3\)"):
        export(*network, (0, 12, 3))
    with pytest.raises(ValueError, match=r"std has to be a number, or one for each of 3 channels"):
        export(*network, IMAGES.shape[1:], mean=MEAN, std=(0.5, 0.5))
    with pytest.raises(ValueError, match=r"std has to be above 0; got 0\.0"):
        export(*network, IMAGES.shape[1:], mean=0.5, std=0.0)
