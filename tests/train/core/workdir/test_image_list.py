"""The list of a run's image files: kept at its beginning, and compared where it goes on."""

import gzip
import json
import unicodedata
from functools import partial

import pytest
from etils import epath

from tests.helpers.damage import assert_says
from tests.helpers.image_datasets import folders
from train.core.data.sources.digits import Digits
from train.core.data.sources.registry import source_of
from train.core.errors import ConfigError
from train.core.workdir import image_list

NAMES = [f"{split}/{name}/{i}.png" for split in ("train", "val") for name in "ab" for i in range(3)]


@pytest.fixture
def data(tmp_path):
    return folders.write(tmp_path / "data", NAMES)


@pytest.fixture
def workdir(tmp_path):
    workdir = epath.Path(tmp_path / "run")
    workdir.mkdir()
    return workdir


def keep(workdir, data, names=("train", "val")):
    source = source_of(folders.config(data).data)
    image_list.keep(workdir, [source.open_split(name) for name in names])


def begin(workdir, data):
    """Keeps the list of a run that has a checkpoint."""
    keep(workdir, data)
    (workdir / "checkpoints/1").mkdir(parents=True)


def refuse(message, workdir, data):
    before = (workdir / image_list.NAME).read_bytes()
    with pytest.raises(ConfigError) as error:
        keep(workdir, data)
    assert_says(error.value, message)
    assert (workdir / image_list.NAME).read_bytes() == before


def kept(workdir):
    lines = gzip.decompress((workdir / image_list.NAME).read_bytes()).splitlines()
    return list(map(json.loads, lines))


def test_names_are_kept_and_the_same_folder_goes_on_elsewhere(data, workdir):
    begin(workdir, data)
    assert kept(workdir) == NAMES
    keep(workdir, data.rename(data.with_name("elsewhere")))
    assert kept(workdir) == NAMES


def test_each_split_is_kept_once(data, workdir):
    keep(workdir, data, ("train", "train"))
    assert kept(workdir) == NAMES[:6]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_copy_of_the_folder_with_letters_in_another_form_goes_on(workdir, tmp_path, form):
    names = [f"{split}/{name}/größe.png" for split in ("train", "val") for name in ("å", "b")]
    copies = {
        copy: folders.write(tmp_path / copy, [unicodedata.normalize(copy, n) for n in names])
        for copy in ("NFC", "NFD")
    }
    begin(workdir, copies.pop(form))
    keep(workdir, *copies.values())


def test_what_changed_is_told(data, workdir):
    begin(workdir, data)
    folders.write(data, [f"train/a/new {i}.png" for i in range(7)])
    (data / "val/b/2.png").unlink()
    new = ", ".join(f"train/a/new {i}.png" for i in range(5))
    refuse(f"began: 7 added ({new} and 2 more), 1 removed (val/b/2.png).", workdir, data)


def test_changed_names_are_told_in_one_line(workdir, tmp_path):
    forms = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    names = ["line\nbreak.png", *(f"{form}.png" for form in forms)]
    paths = [f"{split}/{name}/1.png" for split in ("train", "val") for name in "ab"]
    data = folders.write(tmp_path / "odd", [*paths, *(f"train/a/{name}" for name in names)])
    begin(workdir, data)
    for name in (names[0], names[2]):
        (data / "train/a" / name).unlink()
    refuse(r"began: 2 removed (train/a/é.png, train/a/line\nbreak.png).", workdir, data)


def test_a_folder_may_change_before_the_first_checkpoint(data, workdir):
    keep(workdir, data)
    (data / "val/b/2.png").unlink()
    keep(workdir, data)
    assert kept(workdir) == NAMES[:-1]


def test_a_run_that_kept_no_list_gets_one(data, workdir):
    (workdir / "checkpoints/1").mkdir(parents=True)
    keep(workdir, data)
    assert kept(workdir) == NAMES


def test_other_datasets_have_no_list(workdir):
    digits = Digits(folders.config("unused", **{"data.name": "digits"}).data)
    image_list.keep(workdir, [digits.open_split("train")])
    assert list(workdir.iterdir()) == []


def test_the_same_names_in_other_bytes(data, workdir):
    begin(workdir, data)
    lines = gzip.decompress((workdir / image_list.NAME).read_bytes()).splitlines()
    (workdir / image_list.NAME).write_bytes(gzip.compress(b"\n".join(lines)))
    keep(workdir, data)
    (workdir / image_list.NAME).write_bytes(gzip.compress(b"\n".join(reversed(lines))))
    refuse("began: the same in another order. Bring back", workdir, data)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"no gzip", gzip.compress(b"names" * 99, mtime=0)[:-9]),
        *map(
            partial(gzip.compress, mtime=0),
            (b"3\n", b"no JSON", b'"a"\n"b', b'"a"\n\n"b"', b"[" * 10**6, b'"\xff"'),
        ),
    ],
)
def test_a_damaged_list_is_named(data, workdir, content):
    begin(workdir, data)
    (workdir / image_list.NAME).write_bytes(content)
    refuse("images.gz is not that of a run (", workdir, data)
