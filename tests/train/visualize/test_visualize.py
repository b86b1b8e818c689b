"""Images, what a trained network makes of them, how that is drawn, and wrong options."""

import dataclasses
import errno
import os
import shutil

import cv2
import jax
import numpy as np
import pytest
from etils import epath
from matplotlib.figure import Figure

from configs import digits_resnet20
from nam_jax import gates, models
from nam_jax.models import mobilenet_v2
from nam_jax.models.mobilenet_v2 import MobileNetV2, Stage
from nam_jax.models.resnet import BasicBlock, ResNet
from tests.helpers import commands
from tests.helpers.commands import REPOSITORY
from tests.helpers.image_datasets import folders, imagenet, tfds_writer
from tests.helpers.networks import random_variables
from tests.helpers.torch_weights import networks
from train.core.config.fields import replaced
from train.core.data import crop, on_device
from train.core.data.sources import registry
from train.core.engine import trained_network
from train.core.engine.experiment import create_model
from train.core.errors import ConfigError, RunError
from train.core.plotting import png
from train.core.workdir import directory
from train.core.workdir.checkpoints import Checkpoints
from train.core.workdir.storage import write_json
from train.visualize import gallery, predictions
from train.visualize.images import Asked, Image, of_files, of_split
from train.visualize.predictions import View
from train.visualize.visualize_run import visualize_pretrained, visualize_run

CONFIG, WEIGHTS = "--config=configs/digits_resnet20.py", "--config.model.pretrained=w.npz"


def small(name, *, num_classes, **options):
    """A network with few layers of the family of a name."""
    kept = ("attention", "stem", "dtype", "remat")
    fields = {"num_classes": num_classes, **{key: options[key] for key in kept}}
    if name == "mobilenet_v2":
        return MobileNetV2(width_multiplier=0.25, **fields)
    return ResNet(BasicBlock, (1, 1), width=8, **fields)


@pytest.fixture(autouse=True, scope="module")
def small_networks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "create", small)
        patch.setattr(mobilenet_v2, "STAGES", (Stage(6, 16, 1, 1), Stage(6, 32, 1, 2)))
        yield


def digits(**changes):
    config = digits_resnet20.get_config()
    config.optimizer.sparsity = 0.0
    return replaced(config, changes)


def save(workdir, config, num_classes=10, shape=(8, 8, 1), errors=(50.0,)):
    """Writes what visualize reads of a run: its config, and a checkpoint an error."""
    workdir = epath.Path(workdir)
    directory.claim(workdir, config)
    dataset = {"num_classes": num_classes, "class_names": None, "image_shape": shape}
    write_json(workdir / "dataset.json", dataset)
    model = create_model(config, num_classes)
    variables = random_variables(model, np.zeros((1, *shape), np.float32), np.float32)
    # A state has more than the network is applied with.
    variables = jax.device_put(variables)
    averaged = jax.tree.map(lambda leaf: leaf / 7, variables)
    state = {**variables, "ema": averaged, "opt_state": [jax.numpy.ones(3), None]}
    with Checkpoints(workdir / "checkpoints", keep=2) as checkpoints:
        for step, error in enumerate(errors, start=1):
            changed = jax.tree.map(lambda leaf, step=step: leaf * step, state)
            evaluation = {"top1_error": error, "ema_top1_error": 100 - error}
            checkpoints.save(step, changed, {}, evaluation)
    return workdir


def images_of(name, count, data, shape):
    return of_split(registry.source_of(data).open_split(name), count, data, shape)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, small_networks):
    """A run on the digits with two checkpoints; no test writes into it."""
    return save(tmp_path_factory.mktemp("saved"), digits(), errors=(10.0, 20.0))


@pytest.fixture
def run(saved, tmp_path):
    """A copy of it."""
    return epath.Path(shutil.copytree(saved, tmp_path / "run"))


def test_files_are_cropped_as_in_evaluation(tmp_path):
    config = imagenet.config(tmp_path, **{"data.interpolation": "antialias"})
    [pixels] = imagenet.pictures(1)
    (tmp_path / "a.png").write_bytes(tfds_writer.encode(pixels))
    [image] = of_files([str(tmp_path / "a.png")], config.data, (16, 16, 3))
    ratio = config.data.eval_crop_ratio
    assert ratio < 1
    expected = crop.center(pixels, (16, 16, 3), ratio, "antialias")
    np.testing.assert_array_equal(image.pixels, expected)
    assert (image.name, image.label) == ("a.png", None)


