"""Runs on folders of images: the same as on TFDS datasets, and refused where the folder changes."""

import json
import shutil

import pytest
from etils import epath

from tests.helpers import tiny
from tests.helpers.commands import call
from tests.helpers.damage import assert_says
from tests.helpers.image_datasets import folders, tfds_writer
from train.compare.runs import plan
from train.compare.train_all import train_all
from train.core.data.sources import folder
from train.core.devices import processes
from train.core.engine import loop, trained_network
from train.core.engine.evaluation import checkpoint_weights, evaluate_split
from train.core.engine.experiment import build_evaluation, build_experiment
from train.core.errors import ConfigError, PreemptedError, RunError

COUNTS = {"train": 6, "val": 3}
FIELDS = {
    **{"steps": 4, "checkpoint.every_steps": 2, "log_every_steps": 1, "optimizer.sparsity": 0.0},
    **{"data.loader": "streaming", "model.attention": "none"},
}


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    tiny.use(monkeypatch)


@pytest.fixture
def data(tmp_path):
    return folders.write_splits(tmp_path / "data", COUNTS.items())


def build(data, **changes):
    return build_experiment(folders.config(data, **FIELDS | changes))


def train(data, workdir, **changes):
    return loop.train(build(data, **changes), epath.Path(workdir))


@pytest.mark.slow
def test_a_folder_trains_to_the_bits_of_a_tfds_dataset(data, tmp_path):
    for split, count in COUNTS.items():
        images = [folders.image(seed) for seed in range(3 * count)]
        labels = [seed // count for seed in range(3 * count)]
        tfds_writer.write(tmp_path, "tiny", images, labels, 3, split)
    digests = {
        train(directory, tmp_path / f"{name} {loader}", **changes)["state_sha256"]
        for loader in ("resident", "streaming")
        for name, directory in (("folder", data), ("tiny", tmp_path))
        for changes in [{"data.name": name, "data.loader": loader}]
    }
    assert len(digests) == 1


def test_a_run_goes_on_with_the_same_files_and_classes_alone(data, tmp_path, monkeypatch, capsys):
    (data / "train/cat/notes.txt").touch()
    workdir = tmp_path / "run"
    monkeypatch.setattr(processes.Preemption, "reached", lambda self: True)
    with pytest.raises(PreemptedError):
        train(data, workdir)
    said = capsys.readouterr().out
    assert said.count(f"train: 18 images of cat, dog, owl in {data}; other files") == 1
    assert said.count(f"val: 9 images of cat, dog, owl in {data}\n") == 1
    assert json.loads((workdir / "dataset.json").read_text()) == {
        **{"num_classes": 3, "class_names": ["cat", "dog", "owl"], "image_shape": [8, 8, 3]},
        "num_images": {"train": 18, "val": 9},
    }

    def refuse(message, function, *arguments):
        with pytest.raises(ConfigError) as error:
            function(*arguments)
        assert_says(error.value, message)

    folders.write(data, ["train/cat/new.png"])
    refuse("began: 1 added (train/cat/new.png)", train, data, workdir)
    (data / "train/cat/new.png").unlink()
    for split in COUNTS:
        (data / split / "owl").rename(data / split / "bat")
    message = "class 0 is 'cat' there and 'bat' here, and 3 differ in all"
    refuse(message, train, data, workdir)
    refuse(message, checkpoint_weights, build(data), epath.Path(workdir), "last")


def test_evaluation_needs_the_split_to_evaluate_on_alone(tmp_path):
    data = folders.write_splits(tmp_path, [("val", 2)])
    evaluation = build_evaluation(folders.config(data, **FIELDS))
    assert (evaluation.eval_split.num_examples, evaluation.source.num_classes) == (6, 3)
    with pytest.raises(ConfigError, match=r"^config\.data\.train_split: .* has no folder 'train'"):
        build(data)


def test_a_run_is_evaluated_without_the_images_that_it_was_trained_on(data, tmp_path):
    summary = train(data, tmp_path / "run")
    (data / "train").rename(tmp_path / "train")
    # More than there are to train on.
    evaluation = build_evaluation(folders.config(data, **FIELDS | {"batch_size": 32}))
    step, weights = checkpoint_weights(evaluation, epath.Path(tmp_path / "run"), "last")
    assert step == FIELDS["steps"]
    assert evaluate_split(evaluation, weights)["top1_error"] == summary["top1_error"]


def test_where_the_images_of_a_run_lie_now_can_be_told(data, tmp_path):
    train(data, tmp_path / "run")
    data.rename(tmp_path / "elsewhere")
    network = trained_network.of_run(epath.Path(tmp_path / "run"), "last")
    with pytest.raises(
        ConfigError, match=r"there is no directory .*name the place by --data_dir\.$"
    ):
        network.open_split("val")
    network = trained_network.of_run(
        epath.Path(tmp_path / "run"), "last", str(tmp_path / "elsewhere")
    )
    assert network.open_split("val").num_examples == 3 * COUNTS["val"]


def test_a_run_of_another_number_of_classes_is_told_in_one_line(data, tmp_path):
    train(data, tmp_path / "run")
    (tmp_path / "run" / "dataset.json").unlink()
    other = folders.write_splits(tmp_path / "other", COUNTS.items())
    for split in COUNTS:
        shutil.copytree(other / split / "cat", other / split / "lynx")
    evaluation = build_evaluation(folders.config(other, **FIELDS))
    with pytest.raises(RunError, match=r"the checkpoint of step 4 .* there and .* here"):
        checkpoint_weights(evaluation, epath.Path(tmp_path / "run"), "last")


def test_a_comparison_lists_its_images_once(data, tmp_path, monkeypatch):
    listed = []
    below = folder.images_below

    def images_below(path):
        listed.append(path)
        return below(path)

    monkeypatch.setattr(folder, "images_below", images_below)
    config = folders.config(data, **FIELDS | {"steps": 1})
    train_all(plan(config, ["none", "half"], [0, 1]), epath.Path(tmp_path / "all"))
    assert len(listed) == len(set(listed)) == 2 * len(folders.CLASSES)


def test_processes_with_other_files_disagree(data):
    before = build(data).train_split.description
    (data / "train/cat/0.png").rename(data / "train/cat/other.png")
    now = build(data).train_split.description
    differing = {name for name, value in before.items() if value != now[name]}
    assert differing == {"the files of the split train"}


def test_commands_without_the_images(tmp_path):
    config = ("--config", "configs/folder_mobilenet_v2.py", f"--config.data.dir={tmp_path}/absent")
    result = call("summary", *config)
    assert (result.code, result.out) == (2, "")
    assert "config.data.dir: there is no directory" in result.err
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(folders.CLASSES))
    assert call("summary", *config, f"--config.data.classes={classes}").code == 0
