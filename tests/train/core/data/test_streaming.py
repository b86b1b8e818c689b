"""The streaming loader: which record goes where, every image once, and the same for all hosts."""

import contextlib
import itertools
import json
from typing import get_args

import jax
import numpy as np
import pytest

from nam_jax import models
from nam_jax.models.resnet import BasicBlock, ResNet
from tests.helpers import tiny
from tests.helpers.image_datasets import imagenet, tfds_writer
from tests.helpers.values import with_slow
from train.core.config.data_fields import Augmentation
from train.core.config.fields import replaced
from train.core.data import crop
from train.core.data.feed import epoch_orders
from train.core.data.on_host import batches, rand_augment
from train.core.data.on_host.batches import BatchMaker
from train.core.data.sources.records import BadRecord, BadRecords, Record, decode
from train.core.data.sources.registry import source_of
from train.core.data.sources.tf_examples import TfExamples
from train.core.data.streaming import Streaming
from train.core.devices.mesh import create
from train.core.engine import loop
from train.core.engine.compiled_steps import build_eval_step
from train.core.engine.evaluation import evaluate
from train.core.engine.experiment import build_experiment, streams
from train.core.engine.feeds import eval_feed
from train.core.engine.state import initial_state
from train.core.errors import ConfigError, RunError

COUNT = 42


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("datasets")
    imagenet.write(directory, imagenet.jpegs(COUNT))
    imagenet.write(directory, imagenet.jpegs(21, seed=1), "validation")
    return directory


def open_maker(config, rows=None, split="train"):
    rows = np.arange(config.batch_size) if rows is None else rows
    return BatchMaker(source_of(config.data).open_split(split), config, rows)


def order_of(config):
    key = streams(config.seed)["order"]
    return epoch_orders(key, COUNT, config)