def test_a_file_is_not_waited_for_in_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"^--images: .*pipe: a folder, a pipe or a device, and"):
        of_files([str(tmp_path / "pipe")], imagenet.config(tmp_path).data, (16, 16, 3))


def test_images_of_a_dataset_its_names_and_bad_records(tmp_path, capsys):
    files = imagenet.jpegs(4)
    files[1] = b"no image"
    target = imagenet.write(tmp_path, files, "validation")
    names = [f"name {i}" for i in range(1000)]
    (target / "label.labels.txt").write_text("\n".join(names))
    data = imagenet.config(tmp_path).data
    images = images_of("validation", 2, data, (16, 16, 3))
    expected = [("n00000000_0.JPEG", 0), ("n00000002_2.JPEG", 2)]
    assert [(image.name, image.label) for image in images] == expected
    assert "bad record: validation record 1 (n00000001_1.JPEG): no whole" in capsys.readouterr().err
    assert len(images_of("validation", 9, data, (16, 16, 3))) == 3
    assert trained_network.dataset_description(registry.source_of(data))["class_names"] == names


def test_images_of_a_folder_are_of_all_its_classes(tmp_path):
    folders.write_splits(tmp_path, (("train", 1), ("val", 5)))
    (tmp_path / "val/dog/0.png").write_bytes(b"no image")
    data = folders.config(tmp_path).data
    images = images_of("val", 3, data, (8, 8, 3))
    assert [(image.name, image.label) for image in images] == [
        *(("val/cat/0.png", 0), ("val/owl/0.png", 2), ("val/cat/1.png", 0)),
    ]
    names = [image.name for image in images_of("val", 99, data, (8, 8, 3))]
    assert sorted(names) == [
        *(f"val/{c}/{i}.png" for c in folders.CLASSES for i in range(5) if (c, i) != ("dog", 0)),
    ]


def test_dataset_of_a_run_that_kept_no_description(tmp_path):
    expected = {"num_classes": 10, "class_names": None, "image_shape": (8, 8, 1)}
    assert trained_network.dataset_description(registry.source_of(digits().data)) == expected
    absent = imagenet.config(tmp_path).data
    expected = {"num_classes": 1000, "class_names": None, "image_shape": (16, 16, 3)}
    assert trained_network.dataset_description(registry.source_of(absent)) == expected


def test_images_of_the_digits():
    images = images_of("test", 1000, digits().data, (8, 8, 1))
    pixels, labels = registry.source_of(digits().data).open_split("test").load()
    np.testing.assert_array_equal([image.pixels for image in images], pixels)
    assert [image.label for image in images] == labels.tolist()
    assert [image.name for image in images[:2]] == ["test 0", "test 1"]


def test_split_without_a_single_good_image(tmp_path):
    imagenet.write(tmp_path, [b"no image"] * 3, "validation")
    data = imagenet.config(tmp_path).data
    with pytest.raises(ConfigError, match="--split: 'validation' of imagenet2012 has no image"):
        images_of("validation", 2, data, (16, 16, 3))


@pytest.mark.parametrize(
    ("attention", "channels", "places"),
    [
        ("nam", (16,), (4, 4)),
        pytest.param("nam_spatial", None, (4, 4), marks=pytest.mark.slow),
        pytest.param("nam_channel", (16,), None, marks=pytest.mark.slow),
        pytest.param("nam_tied", (16,), None, marks=pytest.mark.slow),
    ],
)
def test_view_of_an_image(tmp_path, attention, channels, places):
    workdir = save(tmp_path, digits(**{"model.attention": attention, "model.remat": True}))
    network = trained_network.of_run(workdir, "last")
    assert not network.model.remat
    assert predictions.gated_layers(network) == ["layer1_0/attention", "layer2_0/attention"]
    [image] = images_of("test", 1, digits().data, (8, 8, 1))
    view = predictions.viewer(network, "layer2_0/attention")(image.pixels)
    assert view.heat.shape == (4, 4)
    assert view.heat.min() >= 0
    own = (view.channel_gate, view.spatial_gate)
    assert [None if gate is None else gate.shape for gate in own] == [channels, places]

    @jax.jit
    def looked_up(variables):
        images = on_device.normalize(image.pixels[None], (0.306,), (0.376,), np.float32)
        by_path = gates(network.model, variables, images, train=False)
        return network.model.apply(variables, images, train=False), by_path

    logits, by_path = looked_up(network.variables)
    probabilities = np.asarray(jax.nn.softmax(logits[0]))
    assert view.label == probabilities.argmax()
    assert view.probability == pytest.approx(probabilities.max(), rel=1e-4)
    expected = [np.asarray(g[0]) for path, g in by_path.items() if path.startswith("layer2_0")]
    if view.channel_gate is not None:
        np.testing.assert_allclose(view.channel_gate, expected[0].mean((0, 1)), rtol=1e-4)
    if view.spatial_gate is not None:
        np.testing.assert_allclose(view.spatial_gate, expected[-1].mean(-1), rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "attention", "stem"),
    [
        pytest.param("mobilenet_v2", "nam", "imagenet", marks=pytest.mark.slow),
        pytest.param("resnet18", "se", "imagenet", marks=pytest.mark.slow),
    ],
)
def test_other_networks(tmp_path, capsys, name, attention, stem):
    changes = {"model.name": name, "model.attention": attention, "model.stem": stem}
    changes["data.image_size"] = 32
    workdir = save(tmp_path, digits(**changes), shape=(32, 32, 1))
    network = trained_network.of_run(workdir, "last")
    assert not network.model.remat
    assert predictions.gated_layers(network) == (
        ["block1/attention", "block2/attention"] if attention == "nam" else []
    )
    visualize_run(workdir, Asked(split="test", count=2))
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert (workdir / "visualize.png").exists()


