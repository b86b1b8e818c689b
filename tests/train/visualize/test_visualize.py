"""The picture of a trained network: what is in it, and what is wrong with a command line."""

import dataclasses
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest
from absl import flags
from etils import epath

from configs import digits_resnet20
from nam_jax import gates, models
from nam_jax.models import mobilenet_v2
from nam_jax.models.mobilenet_v2 import MobileNetV2, Stage
from nam_jax.models.resnet import BasicBlock, ResNet
from tests.helpers import commands, imagenet, tfds_writer
from tests.helpers.commands import REPOSITORY
from tests.helpers.parity import random_variables
from train.core.data import on_device
from train.core.data.sources import registry
from train.core.devices import mesh as mesh_lib
from train.core.engine import experiment as experiment_lib
from train.core.errors import ConfigError, RunError
from train.core.plotting import png
from train.core.workdir import directory as workdir_lib
from train.core.workdir.checkpoints import Checkpoints
from train.core.workdir.storage import write_json
from train.visualize import __main__ as visualize
from train.visualize import gallery, images, predictions, trained_network

pytestmark = pytest.mark.usefixtures("quick_compilation")


def small(name, *, num_classes, attention, stem, dtype, **_):
    """A network with few layers of the family of a name."""
    fields = {"num_classes": num_classes, "attention": attention, "stem": stem, "dtype": dtype}
    if name == "mobilenet_v2":
        return MobileNetV2(width_multiplier=0.25, **fields)
    return ResNet(BasicBlock, (1, 1), width=8, **fields)


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    monkeypatch.setattr(models, "create", small)
    monkeypatch.setattr(mobilenet_v2, "STAGES", (Stage(6, 16, 1, 1), Stage(6, 32, 1, 2)))


def digits(**changes):
    config = digits_resnet20.get_config()
    config.optimizer.sparsity = 0.0
    config.update_from_flattened_dict(changes)
    return config


def save(workdir, config, num_classes=10, shape=(8, 8, 1), errors=(50.0,)):
    """Writes what visualize reads of a run: its config, and a checkpoint an error."""
    workdir = epath.Path(workdir)
    workdir_lib.claim(workdir, config)
    dataset = {"num_classes": num_classes, "class_names": None, "image_shape": shape}
    write_json(workdir / "dataset.json", dataset)
    model = experiment_lib.create_model(config, num_classes)
    variables = random_variables(model, np.zeros((1, *shape), np.float32), np.float32)
    # A state has more than the network is applied with.
    state = {**jax.device_put(variables), "opt_state": [jax.numpy.ones(3), None]}
    with Checkpoints(workdir / "checkpoints", keep=2) as checkpoints:
        for step, error in enumerate(errors, start=1):
            changed = jax.tree.map(lambda leaf, step=step: leaf * step, state)
            checkpoints.save(step, changed, {}, {"top1_error": error})
    return workdir


def first_digits(count):
    data = digits().data
    return images.of_split("test", count, data, (8, 8, 1))


@pytest.fixture
def call(monkeypatch):
    """Runs the command in this process."""
    defaults = {"images": None, "split": None, "count": 16, "layer": None, "which": "last"}

    def run(workdir, **options):
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        values = {**defaults, "data_dir": None, "out": None, "workdir": str(workdir), **options}
        for name, value in values.items():
            # Not flagsaver: it would take flags back that modules define as they are imported.
            monkeypatch.setattr(flags.FLAGS[name], "value", value)
        visualize.main()

    return run


GATES = {
    "nam": ((16,), (4, 4)),
    "nam_channel": ((16,), None),
    "nam_spatial": (None, (4, 4)),
    "nam_tied": ((16,), None),
}


