"""A run's directory: whose it is, what happens to another run in it, its list of image files."""

import dataclasses
import gzip
import json
import re
import unicodedata
from functools import partial

import pytest
from etils import epath

from tests.helpers.damage import assert_says
from tests.helpers.image_datasets import folders
from train.core.config.fields import Config, flatten, marked, replaced
from train.core.config.spec import Mark
from train.core.data.sources.digits import Digits
from train.core.data.sources.registry import source_of
from train.core.errors import ConfigError
from train.core.workdir import image_list
from train.core.workdir.directory import (
    FIGURES,
    FREE,
    as_saved,
    check_config,
    check_images,
    claim,
    dataset,
    saved_config,
    summary,
)
from train.core.workdir.storage import write_json

OTHER_VALUES = {
    "log_every_steps": 7,
    "data.classes": "classes.txt",
    "data.dir": "/elsewhere",
    "data.loader": "streaming",
    "data.resident_limit_gb": 1.5,
    "data.workers": 3,
    "data.max_bad_fraction": 0.5,
    "checkpoint.every_steps": 9,
    "checkpoint.keep": 5,
    "log.wandb_project": "digits",
}


def test_claim_makes_the_directory_and_writes_the_config(tmp_path):
    claim(tmp_path / "runs" / "first", Config())
    written = json.loads((tmp_path / "runs" / "first" / "config.json").read_text())
    expected = json.loads(json.dumps(dataclasses.asdict(Config())))
    assert written == expected


def test_claim_of_an_existing_empty_directory(tmp_path):
    claim(tmp_path, Config())
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "checkpoints"}


def test_same_config_passes_and_changes_nothing(tmp_path):
    claim(tmp_path, Config())
    before = (tmp_path / "config.json").read_bytes()
    claim(tmp_path, Config())
    check_config(tmp_path, Config())
    assert (tmp_path / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 1),
        ("model.attention", "none"),
        ("data.mean", (0.1, 0.2, 0.3)),
        ("data.flip", False),
        ("optimizer.milestones", (0.5,)),
        ("optimizer.learning_rate", 0.2),
    ],
)
def test_differing_field_is_refused_with_both_values(tmp_path, name, value):
    claim(tmp_path, Config())
    with pytest.raises(ConfigError) as error:
        claim(tmp_path, replaced(Config(), {name: value}))
    as_json = [list(v) if isinstance(v, tuple) else v for v in (_default(name), value)]
    assert "{} is {!r} there and {!r} here".format(name, *as_json) in str(error.value)
    assert f"--workdir {tmp_path} belongs to a run of another config" in str(error.value)
    check_config(tmp_path, Config())


def _default(name):
    return dict(flatten(Config()))[name]


def test_all_differing_fields_are_named(tmp_path):
    claim(tmp_path, Config())
    other = replaced(Config(), {"seed": 1, "optimizer.momentum": 0.5, "checkpoint.keep": 5})
    with pytest.raises(ConfigError, match=r"momentum is 0\.9 .*; config\.seed is 0 there") as error:
        check_config(tmp_path, other)
    assert "keep" not in str(error.value)


@pytest.mark.parametrize("name", sorted(FREE))
def test_free_field_may_differ(tmp_path, name):
    claim(tmp_path, Config())
    other = replaced(Config(), {name: OTHER_VALUES[name]})
    claim(tmp_path, other)
    with pytest.raises(ConfigError, match=re.escape(name)):
        check_config(tmp_path, other, free=())


def test_run_of_a_version_with_other_fields_is_refused(tmp_path):
    config = dataclasses.asdict(Config())
    del config["seed"]
    write_json(tmp_path / "config.json", config | {"depth": 50})
    with pytest.raises(ConfigError, match=r"depth is 50 there .*; config\.seed is None there"):
        claim(tmp_path, Config())


def without(config, *names):
    """What a version that did not have these fields of the model wrote."""
    fields = dataclasses.asdict(config)
    for name in names:
        del fields["model"][name]
    return fields


def test_run_begun_before_shortcuts_were_a_choice_goes_on_as_it_was_begun(tmp_path):
    config = replaced(Config(), {"model.name": "resnet20"})
    write_json(tmp_path / "config.json", without(config, "shortcut", "width"))
    with pytest.raises(ConfigError, match=r"take its own by --config\.model\.shortcut=pad_end\.$"):
        claim(tmp_path, config)
    as_begun = replaced(config, {"model.shortcut": "pad_end"})
    claim(tmp_path, as_begun)
    assert saved_config(tmp_path) == as_begun


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
def test_run_begun_before_that_means_the_same_goes_on(tmp_path, name):
    config = replaced(Config(), {"model.name": name})
    write_json(tmp_path / "config.json", without(config, "shortcut", "width"))
    claim(tmp_path, config)
    assert saved_config(tmp_path) == config


