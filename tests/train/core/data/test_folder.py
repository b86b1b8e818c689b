"""Folders of image files: which files are images of which split and class, and in what order."""

import hashlib
import os
import sys
import tracemalloc
import unicodedata

import numpy as np
import pytest

from tests.helpers.damage import assert_says
from tests.helpers.image_datasets import folders, tfds_writer
from train.core.data.sources import image_files
from train.core.data.sources.folder import UNFINISHED
from train.core.data.sources.image_files import ImageFiles
from train.core.data.sources.records import BadRecordError, decode
from train.core.data.sources.registry import source_of
from train.core.errors import ConfigError, RunError, UnknownSplitError

EACH = [f"{name}/{i}.png" for name in folders.CLASSES for i in range(40)]


def open_split(directory, name="train", **changes):
    config = folders.config(directory, **{f"data.{k}": v for k, v in changes.items()})
    return source_of(config.data).open_split(name)


def paths(directory, name="train", **changes):
    return list(open_split(directory, name, **changes).files.paths())


def refuse(directory, message, name="train", **changes):
    with pytest.raises(ConfigError) as error:
        open_split(directory, name, **changes)
    assert_says(error.value, message)


def test_splits_classes_and_images_of_a_folder(tmp_path):
    folders.write_splits(tmp_path)
    source = source_of(folders.config(tmp_path).data)
    assert (source.num_classes, source.image_shape) == (3, (8, 8, 3))
    assert source.class_names == list(folders.CLASSES)
    for name, count in (("train", 6), ("val", 3)):
        split = source.open_split(name)
        assert (split.num_examples, split.num_classes) == (3 * count, 3)
        records = split.open_records()
        assert len(records) == 3 * count
        assert [records[i].label for i in range(3 * count)] == [0] * count + [1] * count + [
            2
        ] * count
        assert records[count].file_name == f"{name}/dog/0.png"
        np.testing.assert_array_equal(decode(records[count], 3), folders.image(count))
    assert "tensorflow" not in sys.modules