def test_picture_and_predictions_of_a_split(saved, tmp_path, capsys):
    out = epath.Path(tmp_path / "new.png")
    visualize_run(saved, Asked(split="test", count=3), out=out)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    labels = registry.source_of(digits().data).open_split("test").load()[1]
    for index, line in enumerate(lines[:3]):
        assert line.startswith(f"test {index}: ")
        assert line.endswith(f" %), label {labels[index]}")
    assert lines[3] == f"step 2, {out}"
    drawn = cv2.imread(str(out))
    assert drawn is not None
    assert drawn.shape[0] > 3 * 144
    assert not (saved / "visualize.png").exists()


def test_predictions_are_there_without_the_picture(saved, monkeypatch, capsys):
    def read_only(path, content):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("train.core.workdir.storage.write_bytes", read_only)
    with pytest.raises(OSError, match="Read-only"):
        visualize_run(saved, Asked(split="test", count=3))
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_picture_of_files_needs_no_dataset(tmp_path, capsys):
    changes = {"data.name": "of_my_own", "model.attention": "none", "optimizer.sparsity": 0.0}
    config = imagenet.config(tmp_path / "nowhere", **changes)
    workdir = save(tmp_path / "run", config, num_classes=5, shape=(16, 16, 3))
    files = [tmp_path / "cost $5_a_$.jpg", tmp_path / "b.png"]
    [jpeg] = imagenet.jpegs(1)
    files[0].write_bytes(jpeg)
    files[1].write_bytes(tfds_writer.encode(imagenet.pictures(2)[1]))
    visualize_run(workdir, Asked([str(file) for file in files]))
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:2]] == ["cost $5_a_$.jpg", "b.png"]
    assert all(line.endswith(" %)") for line in lines[:2])
    assert lines[2] == f"step 1, {workdir / 'visualize.png'}"


def test_weights_of_a_file_are_drawn_without_a_run(tmp_path, monkeypatch):
    same = {"model.attention": "none", "model.dtype": "float32"}
    config = imagenet.config(tmp_path / "nowhere", **same)
    model = create_model(config, 1000)
    variables = networks.save(tmp_path / "w.npz", model, (16, 16, 3))
    [pixels] = imagenet.pictures(1)
    (tmp_path / "a.png").write_bytes(tfds_writer.encode(pixels))
    changes = {
        "data.dir": tmp_path / "nowhere",
        "data.image_size": 16,
        **same,
        "model.pretrained": tmp_path / "w.npz",
        # What a machine with one device could not do.
        "model.sync_bn_devices": 7,
    }
    options = [f"--config.{name}={value}" for name, value in changes.items()]
    file = f"--config={REPOSITORY / 'configs/imagenet_resnet50.py'}"
    monkeypatch.chdir(tmp_path)
    done = commands.call("visualize", file, *options, f"--images={tmp_path / 'a.png'}")
    assert (done.code, done.err) == (0, "")
    [image] = of_files([str(tmp_path / "a.png")], config.data, (16, 16, 3))
    data = config.data
    inputs = on_device.normalize(image.pixels[None], data.mean, data.std, "float32")
    expected = model.apply(variables, inputs, train=False).argmax()
    origin, prediction, drawn = done.out.splitlines()
    assert origin == f"weights from {tmp_path / 'w.npz'}; fresh: nothing"
    assert prediction.startswith(f"a.png: {expected} (")
    assert drawn == "visualize.png"
    assert cv2.imread("visualize.png") is not None