def train_batches(config, steps, rows=None):
    """What a host makes of some steps: images and labels."""
    steps_per_epoch, order = COUNT // config.batch_size, order_of(config)
    with open_maker(config, rows) as maker:
        made = [maker.train_batch(step, order(step // steps_per_epoch)) for step in steps]
    assert all(batch.mask.all() and not batch.bad for batch in made)
    return made


def hosts(batch_size, count):
    return np.split(np.arange(batch_size), count)


MODERN = {"data.augmentation": "randaugment"}
INCREASING = {
    **{"data.augmentation": "randaugment_increasing", "data.randaugment_std": 1.5},
    "data.augment_repeats": 3,
}


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "changes", [{}, MODERN, INCREASING], ids=["crops", "crops and operations", "repeats"]
)
def test_all_hosts_together_make_the_batch_of_one(directory, count, changes):
    config = imagenet.config(directory, **changes)
    steps = range(12)  # more than two epochs
    whole = train_batches(config, steps)
    parts = [train_batches(config, steps, rows) for rows in hosts(config.batch_size, count)]
    for step, batch in enumerate(whole):
        for name in ("images", "labels"):
            joined = np.concatenate([getattr(part[step], name) for part in parts])
            np.testing.assert_array_equal(joined, getattr(batch, name))


def test_threads_change_nothing(directory):
    one, many = (
        train_batches(imagenet.config(directory, **{"data.workers": workers}), range(3))
        for workers in (1, 8)
    )
    for a, b in zip(one, many, strict=True):
        np.testing.assert_array_equal(a.images, b.images)


def test_a_step_does_not_need_those_before_it(directory):
    config = imagenet.config(directory)
    walked = train_batches(config, range(12))
    for step in (11, 4, 7):
        (alone,) = train_batches(config, [step])
        np.testing.assert_array_equal(alone.images, walked[step].images)
        np.testing.assert_array_equal(alone.labels, walked[step].labels)


def test_rows_of_the_same_image_are_other_crops(directory):
    config = imagenet.config(directory, **{"data.augment_repeats": 4})
    (batch,) = train_batches(config, [0])
    labels, counts = np.unique(batch.labels, return_counts=True)
    np.testing.assert_array_equal(counts, [4, 4])
    for label in labels:
        images = batch.images[batch.labels == label]
        assert len({image.tobytes() for image in images}) == 4


def test_crops_differ_from_step_to_step_row_to_row_and_seed_to_seed(directory):
    config = imagenet.config(directory)
    order = np.zeros(COUNT, np.int64)  # the same record everywhere
    with open_maker(config) as maker:
        images = [image for step in (0, 1) for image in maker.train_batch(step, order).images]
    config.seed = 1
    with open_maker(config) as maker:
        images += list(maker.train_batch(0, order).images)
    assert len({image.tobytes() for image in images}) == 24


def test_each_epoch_reads_each_record_at_most_once_in_the_resident_order(directory):
    config = imagenet.config(directory)
    labels = np.concatenate([batch.labels for batch in train_batches(config, range(10))])
    order = order_of(config)
    np.testing.assert_array_equal(labels, np.concatenate([order(0)[:40], order(1)[:40]]))
    assert order(0).dtype == np.int32
    np.testing.assert_array_equal(np.sort(order(0)), np.arange(COUNT))
    assert not np.array_equal(order(0), order(1))


def crops_by_definition(labels, draws, interpolation):
    """The crop of each row, cut from the whole image."""
    files = imagenet.jpegs(COUNT)
    for row, label in enumerate(labels):
        image = decode(Record(files[label], 0, ""), 3)
        box = crop.random_box(*image.shape[:2], draws, row)
        yield crop.resize(crop.take(image, box), (16, 16), interpolation)


@pytest.mark.parametrize("interpolation", crop.INTERPOLATIONS)
def test_crops_are_those_of_the_definition(directory, interpolation):
    config = imagenet.config(directory, **{"data.interpolation": interpolation})
    (batch,) = train_batches(config, [5])
    draws = crop.draw(np.random.Generator(np.random.Philox(key=[config.seed, 5])), 8)
    expected = list(crops_by_definition(batch.labels, draws, interpolation))
    np.testing.assert_array_equal(batch.images, expected)


@pytest.mark.parametrize(
    "augmentation", [name for name in get_args(Augmentation) if name != "none"]
)
def test_operations_follow_the_crop(directory, augmentation):
    config = imagenet.config(directory, **{"data.augmentation": augmentation})
    (batch,) = train_batches(config, [5])
    generator = np.random.Generator(np.random.Philox(key=[config.seed, 5]))
    crops = list(
        crops_by_definition(batch.labels, crop.draw(generator, 8), config.data.interpolation)
    )
    draws = rand_augment.draw(generator, 8, config.data)
    ranges = rand_augment.ranges(augmentation, 16)
    operations = rand_augment.operations_of(augmentation)
    expected = [
        rand_augment.apply(image, draws, row, ranges, operations) for row, image in enumerate(crops)
    ]
    np.testing.assert_array_equal(batch.images, expected)
    assert not np.array_equal(expected, crops)


@pytest.mark.parametrize("batch_size", [1, 8, 21, 64])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_evaluation_reads_every_image_once_over_all_hosts(directory, batch_size, count):
    batch_size *= count
    config = imagenet.config(directory, batch_size=batch_size)
    labels = []
    for index, rows in itertools.product(range(-(-21 // batch_size)), hosts(batch_size, count)):
        with open_maker(config, rows, "validation") as maker:
            batch = maker.eval_batch(index)
        assert len(batch.images) == batch_size // count
        assert not batch.images[~batch.mask].any()
        labels.extend(batch.labels[batch.mask])
    assert sorted(labels) == list(range(21))


def test_evaluation_scales_the_short_side_and_cuts_the_centre(directory):
    config = imagenet.config(directory, **{"data.eval_crop_ratio": 0.5})
    with open_maker(config, split="validation") as maker:
        batch = maker.eval_batch(0)
    for image, file in zip(batch.images, imagenet.jpegs(21, seed=1)[:8], strict=True):
        whole = decode(Record(file, 0, ""), 3)
        scale = 32 / min(whole.shape[:2])
        rows, columns = (round(side * scale) for side in whole.shape[:2])
        scaled = crop.resize(whole, (rows, columns), "bilinear")
        top, left = (rows - 16) // 2, (columns - 16) // 2
        np.testing.assert_array_equal(image, scaled[top : top + 16, left : left + 16])


def feed_batches(feed, start):
    with contextlib.closing(feed.batches(start)) as fed:
        return [batch for (batch,) in fed]


def one_by_one(start):
    return (range(step, step + 1) for step in itertools.count(start + 1))


@with_slow("num_devices", [1, 2, 4], (1, 2))
def test_feed_lays_the_rows_on_the_devices_and_starts_anywhere(directory, num_devices):
    config = imagenet.config(directory)
    loader = Streaming(config, create(8, devices=jax.devices()[:num_devices]))
    split = source_of(config.data).open_split("train")
    feed = loader.train_feed(split, streams(config.seed)["order"], 7, dispatches=one_by_one)
    fed, resumed = feed_batches(feed, 0), feed_batches(feed, 5)
    assert (len(fed), len(resumed)) == (7, 2)
    for batch, expected in zip(fed, train_batches(config, range(7)), strict=True):
        for array, numbers, like in zip(batch, expected[:4], feed.example[0], strict=True):
            np.testing.assert_array_equal(array, numbers)
            assert (array.shape, array.dtype, array.sharding) == (
                like.shape,
                like.dtype,
                like.sharding,
            )
            assert {shard.data.shape[0] for shard in array.addressable_shards} == {8 // num_devices}
    for batch, again in zip(fed[5:], resumed, strict=True):
        np.testing.assert_array_equal(batch.images, again.images)


def test_error_in_a_thread_ends_the_feed(directory, monkeypatch):
    def fail(self, index):
        raise MemoryError("no memory left")

    monkeypatch.setattr(TfExamples, "__getitem__", fail)
    config = imagenet.config(directory)
    feed = Streaming(config, create(8)).eval_feed(source_of(config.data).open_split("validation"))
    with pytest.raises(MemoryError, match="no memory left"):
        feed_batches(feed, 0)


def test_digits_are_not_streamed(directory):
    config = imagenet.config(directory, **{"data.name": "digits"})
    with pytest.raises(ConfigError, match=r"^config\.data\.loader: .*loader=resident"):
        build_experiment(config)


def run(config, workdir):
    summary = loop.train(build_experiment(config), workdir)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return summary, [json.loads(line) for line in lines]


@pytest.mark.slow
def test_imagenet_run_trains_and_evaluates(directory, tmp_path, monkeypatch):
    def create(name, *, num_classes, attention, stem, dtype, axis_name, **_):
        fields = {"attention": attention, "stem": stem, "dtype": dtype, "axis_name": axis_name}
        return ResNet(BasicBlock, (1,), num_classes=num_classes, width=4, **fields)

    monkeypatch.setattr(models, "create", create)
    changes = {"data.augmentation": "trivialaugment", "data.random_erasing": 0.5}
    config = imagenet.config(directory, epochs=2, log_every_steps=1, **changes)
    summary, rows = run(config, tmp_path)
    assert (summary["steps"], summary["num_eval_images"]) == (10, 21)
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert [row["bad_records"] for row in rows] == [0] * 12
    assert {row["step"] for row in rows if row["split"] == "eval"} == {5, 10}


class StopHereError(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, INCREASING], ids=["crops", "repeats"])
def test_interrupted_run_goes_on_with_the_same_bits(directory, tmp_path, monkeypatch, changes):
    tiny.use(monkeypatch)
    config = imagenet.config(directory, steps=8, log_every_steps=1, **changes)
    config.checkpoint.every_steps = 3
    whole, whole_rows = run(config, tmp_path / "whole")
    save = loop.Checkpoints.save

    def stop_after_saving(self, step, *arguments):
        save(self, step, *arguments)
        raise StopHereError

    with monkeypatch.context() as patch:
        patch.setattr(loop.Checkpoints, "save", stop_after_saving)
        with pytest.raises(StopHereError):
            run(config, tmp_path / "parts")
    parts, part_rows = run(config, tmp_path / "parts")
    assert parts["state_sha256"] == whole["state_sha256"]
    assert [row["loss"] for row in part_rows] == [row["loss"] for row in whole_rows]


@pytest.mark.slow
@pytest.mark.parametrize("size", [pytest.param(8, marks=pytest.mark.slow), 6])
def test_resident_and_streaming_train_to_the_same_bits(tmp_path, monkeypatch, size):
    """Images of one size, as those of CIFAR-100, at their own size and scaled."""
    tiny.use(monkeypatch)
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    for split in ("train", "validation"):
        tfds_writer.write(tmp_path, "tiny", images, np.arange(40) % 7, 7, split)
    changes = {"data.name": "tiny", "data.crop": "pad", "data.crop_padding": 1, "steps": 7}
    config = imagenet.config(tmp_path, **changes, **{"data.image_size": size})
    results = {}
    for loader in ("resident", "streaming"):
        summary, rows = run(replaced(config, {"data.loader": loader}), tmp_path / loader)
        results[loader] = summary["state_sha256"], [row["loss"] for row in rows]
    assert results["resident"] == results["streaming"]


def damaged(files, places):
    """Cuts the end off some files."""
    return [file[:-20] if i in places else file for i, file in enumerate(files)]


def test_bad_records_are_replaced_in_training(tmp_path, capfd):
    files = damaged(imagenet.jpegs(COUNT), {3, 4})
    files[10], files[COUNT - 1] = None, b""
    imagenet.write(tmp_path, files)
    config = imagenet.config(tmp_path, batch_size=COUNT)
    with open_maker(config) as maker:
        batch = maker.train_batch(0, np.arange(COUNT))
    expected = np.arange(COUNT)
    expected[[3, 4, 10, COUNT - 1]] = 5, 5, 11, 0
    np.testing.assert_array_equal(batch.labels, expected)
    assert batch.mask.all()
    (places,) = batch.bad_records.nonzero()
    assert dict(zip(places, batch.bad_records[places], strict=True)) == {3: 2, 4: 1, 10: 1, 41: 1}
    assert sorted(bad.index for bad in batch.bad) == [3, 4, 4, 10, COUNT - 1]
    assert batch.seen == COUNT + 5


def test_bad_records_are_masked_out_of_an_evaluation(tmp_path, monkeypatch, capsys):
    tiny.use(monkeypatch)
    imagenet.write(tmp_path, imagenet.jpegs(COUNT))
    imagenet.write(tmp_path, damaged(imagenet.jpegs(21), {2, 20}), "validation")
    config = imagenet.config(tmp_path, steps=2)
    summary, rows = run(config, tmp_path / "run")
    assert summary["num_eval_images"] == 19
    assert rows[-1]["bad_records"] == 2
    printed = capsys.readouterr().err
    assert "validation record 2 (n00000002_2.JPEG): no whole image" in printed
    assert "validation record 20 (n00000020_20.JPEG)" in printed


def test_run_stops_at_too_many_bad_records(tmp_path, monkeypatch):
    tiny.use(monkeypatch)
    imagenet.write(tmp_path, damaged(imagenet.jpegs(COUNT), set(range(0, COUNT, 2))))
    imagenet.write(tmp_path, imagenet.jpegs(8), "validation")
    with pytest.raises(RunError, match=r"1\d of the \d+ records .*max_bad_fraction = 0\.001") as e:
        run(imagenet.config(tmp_path), tmp_path / "run")
    assert "\n" not in str(e.value)
    patient = imagenet.config(tmp_path, steps=2, **{"data.max_bad_fraction": 0.9})
    assert run(patient, tmp_path / "patient")[0]["steps"] == 2


def test_fewer_than_ten_bad_records_never_stop_a_run():
    bad = [BadRecord("train", index, "", "empty") for index in range(10)]
    counted = BadRecords(0.001)
    counted.add(9, bad[:9])
    with pytest.raises(RunError, match=r"10 of the 10 records .* train record 9: empty"):
        counted.add(1, bad[9:])
    patient = BadRecords(0.001)
    patient.add(10_000, bad)
    with pytest.raises(RunError):
        patient.add(1, bad[:1])
    # The same one in every epoch is one.
    again = BadRecords(0.001)
    for _ in range(20):
        again.add(900, bad[:1])


def test_bad_record_is_named_once(capsys):
    counted = BadRecords(0.5)
    for _ in range(2):
        counted.add(4, [BadRecord("train", 7, "a.JPEG", "empty")])
    assert capsys.readouterr().err == "bad record: train record 7 (a.JPEG): empty\n"


@pytest.mark.slow
def test_split_of_bad_records_alone_is_an_error_and_no_endless_search(tmp_path, monkeypatch):
    tiny.use(monkeypatch)
    monkeypatch.setattr(batches, "LONGEST_SEARCH", 5)
    imagenet.write(tmp_path, [None] * 8)
    imagenet.write(tmp_path, [None] * 8, "validation")
    config = imagenet.config(tmp_path, steps=1)
    with pytest.raises(RunError, match="5 records in a row are bad; the last: train record"):
        run(config, tmp_path / "train")
    config.data.train_split = "validation"
    experiment = build_experiment(config)
    eval_step = build_eval_step(experiment)
    state, feed = initial_state(experiment), eval_feed(experiment)
    with pytest.raises(RunError, match="no image of the split validation can be read"):
        evaluate(experiment, eval_step, state.evaluated, feed)
