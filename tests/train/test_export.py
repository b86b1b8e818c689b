"""The command that exports, and the example that serves what it writes."""

import errno
import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnxruntime
import pytest
from etils import epath

from examples import serve
from nam_jax import export, export_onnx, models
from nam_jax.models.resnet import BasicBlock, ResNet
from tests.helpers import commands
from tests.helpers.image_datasets import folders
from tests.helpers.networks import random_variables
from tests.helpers.torch_weights import networks
from train.core.config.fields import Config
from train.core.data.on_device import normalize
from train.core.data.on_host.transform import eval_transform
from train.core.data.sources.records import Record
from train.core.workdir import directory
from train.core.workdir.checkpoint_files import state_sha256
from train.core.workdir.checkpoints import Checkpoints
from train.core.workdir.storage import write_json

SHAPE = (8, 8, 3)
PIXELS = np.random.default_rng(0).integers(0, 256, (5, *SHAPE)).astype(np.uint8)
NORMALISATION = {"data.mean": (0.5, 0.4, 0.3), "data.std": (0.2, 0.25, 0.3)}
# Where nothing but these and NumPy is to be found.
ALONE = """
import runpy, sys
for name in ("jax", "flax", "optax", "nam_jax", "train", "onnx", "cv2"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def small(name: str, *, num_classes: int, attention: str, dtype: Any = None, **_: Any) -> ResNet:
    fields = {"num_classes": num_classes, "attention": attention, "dtype": dtype}
    return ResNet(BasicBlock, (1,), stem="cifar", width=8, **fields)


@pytest.fixture(autouse=True, scope="module")
def _small_networks() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "create", small)
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of image files, of which some are turned in their metadata."""
    folder = tmp_path_factory.mktemp("images")
    return folders.write(folder, [f"{i}.png" for i in range(6)])


def config(folder: Path) -> Config:
    changes = {
        "model.attention": "nam",
        "data.crop": "resized",
        "data.loader": "streaming",
        **NORMALISATION,
    }
    return folders.config(folder, **changes, **{"data.interpolation": "antialias"})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, images: Path) -> epath.Path:
    """The directory of a run with two checkpoints, of which the first is the best."""
    workdir = epath.Path(tmp_path_factory.mktemp("run"))
    directory.claim(workdir, config(images))
    about = {"num_classes": 3, "class_names": ["cat", "dog", "数"], "image_shape": SHAPE}
    write_json(workdir / "dataset.json", about)
    with Checkpoints(workdir / "checkpoints", keep=2) as checkpoints:
        for step, error in ((1, 10.0), (2, 20.0)):
            state = jax.device_put({**variables(step), "opt_state": [np.ones(3)]})
            checkpoints.save(step, state, {}, {"top1_error": error})
    return workdir


@functools.cache
def drawn() -> Any:
    """Random variables with which no class is always the best."""
    images = np.zeros((1, *SHAPE), np.float32)
    variables = random_variables(small("", num_classes=3, attention="nam"), images, np.float32)
    fc = variables["params"]["fc"]
    fc["bias"] -= applied(variables, PIXELS).mean(0)
    return variables


def variables(step: int) -> Any:
    fc = jax.tree.map(lambda leaf: leaf * np.float32(step), drawn()["params"]["fc"])
    return {**drawn(), "params": {**drawn()["params"], "fc": fc}}


def applied(variables: Any, pixels: np.ndarray) -> np.ndarray:
    normalised = normalize(pixels, *NORMALISATION.values(), "float32")
    model = small("", num_classes=3, attention="nam")
    return np.asarray(model.apply(variables, normalised, train=False))


def logits(step: int, pixels: np.ndarray) -> np.ndarray:
    return applied(variables(step), pixels)


def assert_near(actual: Any, expected: np.ndarray) -> None:
    assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


def exported(run: epath.Path, target: Path, *more: str) -> commands.Result:
    return commands.call("export", f"--workdir={run}", f"--out={target}", *more)