def test_all_images_are_loaded_for_the_devices(tmp_path):
    folders.write_splits(tmp_path)
    images, labels = open_split(tmp_path, image_size=12).load()
    assert (images.shape, images.dtype) == ((18, 12, 12, 3), np.uint8)
    np.testing.assert_array_equal(images[4], folders.image(4)[:, 2:14])
    np.testing.assert_array_equal(labels, np.arange(18) // 6)


def test_a_split_that_is_none_of_the_configured(tmp_path):
    folders.write_splits(tmp_path, (("train", 2), ("val", 1), ("test", 3)))
    assert open_split(tmp_path, "test").num_examples == 9


@pytest.mark.parametrize("fraction", [0.2, 0.7])
def test_a_folder_without_splits_is_split_by_digests_of_paths(tmp_path, fraction):
    folders.write(tmp_path, EACH, b"")
    limit = fraction * 2**64

    def is_held_out(path):
        return int(hashlib.sha256(path.encode()).hexdigest()[:16], 16) < limit

    held_out = paths(tmp_path, "val", eval_fraction=fraction)
    assert held_out == [path for path in sorted(EACH) if is_held_out(path)]
    assert sorted(paths(tmp_path, eval_fraction=fraction) + held_out) == sorted(EACH)
    assert abs(len(held_out) / len(EACH) - fraction) < 0.1


def test_which_files_are_held_out_for_ever(tmp_path):
    folders.write(tmp_path, [f"{name}/{i}.jpg" for name in "ab" for i in range(10)], b"")
    # Those of which `printf a/0.jpg | sha256sum` begins with less than 3333.
    assert paths(tmp_path, "val") == ["a/6.jpg", "b/0.jpg", "b/2.jpg", "b/9.jpg"]


def test_new_files_move_no_other_to_another_split(tmp_path):
    folders.write(tmp_path, EACH, b"")
    before = {name: set(paths(tmp_path, name)) for name in ("train", "val")}
    folders.write(tmp_path, [f"dog/new {i}.png" for i in range(9)], b"")
    for name, files in before.items():
        assert files <= set(paths(tmp_path, name))


def test_a_split_of_the_classes_under_any_name_of_the_config_alone(tmp_path):
    folders.write(tmp_path, EACH, b"")
    assert paths(tmp_path, "held", eval_split="held") == paths(tmp_path, "val")
    refuse(tmp_path, "is split into train and val; got 'test'", "test")
    # Evaluated on what it is trained on.
    assert paths(tmp_path, eval_split="train") == paths(tmp_path)


def test_composed_and_decomposed_letters_are_the_same_names(tmp_path):
    names = [f"{name}/é{i}ö.png" for name in ("été", "øst", "日本") for i in range(30)]
    for form in ("NFC", "NFD"):
        folders.write(tmp_path / form, [unicodedata.normalize(form, name) for name in names], b"")
    for name in ("train", "val"):
        composed, decomposed = (open_split(tmp_path / form, name) for form in ("NFC", "NFD"))
        assert composed.files.digest == decomposed.files.digest
        as_found = list(decomposed.files.paths())
        assert list(composed.files.paths()) == [unicodedata.normalize("NFC", n) for n in as_found]
    assert source_of(folders.config(tmp_path / "NFD").data).class_names == ["été", "øst", "日本"]


def test_files_whose_names_differ_in_form_alone_are_both_there_in_one_order(tmp_path):
    names = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    folders.write(tmp_path, [f"train/{c}/{name}.png" for c in "ab" for name in names], b"")
    assert paths(tmp_path) == [f"train/{c}/{name}.png" for c in "ab" for name in reversed(names)]


def test_order_is_that_of_the_names(tmp_path, monkeypatch):
    expected = ["train/B/1.png", "train/b/10.png", "train/b/2.png", "train/b-/1.png"]
    expected.append("train/é/1.png")
    folders.write(tmp_path, reversed(expected))
    assert paths(tmp_path) == expected
    scandir = os.scandir

    class Reversed(list):
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(os, "scandir", lambda path: Reversed(reversed(list(scandir(path)))))
    assert paths(tmp_path) == expected


def test_suffixes_and_what_is_ignored(tmp_path):
    images = ["1.jpg", "2.JPEG", "3.Png", "4.webp", "5.BMP", "6.tif", "7.TIFF", "8.JPG"]
    strays = [".hidden.jpg", ".DS_Store", "Thumbs.db", "notes.txt", "9.gif", "jpg", "@eaDir/1.jpg"]
    strays += [".ipynb_checkpoints/1-checkpoint.jpg"]
    for name in "ab":
        folders.write(tmp_path / "train" / name, images + strays, b"")
    folders.write(tmp_path / "train", ["loose.jpg", ".git/1.jpg", "__MACOSX/a/1.jpg"], b"")
    folders.write(tmp_path, ["readme.txt", "stray/1.jpg", "val/a/1.jpg", "Test/a/1.jpg"], b"")
    split = open_split(tmp_path)
    assert list(split.files.paths()) == [
        f"train/{name}/{image}" for name in "ab" for image in images
    ]
    assert split.note == (
        f"train: 16 images of a, b in {tmp_path}; other files and folders there, ignored: 21"
    )


def test_folders_in_the_folder_of_a_class(tmp_path):
    folders.write(
        tmp_path, ["train/a/x/1.png", "train/a/x/y/2.png", "train/a/0.png", "train/b/1.png"]
    )
    assert paths(tmp_path) == [
        *("train/a/0.png", "train/a/x/1.png", "train/a/x/y/2.png", "train/b/1.png"),
    ]


def test_links(tmp_path):
    elsewhere = folders.write(tmp_path / "elsewhere", ["1.png", "2.png"])
    train = folders.write(tmp_path / "data/train", ["a/0.png", "b/0.png"])
    (train / "a/link.png").symlink_to(elsewhere / "1.png")
    (train / "a/gone.png").symlink_to(tmp_path / "nowhere")
    (train / "a/folder.png").symlink_to(elsewhere)
    (train / "a/inner").symlink_to(elsewhere)
    (train / "b/loop").symlink_to(train / "b")
    (train / "c").symlink_to(elsewhere)
    found = open_split(tmp_path / "data").files
    assert [path.removeprefix("train/") for path in found.paths()] == [
        *("a/0.png", "a/folder.png", "a/gone.png", "a/inner/1.png", "a/inner/2.png", "a/link.png"),
        *("b/0.png", "c/1.png", "c/2.png"),
    ]
    reasons = {
        "folder.png": "a folder, a pipe or a device, and no file",
        "gone.png": "No such file or directory.",
    }
    for index, path in enumerate(found.paths()):
        reason = reasons.get(path.rpartition("/")[2])
        if reason is None:
            assert decode(found[index], 3).shape == (12, 16, 3)
        else:
            with pytest.raises(BadRecordError, match=reason) as error:
                found[index]
            assert error.value.file_name == path


@pytest.mark.parametrize("is_behind_links", [False, True])
def test_links_to_what_they_lie_in_bring_no_image_of_another_class(tmp_path, is_behind_links):
    images = folders.write(tmp_path / "place/data", ["train/a/0.png", "train/b/0.png"])
    folders.write(tmp_path, ["place/1.png", "place/data/1.png"])
    if is_behind_links:
        elsewhere = folders.write(tmp_path / "elsewhere", ["above.png", "in/deep/1.png"])
        (elsewhere / "in/deep/up").symlink_to("../..")
        (images / "train/a/deep").symlink_to(elsewhere / "in/deep")
        (images / "train").rename(tmp_path / "place/moved")
        (images / "train").symlink_to("../moved")
    expected = ["train/a/0.png", *["train/a/deep/1.png"] * is_behind_links, "train/b/0.png"]
    for number, target in enumerate([".", "..", "../..", images, images / "train", tmp_path]):
        (images / "train/a" / f"{number} up").symlink_to(target)
    assert paths(images) == expected
    (images / "train/up").symlink_to("..")
    refuse(images, "has no image of up")


def test_links_that_lead_nowhere_are_ignored(tmp_path, monkeypatch):
    folders.write(tmp_path, ["train/a/1.png", "train/b/1.png"])
    for place in (tmp_path, tmp_path / "train", tmp_path / "train/a"):
        for name, target in (("loop", "loop"), ("gone", "x"), ("long", "x" * 300)):
            (place / name).symlink_to(target)
        (place / "through a file").symlink_to(tmp_path / "train/a/1.png/x")
    split = open_split(tmp_path)
    assert list(split.files.paths()) == ["train/a/1.png", "train/b/1.png"]
    assert split.note.endswith(", ignored: 12")
    # A link to what may not be looked into is no such link.
    stat = os.stat
    (tmp_path / "train/b/secret").symlink_to(tmp_path / "train/a")

    def refusing(path, **options):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", path)
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", refusing)
    refuse(tmp_path, "config.data.dir: " + str(tmp_path / "train/b/secret") + ": Permission denied")


def test_folders_of_a_class_that_links_join_are_listed_once(tmp_path, monkeypatch):
    names = [f"f{i}" for i in range(8)]
    folders.write(tmp_path, ["train/b/1.png", *(f"train/a/{name}/1.png" for name in names)], b"")
    for name in names:
        for other in names:
            (tmp_path / "train/a" / name / f"to {other}").symlink_to(f"../{other}")
    # By another way to a folder that lies in the class itself.
    (tmp_path / "train/a/all").symlink_to("f3")
    (tmp_path / "train/a/z").symlink_to("f3")
    outside = folders.write(tmp_path / "outside", ["1.png"], b"")
    for name in ("m", "n"):
        (tmp_path / "train/a" / name).symlink_to(outside)
    expected = [*(f"train/a/{name}/1.png" for name in names), "train/a/m/1.png", "train/b/1.png"]
    assert paths(tmp_path) == expected
    # Other classes may have the same.
    (tmp_path / "train/b/m").symlink_to(outside)
    assert paths(tmp_path) == [*expected, "train/b/m/1.png"]


def test_what_cannot_be_read_is_a_bad_record(tmp_path, monkeypatch):
    whole = tfds_writer.encode(folders.image(), ".jpg")
    names = ["cut", "empty", "forbidden", "gone", "large", "pipe", "text", "whole"]
    folders.write(tmp_path, [f"train/{c}/{name}.jpg" for c in "ab" for name in names], whole)
    files, place = open_split(tmp_path).files, tmp_path / "train/a"
    (place / "cut.jpg").write_bytes(whole[:-30])
    (place / "empty.jpg").write_bytes(b"")
    (place / "gone.jpg").unlink()
    (place / "large.jpg").write_bytes(bytes(image_files.MOST_BYTES // 2**18 + 1))
    (place / "pipe.jpg").unlink()
    os.mkfifo(place / "pipe.jpg")
    (place / "text.jpg").write_bytes(b"<html>")
    monkeypatch.setattr(image_files, "MOST_BYTES", image_files.MOST_BYTES // 2**18)

    def refuse(path, *arguments):
        if str(path).endswith("train/a/forbidden.jpg"):
            raise PermissionError(13, "Permission denied", path)
        return open(path, *arguments)

    monkeypatch.setattr(image_files, "open", refuse, raising=False)
    reasons = ["no whole", "no whole", "Permission denied", "No such file", "4,097 bytes; at most"]
    for index, reason in enumerate([*reasons, "and no file", "no whole"]):
        with pytest.raises(BadRecordError, match=reason) as error:
            decode(files[index], 3)
        assert error.value.file_name == f"train/a/{names[index]}.jpg"
    assert decode(files[7], 3).shape == (12, 16, 3)
    with pytest.raises(RunError, match=r"train record 0 \(train/a/cut.jpg\): no whole"):
        open_split(tmp_path).load()


def test_names_that_are_no_text_are_read_and_printed(tmp_path):
    names = [b"a\xff.png", b"line\nbreak.png", "میخواهم\u200c.png".encode()]
    folders.write(tmp_path, ["train/a/1.png", "train/b/1.png"])
    for name in names:
        (tmp_path / "train/a" / os.fsdecode(name)).write_bytes(tfds_writer.encode(folders.image()))
    files = open_split(tmp_path).files
    told = [files[index].file_name for index in range(4)]
    assert told == [
        *("train/a/1.png", "train/a/a\\udcff.png", "train/a/line\\nbreak.png"),
        "train/a/میخواهم\u200c.png",
    ]
    (tmp_path / "train" / os.fsdecode(b"\xff")).mkdir()
    refuse(tmp_path, r"the folder '\\udcff' in")


def test_classes_of_a_file(tmp_path):
    folders.write(tmp_path, ["train/dog/1.png", "train/cat/1.png", "val/dog/2.png"])
    (tmp_path / "train/empty").mkdir()
    file = tmp_path / "classes.txt"
    file.write_bytes("\ufeffant\r\ndog\r\nempty\r\ncat\r\n\r\n".encode())
    source = source_of(folders.config(tmp_path, **{"data.classes": str(file)}).data)
    assert source.class_names == ["ant", "dog", "empty", "cat"]
    for name, labels in (("train", [3, 1]), ("val", [1])):
        records = source.open_split(name).open_records()
        assert [records[i].label for i in range(len(records))] == labels
    file.write_text("ant\ndog\n")
    refuse(tmp_path, "has no line for the folders cat, empty of the split train", classes=str(file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("a\n\nb", "line 2: got ''"),
        ("a\nb\na", "line 3: got 'a'"),
        ("a\nb\0", r"line 2: got 'b\x00'"),
        ("a\n", "names one class"),
        ("", "line 1: got ''"),
        (b"\xff\xfe\x00", "can't decode byte"),
    ],
)
def test_wrong_files_of_classes(tmp_path, text, message):
    folders.write_splits(tmp_path)
    file = tmp_path / "classes.txt"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as error:
        open_split(tmp_path, classes=str(file))
    assert_says(error.value, "config.data.classes: ")
    assert message in str(error.value)


def test_classes_are_not_waited_for_in_a_pipe(tmp_path):
    folders.write_splits(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"^config\.data\.classes: .*pipe: a folder, a pipe or"):
        open_split(tmp_path, classes=str(tmp_path / "pipe"))


def test_wrong_folders_take_a_line(tmp_path):
    refuse(tmp_path / "absent", f"there is no directory {tmp_path}/absent")
    nothing = "images are looked for as DIR/<split>/<class>/<image> or DIR/<class>/<image>."
    refuse(tmp_path, nothing)
    folders.write(tmp_path, ["1.png", "2.png"])
    refuse(tmp_path, nothing)
    folders.write(tmp_path, ["a/1.png"])
    refuse(tmp_path, "has one folder alone, 'a', for its classes")
    (tmp_path / "b").mkdir()
    refuse(tmp_path, "has no image of b; remove what is empty")
    (tmp_path / "a/1.png").unlink()
    refuse(tmp_path, "a file whose name ends in .jpg")
    folders.write(tmp_path, ["train/a/1.png", "train/b/1.png"])
    refuse(tmp_path, "has no folder 'val'; it has a, b, train", "val")
    folders.write(tmp_path, ["val/a/1.png", "val/c/1.png"])
    refuse(tmp_path, "differ, in val alone: c; in train alone: b", "val")


def test_splits_of_other_names_are_not_taken_for_classes(tmp_path):
    folders.write_splits(tmp_path, (("Training", 1), ("Validation", 1)))
    with pytest.raises(
        UnknownSplitError, match=r"no folder 'train'; it has Training, Validation\."
    ):
        open_split(tmp_path)
    with pytest.raises(ConfigError, match=r"^config\.data\.train_split: .* no folder 'train'"):
        _ = source_of(folders.config(tmp_path).data).num_classes
    assert paths(tmp_path, "Training", train_split="Training", eval_split="Validation")


@pytest.mark.parametrize(
    "names",
    [
        ["training_set/a/1.png", "training_set/b/1.png", "test_set/a/1.png", "test_set/b/1.png"],
        ["Train/a/1.png", "Train/b/1.png", "extra/c/1.png"],
        ["Train/a/1.png", "Train/b/1.png", "extra/notes.txt"],
        ["fold 1/a/1.png", "fold 1/b/x/1.png", "fold 2/a/1.png", "fold 2/b/1.png"],
    ],
)
def test_what_looks_like_splits_is_taken_for_classes_by_name_alone(tmp_path, names):
    folders.write(tmp_path / "data", names, b"")
    folded = sorted({name.partition("/")[0] for name in names})
    refuse(
        tmp_path / "data", f"the folders {', '.join(folded)} in {tmp_path / 'data'} hold folders"
    )
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(folded))
    found = [name for name in sorted(names) if name.endswith(".png")]
    assert paths(tmp_path / "data", eval_fraction=0.001, classes=str(classes)) == found


@pytest.mark.parametrize(
    "names",
    [
        ["train station/1.png", "test tube/1.png"],
        ["cat/2021/1.png", "dog/2021/1.png"],
        ["cat/2021/1.png", "cat/2022/1.png", "dog/2021/1.png", "dog/2023/1.png"],
        ["cat/2021/1.png", "cat/2022/1.png", "dog/2021/1.png", "dog/2022/1.png", "dog/1.png"],
    ],
)
def test_classes_with_folders_in_them_are_classes(tmp_path, names):
    folders.write(tmp_path, names, b"")
    assert sorted(paths(tmp_path, eval_fraction=0.001)) == sorted(names)


def test_each_class_has_an_image_to_train_on(tmp_path):
    # b/0.jpg is held out, and a/0.jpg is not.
    folders.write(tmp_path, ["a/0.jpg", "a/6.jpg", "b/0.jpg", "b/2.jpg"], b"")
    refuse(tmp_path, f"all images of b in {tmp_path} are held out, and none is left in the split t")
    # For an evaluation that is enough, and without one the log says so.
    assert paths(tmp_path, "val") == ["a/6.jpg", "b/0.jpg", "b/2.jpg"]
    folders.write(tmp_path, ["b/1.jpg"], b"")
    (tmp_path / "a/6.jpg").unlink()
    assert open_split(tmp_path).note == f"train: 2 images of a, b in {tmp_path}"
    assert open_split(tmp_path, "val").note == f"val: 2 images of a, b in {tmp_path}, none of a"
    (tmp_path / "b/1.jpg").unlink()
    classes = tmp_path / "classes.txt"
    classes.write_text("a\nb")
    assert paths(tmp_path, classes=str(classes)) == ["a/0.jpg"]


def test_the_split_that_is_there_names_the_classes(tmp_path):
    folders.write_splits(tmp_path, [("val", 2)])
    source = source_of(folders.config(tmp_path).data)
    assert (source.class_names, source.open_split("val").num_examples) == (list(folders.CLASSES), 6)
    with pytest.raises(UnknownSplitError, match="no folder 'train'; it has val"):
        source.open_split("train")
    folders.write(tmp_path, ["test/cat/1.png", "test/elk/1.png"])
    refuse(tmp_path, "in test alone: elk; in val alone: dog, owl", "test")


def test_a_copy_that_is_not_whole_is_refused(tmp_path):
    folders.write_splits(tmp_path)
    (tmp_path / UNFINISHED).touch()
    refuse(tmp_path, "is a copy that is not whole; the command that began it")


def test_folder_that_may_not_be_read(tmp_path, monkeypatch):
    folders.write_splits(tmp_path)
    scandir = os.scandir

    def refusing(path):
        if str(path).rstrip("/").endswith("train/dog"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    refuse(tmp_path, "train/dog: Permission denied")


def test_bucket_is_refused_with_the_way_to_mount_it():
    for name in ("folder", "cifar100"):
        config = folders.config("gs://bucket/images", **{"data.name": name})
        with pytest.raises(ConfigError) as error:
            source_of(config.data)
        assert_says(error.value, "config.data.dir: got 'gs://bucket/images'")
        assert "gcsfuse" in str(error.value)


def test_a_file_takes_few_bytes_more_than_its_name():
    count = 20_000
    tracemalloc.start()
    try:
        files = ImageFiles("directory")
        for index in range(count):
            files.append(
                f"train/n{index % 1000:08}/n{index % 1000:08}_{index:06}.JPEG", index % 1000
            )
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A quarter is room to grow.
    assert taken < 1.25 * (sum(map(len, files.paths())) + 12 * count)


def test_a_folder_is_listed_once(tmp_path, monkeypatch):
    folders.write(tmp_path / "whole", EACH, b"")
    folders.write_splits(tmp_path / "splits")
    scandir, listed = os.scandir, []

    def counted(path):
        listed.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    for directory, names in (("whole", 1 + 3), ("splits", 1 + 2 + 2 * 3)):
        listed.clear()
        source = source_of(folders.config(tmp_path / directory).data)
        for _ in range(2):
            assert source.num_classes == 3
            assert source.open_split("train").num_examples > source.open_split("val").num_examples
        # The folders of the training split's classes are looked up before its files.
        assert len(listed) <= names + 1
