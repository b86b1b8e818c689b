"""train.prepare: what a check finds, and a smaller copy that is safe to interrupt."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.commands import call
from tests.helpers.image_datasets import folders, imagenet, tfds_writer
from train.core.data.sources import registry
from train.core.data.sources.folder import Folder
from train.core.data.sources.records import Record, decode
from train.core.data.sources.registry import source_of
from train.core.data.sources.tfds import Tfds
from train.core.errors import ConfigError, RunError
from train.prepare import shrink_tfds
from train.prepare.check import check_dataset
from train.prepare.shrink_folder import _shrunk, shrink_folder
from train.prepare.shrink_image import shrink_image


def run_check(directory, **changes):
    check_dataset(imagenet.config(directory, **changes).data)


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


def test_check_of_a_source_of_somebody_elses(tmp_path, monkeypatch, capsys):
    class Mine(Folder):
        """What somebody adds with a file and a line."""

    monkeypatch.setitem(registry.SOURCES, "mine", Mine)
    images = folders.write_splits(tmp_path)
    config = folders.config(images, **{"data.name": "mine"})
    check_dataset(config.data)
    assert "train: 18 records, 0 bad" in capsys.readouterr().out
    arguments = ("--config=configs/folder_mobilenet_v2.py", f"--config.data.dir={images}")
    result = call("prepare", "shrink", *arguments, "--config.data.name=mine", "--out=new")
    assert result.code == 2
    assert "mine cannot be shrunk" in result.err


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
    shrink_tfds.shrink_tfds(imagenet.config(original).data, out)


def all_records(directory, split):
    builder = Tfds(imagenet.config(directory).data).builder
    source = builder.as_data_source(split).data_source
    return [source[i] for i in range(len(source))]


def test_copy_has_the_same_records_and_smaller_images(original, tmp_path):
    run_shrink(original, tmp_path / "small")
    for split, count in (("train", 11), ("validation", 4)):
        old, new = (
            source_of(imagenet.config(directory).data).open_split(split)
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
        for e in (encoded, shrink_image(Record(encoded, 0, "")))
    )
    assert np.abs(before - after).mean() < 3


def test_interrupted_copy_is_no_dataset_and_goes_on(original, tmp_path, monkeypatch, capsys):
    run_shrink(original, tmp_path / "whole")
    calls = []

    def interrupted(record):
        calls.append(record)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return shrink_image(record)

    out = tmp_path / "parts"
    with monkeypatch.context() as patch:
        patch.setattr(shrink_tfds, "shrink_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_shrink(original, out)
    with pytest.raises(ConfigError, match="no dataset"):
        source_of(imagenet.config(out).data).open_split("train")
    finished = {path: path.stat().st_mtime_ns for path in out.rglob("*array_record-*-of-*3")}
    assert len(finished) == 1
    run_shrink(original, out)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    for split in ("train", "validation"):
        assert all_records(out, split) == all_records(tmp_path / "whole", split)
    assert not list(out.rglob("*.tmp"))
    run_shrink(original, out)
    assert "is there already" in capsys.readouterr().out


def test_copy_has_the_empty_shards_of_the_dataset(tmp_path):
    for split, number in (("train", 1), ("validation", 2)):
        imagenet.write(tmp_path / "original", imagenet.jpegs(number), split, shards=3)
    run_shrink(tmp_path / "original", tmp_path / "small")
    for split, number in (("train", 1), ("validation", 2)):
        assert len(list((tmp_path / "small").rglob(f"*-{split}.array_record-*"))) == 3
        assert len(all_records(tmp_path / "small", split)) == number
        assert source_of(imagenet.config(tmp_path / "small").data).open_split(split).open_records()


def test_a_full_disk_is_one_line(original, tmp_path, monkeypatch):
    class Full(shrink_tfds.ArrayRecordWriter):
        def close(self):
            super().close()
            raise RuntimeError("No space left on device\nwhile closing")

    monkeypatch.setattr(shrink_tfds, "ArrayRecordWriter", Full)
    with pytest.raises(
        RunError, match=r"-00000-of-\S+ cannot be written: No space left on device\.$"
    ):
        run_shrink(original, tmp_path / "small")
    assert not [path for path in (tmp_path / "small").rglob("*") if path.is_file()]


def test_copy_onto_itself_is_refused(original):
    with pytest.raises(ConfigError, match=r"^--out .* holds the dataset itself"):
        run_shrink(original, original)


def test_metadata_of_the_copy(original, tmp_path):
    run_shrink(original, tmp_path / "small")
    (directory,) = (tmp_path / "small").glob("imagenet2012/*")
    info = json.loads((directory / "dataset_info.json").read_text())
    assert [int(split["numBytes"]) > 0 for split in info["splits"]] == [True, True]
    assert info["splits"][0]["shardLengths"] == ["3", "4", "4"]


# As `prepare` takes it, without a directory.
FOLDER = ("--config", "configs/folder_mobilenet_v2.py")


def test_check_of_a_folder(tmp_path):
    folders.write_splits(tmp_path)
    arguments = ("check", *FOLDER, f"--config.data.dir={tmp_path}")
    result = call("prepare", *arguments)
    assert (result.code, result.out.splitlines()) == (
        0,
        [
            f"train: 18 images of cat, dog, owl in {tmp_path}",
            "train: 18 records, 0 bad; 3 labels from 0 to 2 of 3; height 12 to 12; width 16 to 16",
            f"val: 9 images of cat, dog, owl in {tmp_path}",
            "val: 9 records, 0 bad; 3 labels from 0 to 2 of 3; height 12 to 12; width 16 to 16",
        ],
    )
    (tmp_path / "val/dog/1.png").write_bytes(b"")
    result = call("prepare", *arguments)
    assert result.code == 1
    assert "bad record: val record 4 (val/dog/1.png): no whole image" in result.out


@pytest.fixture
def photographs(tmp_path):
    """A folder with large, small, turned, damaged and missing files, in letters of any script."""
    directory = folders.write_splits(tmp_path / "photographs", (("train", 2), ("val", 1)))
    large, turned = large_jpegs()
    folders.write(directory, ["train/cat/größe.JPG"], large)
    folders.write(
        directory, ["train/dog/日本/turned.jpg"], folders.with_exif(turned, folders.exif(6))
    )
    folders.write(directory, ["train/dog/text.png", "val/owl/empty.png"], b"")
    folders.write(directory, ["train/dog/text.png"], b"text")
    folders.write(directory, ["val/owl/notes.txt", "test/cat/1.png"])
    (directory / "val/owl/gone.jpg").symlink_to("nowhere")
    return directory


def run_shrink_folder(directory, out, **changes):
    shrink_folder(folders.config(directory, **changes).data, out)


def test_copy_of_a_folder_has_the_same_paths_and_smaller_images(photographs, tmp_path):
    run_shrink_folder(photographs, tmp_path / "small")
    for split, count in (("train", 9), ("val", 5)):
        old, new = (
            source_of(folders.config(directory).data).open_split(split).files
            for directory in (photographs, tmp_path / "small")
        )
        assert list(old.paths()) == list(new.paths())
        assert len(new) == count
        for index, path in enumerate(old.paths()):
            if path == "val/owl/gone.jpg":
                assert new[index].encoded == b""
            elif path.endswith(("text.png", "empty.png")):
                assert new[index].encoded == old[index].encoded
            else:
                before, after = (decode(records[index], 3) for records in (old, new))
                scale = min(1, 400 / min(before.shape[:2]))
                assert after.shape[:2] == tuple(round(side * scale) for side in before.shape[:2])
                assert len(new[index].encoded) <= len(old[index].encoded)
    assert not (tmp_path / "small/test").exists()


def test_classes_without_splits_are_divided_alike_in_the_copy(tmp_path):
    folders.write(tmp_path / "whole", [f"{name}/{i}.png" for name in "ab" for i in range(20)])
    run_shrink_folder(tmp_path / "whole", tmp_path / "small")
    for split in ("train", "val"):
        old, new = (
            source_of(folders.config(tmp_path / directory).data).open_split(split).description
            for directory in ("whole", "small")
        )
        assert old == new


def test_interrupted_copy_of_a_folder_is_not_there_and_goes_on(
    photographs, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "small"

    def interrupted(files, index):
        if index == 4:
            raise KeyboardInterrupt
        return _shrunk(files, index)

    with monkeypatch.context() as patch:
        patch.setattr("train.prepare.shrink_folder._shrunk", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_shrink_folder(photographs, out)
    with pytest.raises(ConfigError, match="is a copy that is not whole"):
        source_of(folders.config(out).data).open_split("train")
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*/**/*") if path.is_file()}
    assert len(finished) == 4
    # What a kill leaves, and what is somebody's own.
    (out / "train/cat/2.png.0123abcd.tmp").touch()
    folders.write(out, ["mine.txt", "train/cat/mine.tmp"], b"mine")
    # Of other files it is no part.
    folders.write(photographs, ["val/owl/new.png"])
    with pytest.raises(ConfigError, match=r"^--out .*small holds part of a copy of other images"):
        run_shrink_folder(photographs, out)
    (photographs / "val/owl/new.png").unlink()
    run_shrink_folder(photographs, out)
    now = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    for path, time in finished.items():
        assert now.pop(path) == time
    assert len(now) == 14 - 4 + 2
    assert {path.name for path in now if path.suffix != ".png"} >= {"mine.txt", "mine.tmp"}
    run_shrink_folder(photographs, out)
    assert "is there already" in capsys.readouterr().out


def test_places_that_are_refused_for_a_copy_of_a_folder(photographs, tmp_path):
    for place in (photographs, photographs / "train/small", tmp_path):
        with pytest.raises(ConfigError, match=r"^--out .* the folder itself lie in each other"):
            run_shrink_folder(photographs, place)
    folders.write(tmp_path / "other", ["train/a/1.png", "train/b/1.png"])
    folders.write(tmp_path, ["file", "notes/mine.txt"], b"mine")
    for place in ("other", "file", "notes"):
        with pytest.raises(ConfigError, match=r"^--out .* holds something else"):
            run_shrink_folder(photographs, tmp_path / place)
    assert (tmp_path / "notes/mine.txt").read_bytes() == b"mine"
    arguments = ("shrink", *FOLDER, f"--config.data.dir={photographs}", "--out=gs://bucket/small")
    result = call("prepare", *arguments)
    assert (result.code, result.out) == (2, "")
    assert "--out: got 'gs://bucket/small'" in result.err


def test_places_and_names_that_a_copy_of_a_folder_may_have(tmp_path, monkeypatch):
    # As long as a file system takes them.
    names = ["x" * 251, "日" * 83 + "xx"]
    paths = [
        f"{split}/{c}/{name}.png" for split in ("train", "val") for c in "ab" for name in names
    ]
    source = folders.write(tmp_path / "small.tmp", paths)
    folders.write(source, ["labels.csv"], b"mine")
    for name in ("here", "real"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "to nowhere").symlink_to("new")
    monkeypatch.chdir(tmp_path / "here")
    for out in (".", "../link", "../to nowhere", "../small", f"../{names[0]}wxyz"):
        run_shrink_folder(source, Path(out))
    for out in ("here", "real", "new", "small", f"{names[0]}wxyz"):
        found = source_of(folders.config(tmp_path / out).data).open_split("train").files
        assert list(found.paths()) == sorted(paths[:4])
        assert sorted(path.name for path in (tmp_path / out).iterdir()) == ["train", "val"]
    assert (source / "labels.csv").read_bytes() == b"mine"