@pytest.mark.parametrize("name", ["network.onnx", "network"])
def test_a_run_and_what_is_told_of_it(run: epath.Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    done = exported(run, target)
    assert (done.code, done.err) == (0, "")
    kind = "onnx" if target.suffix else "stablehlo"
    assert done.out == f"{target}: {kind}, {target.stat().st_size:,} bytes, step 2\n"
    network, about = serve.load(target)
    assert_near(network(PIXELS), logits(2, PIXELS))
    assert about["classes"] == ["cat", "dog", "数"]
    assert about["images"] == {
        **{"height": 8, "width": 8, "channels": 3, "dtype": "uint8"},
        **{"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]},
        **{"crop_ratio": 0.875, "interpolation": "antialias"},
        "interpolation_enlarging": "antialias",
    }
    assert (about["output"], about["step"]) == ("logits", 2)
    assert about["weights_sha256"] == state_sha256(variables(2))
    assert about["config"]["data"]["name"] == "folder"
    assert about["versions"]["jax"] == jax.__version__
    beside = set() if target.suffix else {"network.json"}
    assert {path.name for path in tmp_path.iterdir()} == {name, *beside}


def test_the_best_checkpoint_raw_and_probabilities(run: epath.Path, tmp_path: Path) -> None:
    options = ("--which=best", "--raw", "--probabilities", "--format=onnx")
    target = tmp_path / "network"
    assert exported(run, target, *options).code == 0
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    normalised = normalize(PIXELS, *NORMALISATION.values(), "float32")
    (result,) = session.run(None, {"images": np.asarray(normalised)})
    assert_near(result, np.asarray(jax.nn.softmax(logits(1, PIXELS))))
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["images"])["dtype"] == "float32"
    assert (about["output"], about["step"]) == ('"probabilities"', "1")


@pytest.mark.parametrize("name", ["network.onnx", "network"])
def test_what_is_there_stays(run: epath.Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    there = target if target.suffix else tmp_path / "network.json"
    there.write_text("precious")
    refused = exported(run, target)
    assert (refused.code, refused.out) == (2, "")
    assert f"--out: there is {there}; name another file, or give --overwrite." in refused.err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]
    assert exported(run, target, "--overwrite").code == 0
    assert_near(serve.load(target)[0](PIXELS), logits(2, PIXELS))


def test_nothing_is_left_of_what_fails(
    run: epath.Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(self: Any, x: jax.Array, train: bool) -> jax.Array:
        return jax.numpy.cumsum(x.mean((1, 2)), -1)

    monkeypatch.setattr(ResNet, "__call__", unknown)
    refused = exported(run, tmp_path / "network.onnx")
    assert refused.code == 2
    message = "error: --format=onnx: The ONNX export knows no operation cumsum of JAX; "
    assert refused.err.startswith(message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failing", ["network", "network.json"])
def test_both_files_stay_where_one_cannot_be_written(
    run: epath.Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    files = tmp_path / "network", tmp_path / "network.json"
    for file in files:
        file.write_text("precious")
    local = type(epath.Path(tmp_path))
    write = local.write_bytes

    def full(path: Any, content: bytes) -> None:
        write(path, content)
        if (".json." in path.name) == failing.endswith(".json"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(local, "write_bytes", full)
    refused = exported(run, files[0], "--overwrite")
    assert refused.code == 1
    assert refused.err.endswith(f"{files[0]}: No space left on device.\n")
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert [file.read_text() for file in files] == ["precious"] * 2


@pytest.mark.parametrize(("kind", "package"), [("onnx", "onnx"), ("stablehlo", "flatbuffers")])
def test_a_missing_package_is_named(
    run: epath.Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, package: str
) -> None:
    find = importlib.util.find_spec
    lacking = lambda name: None if name == package else find(name)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", lacking)
    refused = exported(run, tmp_path / "network", f"--format={kind}")
    assert (refused.code, refused.out) == (2, "")
    assert f"needs the package {package}; get it with " in refused.err
    assert "pip install -e '.[train,export]'." in refused.err
    function = export_onnx if kind == "onnx" else export
    with pytest.raises(ImportError, match=f"needs the package {package}; get it with pip install"):
        function(small("", num_classes=10, attention="none"), {}, (8, 8, 3))


def test_weights_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(commands.REPOSITORY)
    model = small("", num_classes=10, attention="none")
    weights = networks.save(tmp_path / "w.npz", model, (8, 8, 1))
    given = ("--config=configs/digits_resnet20.py", f"--config.model.pretrained={tmp_path}/w.npz")
    plain = ("--config.model.attention=none", "--config.optimizer.sparsity=0")
    done = commands.call("export", *given, *plain, f"--out={tmp_path / 'digits.onnx'}")
    assert (done.code, done.err) == (0, "")
    network, about = serve.load(tmp_path / "digits.onnx")
    pixels = PIXELS[..., :1]
    normalised = normalize(pixels, about["images"]["mean"], about["images"]["std"], "float32")
    assert_near(network(pixels), np.asarray(model.apply(weights, normalised, train=False)))
    assert (about["step"], about["images"]["crop_ratio"]) == (None, 1)
    refused = commands.call("export", *given, *plain, "--workdir=new", "--out=new")
    assert refused.code == 2
    assert "--workdir is of a run, and config.model.pretrained names" in refused.err
    refused = commands.call("export", given[0], "--out=new")
    assert "a run has a config of its own" in refused.err


@pytest.fixture(scope="module")
def labels(images: Path) -> list[str]:
    """What an evaluation says of every image, and at least two different things."""
    transform = eval_transform(config(images).data, SHAPE)
    files = sorted(images.iterdir())
    rows = [transform.apply(Record(f.read_bytes(), 0, f.name, upright=True), row=0) for f in files]
    best = logits(2, np.stack(rows)).argmax(-1)
    assert len(set(best)) > 1
    return [f"{f.name} {['cat', 'dog', '数'][i]}" for f, i in zip(files, best, strict=True)]


def test_the_example_serves_stablehlo(
    run: epath.Path, images: Path, labels: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exported(run, tmp_path / "network").code == 0
    serve.main(tmp_path / "network", images)
    assert capsys.readouterr().out.splitlines() == labels


def test_the_example_serves_onnx_without_jax(
    run: epath.Path, images: Path, labels: Any, tmp_path: Path
) -> None:
    target = tmp_path / "network.onnx"
    assert exported(run, target).code == 0
    example = commands.REPOSITORY / "examples" / "serve.py"
    command = [sys.executable, "-X", "utf8", "-c", ALONE, str(example), str(target), str(images)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.splitlines() == labels
