"""A run's directory: whose it is, and what happens to another run in it."""

import json
import re

import pytest

from train.core.config.fields import FREE_FIELDS, default_config, flatten
from train.core.errors import ConfigError
from train.core.workdir import directory as workdir_lib
from train.core.workdir.storage import write_json

OTHER_VALUES = {
    "log_every_steps": 7,
    "data.dir": "/elsewhere",
    "data.loader": "streaming",
    "data.resident_limit_gb": 1.5,
    "data.workers": 3,
    "data.max_bad_fraction": 0.5,
    "checkpoint.every_steps": 9,
    "checkpoint.keep": 5,
}


def config_with(fields):
    config = default_config()
    config.update_from_flattened_dict(fields)
    return config


def test_claim_makes_the_directory_and_writes_the_config(tmp_path):
    workdir_lib.claim(tmp_path / "runs" / "first", default_config())
    written = json.loads((tmp_path / "runs" / "first" / "config.json").read_text())
    expected = json.loads(json.dumps(default_config().to_dict()))
    assert written == expected


def test_claim_of_an_existing_empty_directory(tmp_path):
    workdir_lib.claim(tmp_path, default_config())
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "checkpoints"}


def test_same_config_passes_and_changes_nothing(tmp_path):
    workdir_lib.claim(tmp_path, default_config())
    before = (tmp_path / "config.json").read_bytes()
    workdir_lib.claim(tmp_path, default_config())
    workdir_lib.check(tmp_path, default_config())
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
    workdir_lib.claim(tmp_path, default_config())
    with pytest.raises(ConfigError) as error:
        workdir_lib.claim(tmp_path, config_with({name: value}))
    as_json = [list(v) if isinstance(v, tuple) else v for v in (_default(name), value)]
    assert "{} is {!r} there and {!r} here".format(name, *as_json) in str(error.value)
    assert f"--workdir {tmp_path} belongs to a run of another config" in str(error.value)
    workdir_lib.check(tmp_path, default_config())


def _default(name):
    return dict(flatten(default_config()))[name]


def test_all_differing_fields_are_named(tmp_path):
    workdir_lib.claim(tmp_path, default_config())
    other = config_with({"seed": 1, "optimizer.momentum": 0.5, "checkpoint.keep": 5})
    with pytest.raises(ConfigError, match=r"momentum is 0\.9 there .*; seed is 0 there") as error:
        workdir_lib.check(tmp_path, other)
    assert "keep" not in str(error.value)


@pytest.mark.parametrize("name", FREE_FIELDS)
def test_free_field_may_differ(tmp_path, name):
    workdir_lib.claim(tmp_path, default_config())
    other = config_with({name: OTHER_VALUES[name]})
    workdir_lib.claim(tmp_path, other)
    with pytest.raises(ConfigError, match=re.escape(name)):
        workdir_lib.check(tmp_path, other, free=())


def test_run_of_a_version_with_other_fields_is_refused(tmp_path):
    config = default_config().to_dict()
    del config["seed"]
    write_json(tmp_path / "config.json", config | {"depth": 50})
    with pytest.raises(ConfigError, match=r"depth is 50 there .* seed is None there"):
        workdir_lib.claim(tmp_path, default_config())


@pytest.mark.parametrize("parts", [("file",), ("file", "run")], ids=["file", "below a file"])
def test_path_that_cannot_be_written_is_refused(tmp_path, parts):
    (tmp_path / "file").write_text("")
    workdir = tmp_path.joinpath(*parts)
    with pytest.raises(ConfigError, match=re.escape(f"--workdir {workdir}: ")):
        workdir_lib.claim(workdir, default_config())


@pytest.mark.parametrize("exists", [False, True])
def test_check_without_a_run_is_refused_and_writes_nothing(tmp_path, exists):
    workdir = tmp_path if exists else tmp_path / "run"
    with pytest.raises(ConfigError, match=re.escape(f"--workdir {workdir}: there is no run")):
        workdir_lib.check(workdir, default_config())
    assert not list(tmp_path.iterdir())


def test_summary_is_none_until_the_run_is_finished(tmp_path):
    assert workdir_lib.summary(tmp_path) is None
    summary = {**dict.fromkeys(workdir_lib.FIGURES, 3), "devices": "1 × cpu"}
    write_json(tmp_path / "summary.json", summary)
    assert workdir_lib.summary(tmp_path) == summary