def test_run_begun_before_any_later_field_goes_on(tmp_path):
    fields = {
        name: value for name, value in as_saved(Config()).items() if name not in marked(Mark.LATER)
    }
    write_json(tmp_path / "config.json", fields)
    claim(tmp_path, Config())
    assert saved_config(tmp_path) == Config()


@pytest.mark.parametrize("parts", [("file",), ("file", "run")], ids=["file", "below a file"])
def test_path_that_cannot_be_written_is_refused(tmp_path, parts):
    (tmp_path / "file").write_text("")
    workdir = tmp_path.joinpath(*parts)
    with pytest.raises(ConfigError, match=re.escape(f"--workdir {workdir}: ")):
        claim(workdir, Config())


@pytest.mark.parametrize("exists", [False, True])
def test_check_without_a_run_is_refused_and_writes_nothing(tmp_path, exists):
    workdir = tmp_path if exists else tmp_path / "run"
    with pytest.raises(ConfigError, match=re.escape(f"--workdir {workdir}: there is no run")):
        check_config(workdir, Config())
    assert not list(tmp_path.iterdir())


DATASET = {
    "num_classes": 2,
    "class_names": ["a", "b"],
    "image_shape": [8, 8, 1],
    "num_images": {"train": 100, "test": 20},
}


def test_dataset_is_what_the_run_kept(tmp_path):
    assert dataset(tmp_path) is None
    for kept in (DATASET, DATASET | {"class_names": None}):
        write_json(tmp_path / "dataset.json", kept)
        assert dataset(tmp_path) == kept


def test_run_that_kept_no_number_of_images_goes_on_with_any(tmp_path):
    check_images(tmp_path, (8, 8, 1), {"train": 100})
    earlier = {name: value for name, value in DATASET.items() if name != "num_images"}
    write_json(tmp_path / "dataset.json", earlier)
    assert dataset(tmp_path) == earlier | {"num_images": {}}
    check_images(tmp_path, (8, 8, 1), {"train": 100})


@pytest.mark.parametrize(
    ("shape", "number", "told"),
    [
        ((8, 8, 1), 90, "the number of 'train' is 100 there and 90 here"),
        ((8, 9, 1), 100, r"their shape is \[8, 8, 1\] there and \[8, 9, 1\] here"),
    ],
)
def test_run_goes_on_with_as_many_images_of_the_same_shape(tmp_path, shape, number, told):
    write_json(tmp_path / "dataset.json", DATASET)
    check_images(tmp_path, (8, 8, 1), {"train": 100, "test": 20})
    with pytest.raises(ConfigError, match=f"a run of other images: {told}. Bring back"):
        check_images(tmp_path, shape, {"train": number, "test": 20})


@pytest.mark.faults
@pytest.mark.parametrize(
    "content",
    [
        *(b"{", b"[]", b"3", b"\xff", b"{}"),
        *(
            json.dumps(DATASET | damage).encode()
            for damage in (
                {"image_shape": 3},
                {"image_shape": [1]},
                {"num_classes": "x"},
                {"class_names": ["a"]},
                {"num_images": [100]},
                {"num_images": {"train": "x"}},
            )
        ),
    ],
)
def test_damaged_dataset_is_named(tmp_path, content):
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(
        ConfigError, match=r"dataset\.json is not that of a run \(.+\); where"
    ) as error:
        dataset(tmp_path)
    assert len(str(error.value).splitlines()) == 1


def test_summary_is_none_until_the_run_is_finished(tmp_path):
    assert summary(tmp_path) is None
    figures = {**dict.fromkeys(FIGURES, 3), "devices": "1 × cpu"}
    write_json(tmp_path / "summary.json", figures)
    assert summary(tmp_path) == figures


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "null", '"1"'])
def test_figure_of_a_summary_that_is_no_number_is_named(tmp_path, value):
    figures = json.dumps({**dict.fromkeys(FIGURES, 3), "top1_error": "VALUE"})
    (tmp_path / "summary.json").write_text(figures.replace('"VALUE"', value))
    with pytest.raises(ConfigError, match=r"summary\.json .* \(it has no number for top1_error\)"):
        summary(tmp_path)


# The list of a run's image files: kept at its beginning, and compared where it goes on.

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