@pytest.mark.parametrize("attention", GATES)
def test_view_of_an_image(tmp_path, attention):
    workdir = save(tmp_path, digits(**{"model.attention": attention, "model.remat": True}))
    network = trained_network.load(workdir, "last")
    assert predictions.layers(network) == ["layer1_0/attention", "layer2_0/attention"]
    [picture] = first_digits(1)
    view = predictions.viewer(network, "layer2_0/attention")(picture.image)
    assert view.heat.shape == (4, 4)
    assert view.heat.min() >= 0
    shapes = [None if part is None else part.shape for part in (view.channels, view.pixels)]
    assert shapes == list(GATES[attention])

    @jax.jit
    def looked_up(variables):
        images = on_device.normalize(picture.image[None], (0.306,), (0.376,), np.float32)
        found = gates(network.model, variables, images, train=False)
        return network.model.apply(variables, images, train=False), found

    logits, found = looked_up(network.variables)
    probabilities = np.asarray(jax.nn.softmax(logits[0]))
    assert view.label == probabilities.argmax()
    assert view.probability == pytest.approx(probabilities.max(), rel=1e-4)
    own = [np.asarray(g[0]) for path, g in found.items() if path.startswith("layer2_0")]
    if view.channels is not None:
        np.testing.assert_allclose(view.channels, own[0].mean((0, 1)), rtol=1e-4)
    if view.pixels is not None:
        np.testing.assert_allclose(view.pixels, own[-1].mean(-1), rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "attention", "stem"),
    [("mobilenet_v2", "nam", "imagenet"), ("resnet18", "se", "imagenet")],
)
def test_other_networks(tmp_path, capsys, name, attention, stem, call):
    changes = {"model.name": name, "model.attention": attention, "model.stem": stem}
    changes["data.image_size"] = 32
    workdir = save(tmp_path, digits(**changes), shape=(32, 32, 1))
    network = trained_network.load(workdir, "last")
    assert predictions.layers(network) == (
        ["block1/attention", "block2/attention"] if attention == "nam" else []
    )
    call(workdir, split="test", count=2)
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert (workdir / "visualize.png").exists()


def test_picture_and_predictions_of_a_split(tmp_path, capsys, call):
    workdir = save(tmp_path / "run", digits())
    call(workdir, split="test", count=3, out=str(tmp_path / "new.png"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    labels = registry.open_split(digits().data, "test").load()[1]
    for index, line in enumerate(lines[:3]):
        assert line.startswith(f"test {index}: ")
        assert line.endswith(f" %), label {labels[index]}")
    assert lines[3] == f"step 1, {tmp_path / 'new.png'}"
    drawn = cv2.imread(str(tmp_path / "new.png"))
    assert drawn is not None
    assert drawn.shape[0] > 3 * 144
    assert not (workdir / "visualize.png").exists()


def test_picture_of_files_needs_no_dataset(tmp_path, capsys, call):
    config = imagenet.config(tmp_path / "nowhere", **{"data.name": "of_my_own"})
    workdir = save(tmp_path / "run", config, num_classes=5, shape=(16, 16, 3))
    files = [tmp_path / "cost $5_a_$.jpg", tmp_path / "b.png"]
    [jpeg] = imagenet.jpegs(1)
    files[0].write_bytes(jpeg)
    files[1].write_bytes(tfds_writer.encode(imagenet.pictures(2)[1]))
    call(workdir, images=[str(file) for file in files])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:2]] == ["cost $5_a_$.jpg", "b.png"]
    assert all(line.endswith(" %)") for line in lines[:2])
    assert lines[2] == f"step 1, {workdir / 'visualize.png'}"


def test_dataset_that_has_moved(tmp_path, call):
    imagenet.write(tmp_path / "new", imagenet.jpegs(2), "validation")
    config = imagenet.config(tmp_path / "old")
    workdir = save(tmp_path / "run", config, num_classes=1000, shape=(16, 16, 3))
    with pytest.raises(ConfigError, match=r"no dataset .imagenet2012. in .*old"):
        call(workdir, split="validation")
    call(workdir, split="validation", data_dir=str(tmp_path / "new"))
    assert (workdir / "visualize.png").exists()


def test_last_and_best_checkpoint(tmp_path):
    workdir = save(tmp_path, digits(), errors=(10.0, 20.0))
    last, best = (trained_network.load(workdir, which) for which in ("last", "best"))
    assert (last.step, best.step) == (2, 1)
    assert last.image_shape == (8, 8, 1)
    assert last.variables.keys() == {"params", "batch_stats"}
    for a, b in zip(*map(jax.tree.leaves, (last.variables, best.variables)), strict=True):
        np.testing.assert_array_equal(a, 2 * b)


