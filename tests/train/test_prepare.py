"""train.prepare: what a check finds, and a smaller copy that is safe to interrupt."""

import json

import numpy as np
import pytest

from tests.helpers.image_datasets import imagenet, tfds_writer
from train.core.data.sources.records import Record, decode
from train.core.data.sources.registry import open_split
from train.core.data.sources.tfds import Tfds
from train.core.errors import ConfigError, RunError
from train.prepare import shrink
from train.prepare.check import check_dataset


def run_check(directory, **changes):
    data = imagenet.config(directory, **changes).data
    check_dataset(data, Tfds(data))


def test_check_of_a_sound_dataset(tmp_path, capsys):
    imagenet.write(tmp_path, imagenet.jpegs(150))
    imagenet.write(tmp_path, imagenet.jpegs(5), "validation")
    run_check(tmp_path)
    assert capsys.readouterr().out.splitlines() == [
        "train: 150 records, 0 bad; 150 labels from 0 to 149 of 1,000; height 20 to 56; "
        "width 24 to 80",
        "validation: 5 records, 0 bad; 5 labels from 0 to 4 of 1,000; height 20 to 56; "
        "width 24 to 80",
    ]


def test_check_names_what_cannot_be_used(tmp_path, capsys):
    files = imagenet.jpegs(70)
    files[3], files[66] = files[3][:-9], None
    imagenet.write(tmp_path, files)
    images = imagenet.pictures(3)
    tfds_writer.write(tmp_path, "imagenet2012", images, [0, 1000, -1], 1000, "validation")
    with pytest.raises(RunError, match="4 records of imagenet2012 cannot be used"):
        run_check(tmp_path)
    out = capsys.readouterr().out
    assert "bad record: train record 3 (n00000003_3.JPEG): no whole image" in out
    assert "bad record: train record 66: no image or no label" in out
    assert "bad record: validation record 1: label 1000 of 1000 classes" in out
    assert "validation: 3 records, 2 bad; 1 labels from 0 to 0 of 1,000; height" in out


def test_check_of_a_split_of_bad_records_alone(tmp_path, capsys):
    imagenet.write(tmp_path, [None] * 2)
    with pytest.raises(RunError, match="2 records"):
        run_check(tmp_path, **{"data.eval_split": "train"})
    assert "train: 2 records, 2 bad\n" in capsys.readouterr().out


@pytest.mark.parametrize("field", ["train_split", "eval_split"])
def test_check_of_an_unknown_split_names_its_field(tmp_path, field):
    for split in ("train", "validation"):
        imagenet.write(tmp_path, imagenet.jpegs(2), split)
    message = rf"^config\.data\.{field}: imagenet2012 has no split 'spam'; it has train, validation"
    with pytest.raises(ConfigError, match=message):
        run_check(tmp_path, **{f"data.{field}": "spam"})


def large_jpegs():
    generator = np.random.default_rng(0)
    noise = [generator.integers(0, 256, size, np.uint8) for size in ((8, 9, 3), (9, 8, 3))]
    large = [n.repeat(60, 0).repeat(60, 1) for n in noise]
    return [tfds_writer.encode(image, ".jpg") for image in large]


@pytest.fixture
def original(tmp_path):
    directory = tmp_path / "original"
    files = imagenet.jpegs(7) + large_jpegs() + [b"no image", None]
    imagenet.write(directory, files)
    imagenet.write(directory, imagenet.jpegs(4, seed=1), "validation", shards=1)
    return directory


def run_shrink(original, out):
    shrink.shrink(Tfds(imagenet.config(original).data), out, workers=2)


def all_records(directory, split):
    builder = Tfds(imagenet.config(directory).data).builder
    source = builder.as_data_source(split).data_source
    return [source[i] for i in range(len(source))]


def test_copy_has_the_same_records_and_smaller_images(original, tmp_path):
    run_shrink(original, tmp_path / "small")
    for split, count in (("train", 11), ("validation", 4)):
        old, new = (
            open_split(imagenet.config(directory).data, split)
            for directory in (original, tmp_path / "small")
        )
        assert old.num_examples == new.num_examples == count
        before, after = old.open_records(), new.open_records()
        for i in range(count - 2 if split == "train" else count):
            assert before[i][1:] == after[i][1:]
            assert len(after[i].encoded) <= len(before[i].encoded)
            shapes = [decode(records[i], 3).shape for records in (before, after)]
            scale = min(1, 400 / min(shapes[0][:2]))
            assert shapes[1][:2] == tuple(round(side * scale) for side in shapes[0][:2])
    # What cannot be shrunk keeps its place.
    for directory in (original, tmp_path / "small"):
        assert all_records(directory, "train")[9:] == all_records(original, "train")[9:]


def test_images_hardly_change():
    encoded = imagenet.jpegs(1)[0]
    before, after = (
        decode(Record(e, 0, ""), 3).astype(int)
        for e in (encoded, shrink.shrink_image(Record(encoded, 0, "")))
    )
    assert np.abs(before - after).mean() < 3


def test_interrupted_copy_is_no_dataset_and_goes_on(original, tmp_path, monkeypatch, capsys):
    run_shrink(original, tmp_path / "whole")
    shrink_image = shrink.shrink_image
    calls = []

    def interrupted(record):
        calls.append(record)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return shrink_image(record)

    out = tmp_path / "parts"
    with monkeypatch.context() as patch:
        patch.setattr(shrink, "shrink_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_shrink(original, out)
    with pytest.raises(ConfigError, match="no dataset"):
        open_split(imagenet.config(out).data, "train")
    finished = {path: path.stat().st_mtime_ns for path in out.rglob("*array_record-*-of-*3")}
    assert len(finished) == 1
    run_shrink(original, out)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    for split in ("train", "validation"):
        assert all_records(out, split) == all_records(tmp_path / "whole", split)
    assert not list(out.rglob("*.tmp"))
    run_shrink(original, out)
    assert "is there already" in capsys.readouterr().out


def test_copy_onto_itself_is_refused(original):
    with pytest.raises(ConfigError, match=r"^--out .* holds the dataset itself"):
        run_shrink(original, original)


def test_metadata_of_the_copy(original, tmp_path):
    run_shrink(original, tmp_path / "small")
    (directory,) = (tmp_path / "small").glob("imagenet2012/*")
    info = json.loads((directory / "dataset_info.json").read_text())
    assert [int(split["numBytes"]) > 0 for split in info["splits"]] == [True, True]
    assert info["splits"][0]["shardLengths"] == ["3", "4", "4"]
