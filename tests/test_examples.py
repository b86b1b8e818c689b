"""The examples run as they stand, and learn; so do the README's, in their order."""

import os
import re
import shlex
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from examples import linen_model, nnx_model, pretrained_model
from nam_jax import models
from nam_jax.torch_import import names
from nam_jax.variables import abstract_variables
from tests.helpers.commands import BEGINS, call, no_work
from tests.helpers.values import with_slow

pytestmark = pytest.mark.usefixtures("quick_compilation")


@with_slow("attention", ["nam", "none", "bam"], ("none", "bam"))
def test_linen_model_learns(attention: str) -> None:
    losses = linen_model.train(attention, steps=5)
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_nnx_model_learns() -> None:
    losses = nnx_model.train(steps=5)
    assert losses[-1] < losses[0]


@pytest.mark.long
def test_pretrained_network_keeps_its_error() -> None:
    data = Path(os.environ.get("NAM_JAX_TEST_DATA", ""))
    weights = data / "weights/mobilenet_v2-b0353104.pth"
    if not weights.exists():
        pytest.skip("NAM_JAX_TEST_DATA has no weights/mobilenet_v2-b0353104.pth")
    images, classes = data / "imagenet_samples", data / "imagenet_classes.txt"
    plain, once, twice = pretrained_model.main(str(weights), str(images), str(classes)).values()
    assert plain == 16.5
    assert once > 95
    assert abs(twice - plain) <= 1


@pytest.mark.slow
def test_tour_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    # What it writes, and what its kernel does.
    for name in ("TMPDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    tour = nbformat.read(README.parent / "examples/tour.ipynb", as_version=4)
    shown = [kinds_of_output(cell) for cell in tour.cells]
    resources = {"metadata": {"path": str(README.parent / "examples")}}
    nbclient.NotebookClient(tour, timeout=600, resources=resources).execute()
    assert [kinds_of_output(cell) for cell in tour.cells] == shown
    assert "done: top-1 error" in str(tour.cells)


def kinds_of_output(cell: Any) -> list[str]:
    """What a cell prints or shows: `stream`, `display_data`, ….

    A tour that is stored without outputs, or whose outputs are other ones by now, shows here.
    """
    return sorted({output["output_type"] for output in cell.get("outputs", ())})


# The README's Python examples run, in the order in which they stand; commands are understood.

README = Path(__file__).parents[1] / "README.md"
PHOTOGRAPHS = README.parent / "docs/photographs.md"


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 4
    # In place of weights that would have to be downloaded: random ones, of the same names.
    weights = tmp_path_factory.mktemp("weights") / "resnet50.npz"
    np.savez(weights, **resnet50())
    blocks[3] = blocks[3].replace("resnet50.pth", str(weights))
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
        names.setdefault("attached", names["variables"])
        if "step" in names:
            names.setdefault("trained", names["variables"])
    return names


def resnet50() -> dict[str, np.ndarray]:
    """The weights of a ResNet-50 without attention, as PyTorch has them."""
    model = models.create("resnet50", num_classes=1000)
    shapes = abstract_variables(model, (1, 224, 224, 3))
    rules = names.rules_of(model)
    return {
        names.torch_name(path, rules): np.zeros(leaf.shape[::-1], np.float32).swapaxes(-1, -2)
        if leaf.ndim == 4
        else np.zeros(leaf.shape[::-1], np.float32)
        for path, leaf in traverse_util.flatten_dict(shapes).items()
    }


def test_model_of_others_has_attention(namespace: dict[str, Any]) -> None:
    params = namespace["attached"]["params"]["layers_1"]["attention"]
    assert params["channel"]["nam_bn"]["scale"].shape == (8,)
    assert params["spatial"]["nam_bn"]["scale"].shape == (16, 16)


def test_block_trains(namespace: dict[str, Any]) -> None:
    scale = namespace["trained"]["params"]["NAM_0"]["channel"]["nam_bn"]["scale"]
    assert scale.shape == (8,)
    assert not np.array_equal(scale, np.ones(8))


def test_tied_block_owns_only_its_batch_norm(namespace: dict[str, Any]) -> None:
    x = jnp.ones((2, 4, 4, 8))
    variables = namespace["TiedBlock"]().init(jax.random.key(0), x, train=False)
    assert list(variables["params"]) == ["nam_bn"]
    # The BatchNorm passes the ones on; each of 8 equal scales weighs 1/8.
    y = namespace["TiedBlock"]().apply(variables, x, train=False)
    np.testing.assert_allclose(y, 1 / (1 + np.exp(-1 / 8)), rtol=1e-4)


def test_weights_keep_the_attention_fresh(namespace: dict[str, Any]) -> None:
    params = namespace["variables"]["params"]
    assert not params["layer1_0"]["conv1"]["kernel"].any()
    assert (params["layer1_0"]["attention"]["channel"]["nam_bn"]["scale"] == 1).all()


def test_commands_name_files_that_exist() -> None:
    for path in re.findall(r"configs/\w+\.py", README.read_text()):
        assert (README.parent / path).exists()


def test_commands_for_photographs_are_understood() -> None:
    text = PHOTOGRAPHS.read_text().replace("\\\n", "")
    lines = re.findall(r"^    python -m train\.(.*)$", text, re.MULTILINE)
    assert [line.split()[0] for line in lines] == [
        *("prepare", "main", "evaluate", "visualize", "visualize"),
    ]
    with no_work():
        for line in lines:
            result = call(*shlex.split(line))
            assert (result.code, result.err) == (0, "")
            assert result.out.startswith(BEGINS)
