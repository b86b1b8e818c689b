"""A run's directory: whose it is, and what happens to another run in it."""

import dataclasses
import json
import re

import pytest

from train.core.config.fields import Config, flatten, replaced
from train.core.errors import ConfigError
from train.core.workdir.directory import (
    FIGURES,
    FREE,
    check_config,
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
    with pytest.raises(ConfigError, match=r"momentum is 0\.9 there .*; seed is 0 there") as error:
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
    with pytest.raises(ConfigError, match=r"depth is 50 there .* seed is None there"):
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
    with pytest.raises(ConfigError, match=r" or go on with .*--config\.model\.shortcut=pad_end\.$"):
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


DATASET = {"num_classes": 2, "class_names": ["a", "b"], "image_shape": [8, 8, 1]}


def test_dataset_is_what_the_run_kept(tmp_path):
    assert dataset(tmp_path) is None
    for kept in (DATASET, DATASET | {"class_names": None}):
        write_json(tmp_path / "dataset.json", kept)
        assert dataset(tmp_path) == kept


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