def test_a_folder_is_listed_once_and_of_its_splits_the_one_that_is_asked_for(tmp_path, monkeypatch):
    data = folders.write_splits(tmp_path / "data")
    changes = {"model.attention": "none", "model.pretrained": str(tmp_path / "w.npz")}
    config = folders.config(data, **changes)
    networks.save(tmp_path / "w.npz", create_model(config, 3), (8, 8, 3))
    scandir, listed = os.scandir, []

    def counted(path):
        if str(path).startswith(str(data)):
            listed.append(os.path.relpath(path, data))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    network = trained_network.of_file(config)
    assert (network.class_names, network.image_shape) == (list(folders.CLASSES), (8, 8, 3))
    assert listed == [".", "train"]
    assert network.open_split("val").num_examples == 9
    assert sorted(listed) == [".", "train", "val", *(f"val/{name}" for name in folders.CLASSES)]


def test_fresh_weights_are_not_drawn(tmp_path):
    networks.save(tmp_path / "w.npz", create_model(digits(), 7), (8, 8, 1))
    config = digits(**{"model.pretrained": str(tmp_path / "w.npz")})
    with pytest.raises(ConfigError, match="has no weights for fc, and with fresh ones the network"):
        visualize_pretrained(config, Asked(split="test"), out=epath.Path(tmp_path / "a.png"))
    assert not (tmp_path / "a.png").exists()


def test_dataset_that_has_moved(tmp_path):
    imagenet.write(tmp_path / "new", imagenet.jpegs(2), "validation")
    changes = {"model.attention": "none", "optimizer.sparsity": 0.0}
    config = imagenet.config(tmp_path / "old", **changes)
    workdir = save(tmp_path / "run", config, num_classes=1000, shape=(16, 16, 3))
    with pytest.raises(ConfigError, match=r"no dataset .imagenet2012. in .*old"):
        visualize_run(workdir, Asked(split="validation"))
    visualize_run(workdir, Asked(split="validation"), data_dir=str(tmp_path / "new"))
    assert (workdir / "visualize.png").exists()


def test_last_and_best_checkpoint(saved):
    last, best = (trained_network.of_run(saved, which) for which in ("last", "best"))
    assert (last.step, best.step) == (2, 1)
    averaged = trained_network.of_run(saved, "best_ema")
    assert averaged.step == 2
    for actual, leaf in zip(
        *map(jax.tree.leaves, (averaged.variables, last.variables)), strict=True
    ):
        np.testing.assert_allclose(actual, leaf / 7, rtol=1e-6)
    assert last.image_shape == (8, 8, 1)
    assert last.variables.keys() == {"params", "batch_stats"}
    for a, b in zip(*map(jax.tree.leaves, (last.variables, best.variables)), strict=True):
        np.testing.assert_array_equal(a, 2 * b)


def test_damaged_checkpoint(run):
    (run / "checkpoints" / "2" / "state" / "_METADATA").write_text("{")
    with pytest.raises(RunError, match=r"the checkpoint of step 2 in \S+ cannot be read: "):
        trained_network.of_run(run, "last")


def test_float64_run(run):
    file = run / "config.json"
    file.write_text(file.read_text().replace('"dtype": "float32"', '"dtype": "float64"'))
    network = trained_network.of_run(run, "last")
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), network.variables)
    [image] = images_of("test", 1, digits().data, (8, 8, 1))
    view = predictions.viewer(dataclasses.replace(network, variables=wide), None)(image.pixels)
    assert view.heat.dtype == np.float32
    assert view.channel_gate is None


@pytest.mark.parametrize(
    ("files", "split", "expected"),
    [
        ([], None, "give --images or --split, one of the two"),
        (["a.png"], "test", "give --images or --split"),
        (["a.png"] * 101, None, "--images: 101 files; at most 100"),
        (["a.png", ""], None, "--images: got 'a.png,'; allowed: files, with commas between"),
    ],
)
def test_wrong_images_are_refused(files, split, expected):
    with pytest.raises(ConfigError, match=expected):
        Asked(files, split).check()