def test_parts_of_a_state_that_lay_on_several_devices(tmp_path):
    mesh = mesh_lib.create(4, 2)
    values = np.arange(24, dtype=np.float32).reshape(8, 3)
    state = {
        "params": {"fc": jax.device_put(values, mesh_lib.replicated(mesh))},
        "batch_stats": {"bn": jax.device_put(values, mesh_lib.by_rows(mesh))},
        "opt_state": (np.ones(3), None),
    }
    with Checkpoints(epath.Path(tmp_path), keep=2) as checkpoints:
        checkpoints.save(3, state, {}, None)
    with Checkpoints(epath.Path(tmp_path)) as checkpoints:
        found = checkpoints.restore_parts(3, "params", "batch_stats")
    assert found.keys() == {"params", "batch_stats"}
    for array in jax.tree.leaves(found):
        assert isinstance(array, np.ndarray)
        np.testing.assert_array_equal(array, values)


def test_damaged_checkpoint(tmp_path):
    workdir = save(tmp_path, digits())
    (workdir / "checkpoints" / "1" / "state" / "_METADATA").write_text("{")
    with pytest.raises(RunError, match=r"the checkpoint of step 1 in \S+ cannot be read: "):
        trained_network.load(workdir, "last")


def test_float64_run(tmp_path):
    workdir = save(tmp_path, digits())
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"dtype": "float32"', '"dtype": "float64"'))
    network = trained_network.load(workdir, "last")
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), network.variables)
    [picture] = first_digits(1)
    view = predictions.viewer(dataclasses.replace(network, variables=wide), None)(picture.image)
    assert view.heat.dtype == np.float32
    assert view.channels is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "give --images or --split, one of the two"),
        ({"images": [], "split": None}, "give --images or --split"),
        ({"images": ["a.png"], "split": "test"}, "give --images or --split"),
        ({"images": ["a.png"] * 101}, "--images: 101 files; at most 100"),
        ({"images": ["nowhere.png"]}, "--images: nowhere.png: No such file or directory."),
        ({"images": [__file__]}, r"--images: .*py: no whole JPEG or PNG image in its \d+ bytes"),
        ({"split": "tset"}, "--split: digits has the splits train and test; got 'tset'"),
        (
            {"split": "test", "layer": "layer3_0"},
            "--layer: got 'layer3_0'; allowed: layer1_0/attention, layer2_0/attention.",
        ),
        ({"split": "test", "out": "nowhere/a.png"}, "--out: got 'nowhere/a.png'"),
    ],
)
def test_wrong_options(tmp_path, options, expected, call):
    workdir = save(tmp_path, digits())
    with pytest.raises(ConfigError, match=expected):
        call(workdir, **options)
    assert not (workdir / "visualize.png").exists()


def test_layer_of_a_network_without_nam(tmp_path, call):
    workdir = save(tmp_path, digits(**{"model.attention": "se"}))
    with pytest.raises(ConfigError, match="--layer: got 'layer1_0'; allowed: none, se is no NAM"):
        call(workdir, split="test", layer="layer1_0")


def test_no_run_and_no_checkpoint(tmp_path, call):
    with pytest.raises(ConfigError, match="there is no run"):
        call(tmp_path, split="test")
    workdir_lib.claim(epath.Path(tmp_path), digits())
    for which in ("last", "best"):
        with pytest.raises(RunError, match=f"there is no {which} checkpoint in "):
            call(tmp_path, split="test", which=which)
    (tmp_path / "checkpoints").rmdir()
    with pytest.raises(RunError, match="there is no last checkpoint in "):
        call(tmp_path, split="test")


def test_without_matplotlib(tmp_path, monkeypatch, call):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pictures need matplotlib: pip install"):
        call(tmp_path, split="test")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--split=test",), "--workdir is missing"),
        (("--workdir=x", "--split=test", "--count=0"), "--count=0"),
        (
            ("--workdir=x", "--split=test", "--config=configs/digits_resnet20.py"),
            "unknown option --config; --help lists the options",
        ),
    ],
)
def test_wrong_command_lines_are_one_line(arguments, expected):
    result = commands.call(*arguments, command="train.visualize")
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr
    assert expected in result.stderr


def test_nothing_is_drawn_with_before_it_is_asked_for():
    code = "import sys, train.visualize; print({'matplotlib', 'tensorflow'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


def test_gallery_of_odd_views():
    image = np.zeros((5, 7, 3), np.uint8)
    row = images.Picture("a name of a file that is longer than a line.png", image, label=1)
    same = np.full(3, 0.5, np.float32)
    view = predictions.View(0, 1.0, np.zeros((1, 1)), same, np.full((1, 1), 0.5))
    names = ["great white shark, white shark, man-eater", "$tench$"]
    drawn = png(*gallery.gallery([row], [view], "layer1_0/attention", names))
    assert drawn.startswith(b"\x89PNG")