def test_a_number_of_files_is_refused():
    with pytest.raises(ConfigError, match="--count is of --split"):
        Asked(["a.png"], count=1).check()
    Asked(split="test", count=1).check()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"files": ["nowhere.png"]}, "--images: nowhere.png: No such file or directory."),
        (
            {"files": [__file__]},
            r"--images: .*py: no whole image of a known format in its \d+ bytes",
        ),
        ({"split": "tset"}, "^--split: digits has the splits train and test; got 'tset'"),
        (
            {"split": "test", "layer": "layer3_0"},
            "--layer: got 'layer3_0'; allowed: layer1_0/attention, layer2_0/attention.",
        ),
    ],
)
def test_wrong_options(saved, options, expected):
    with pytest.raises(ConfigError, match=expected):
        visualize_run(saved, Asked(**options))
    assert not (saved / "visualize.png").exists()


def test_layer_of_a_network_without_nam(tmp_path):
    workdir = save(tmp_path, digits(**{"model.attention": "se"}))
    with pytest.raises(ConfigError, match="--layer: got 'layer1_0'; allowed: none, se is no NAM"):
        visualize_run(workdir, Asked(split="test", layer="layer1_0"))


def test_no_run_and_no_checkpoint(tmp_path):
    workdir = epath.Path(tmp_path)
    with pytest.raises(ConfigError, match="there is no run"):
        visualize_run(workdir, Asked(split="test"))
    directory.claim(workdir, digits())
    for which in ("last", "best"):
        with pytest.raises(RunError, match=f"there is no {which} checkpoint in "):
            visualize_run(workdir, Asked(split="test"), which=which)
    (workdir / "checkpoints").rmdir()
    with pytest.raises(RunError, match="there is no last checkpoint in "):
        visualize_run(workdir, Asked(split="test"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--workdir=x", "--split=test", "--count=0"), "--count: got '0'"),
        (("--workdir=x", "--split=test", "--out=nowhere/a.png"), "--out: got 'nowhere/a.png'"),
        (
            ("--workdir=x", "--split=test", CONFIG),
            "--config: a run has a config of its own: name it by --workdir alone, or weights by",
        ),
        (("--workdir=x", "--split=test", CONFIG, WEIGHTS), "--workdir is of a run, and config.mod"),
        (("--which=best", "--split=test", CONFIG, WEIGHTS), "--which is of a run, and config.mod"),
        (("--data_dir=x", "--split=test", CONFIG, WEIGHTS), "--data_dir is of a run, and config."),
        (("--split=test", WEIGHTS), "with weights of a file give --config too"),
    ],
)
def test_wrong_command_lines_are_one_line(arguments, expected):
    result = commands.call("visualize", *arguments)
    assert (result.code, len(result.err.splitlines())) == (2, 1), result.err
    assert expected in result.err


def test_gallery_shows_the_heat_and_the_gates_less_one_half():
    rng = np.random.default_rng(0)
    views = [View(1, 0.75, rng.random((4, 4)), rng.random(6), rng.random((2, 3))) for _ in range(2)]
    images = [Image(f"test {n}", rng.integers(0, 255, (8, 8, 3)), n) for n in range(2)]
    draw, *_ = gallery.figure(images, views, "layer1_0", ["zero", "one"])
    drawn = Figure()
    draw(drawn)
    axes = np.reshape(drawn.axes[:15], (3, 5))
    for line, image, view in zip(axes, images, views, strict=False):
        text, pixels, heat, channels, places = line
        assert "predicted one (75.0 %)" in text.texts[0].get_text()
        np.testing.assert_array_equal(pixels.images[0].get_array(), image.pixels)
        np.testing.assert_array_equal(heat.images[1].get_array(), view.heat)
        steps = sum(patch.get_data().values for patch in channels.patches)
        np.testing.assert_allclose(steps, view.channel_gate - 0.5)
        np.testing.assert_allclose(places.images[0].get_array(), view.spatial_gate - 0.5)


def test_gallery_of_odd_views():
    pixels = np.zeros((5, 7, 3), np.uint8)
    image = Image("a name of a file that is longer than a line.png", pixels, label=1)
    same = np.full(3, 0.5, np.float32)
    view = View(0, 1.0, np.zeros((1, 1)), same, np.full((1, 1), 0.5))
    names = ["great white shark, white shark, man-eater", "$tench$"]
    drawn = png(*gallery.figure([image], [view], "layer1_0/attention", names))
    assert drawn.startswith(b"\x89PNG")
