"""The comparison: its runs, going on, other configs, failures, tables."""

import itertools
import os
import shutil
import signal

import jax
import pytest
from etils import epath

from configs import digits_resnet20
from tests.helpers import tiny
from train.compare.runs import asked, listed_numbers, plan, read_runs, share
from train.compare.train_all import train_all, write_tables
from train.core.config.fields import replaced
from train.core.engine import loop
from train.core.errors import ConfigError, PreemptedError, RunError
from train.core.workdir import claimed, directory


def base_config():
    config = digits_resnet20.get_config()
    config.epochs = 1
    config.optimizer.sparsity = 0.0
    return config


def names(runs):
    return [run.name for run in runs]


def test_plan_has_all_attentions_with_the_first_seed_first():
    runs = plan(base_config(), ["none", "nam"], [3, 1])
    assert names(runs) == ["none-seed3", "nam-seed3", "none-seed1", "nam-seed1"]
    assert [(r.attention, r.config.seed) for r in runs[:2]] == [("none", 3), ("nam", 3)]


def test_penalties_are_an_axis_of_nam_alone():
    runs = plan(base_config(), ["none", "nam"], [0], [0.0, 1e-4])
    assert names(runs) == ["none-seed0", "nam-seed0", "nam-p0.0001-seed0"]
    assert [run.config.optimizer.sparsity for run in runs] == [0.0, 0.0, 1e-4]


def test_hyperparameters_of_the_attention_are_variants():
    variants = ["none", "nam", "nam+normalization=mean", "nam+gate_scale=2.0"]
    runs = plan(base_config(), variants, [0])
    assert names(runs) == [f"{variant}-seed0" for variant in variants]
    assert [run.config.model.normalization for run in runs] == ["share", "share", "mean", "share"]
    # The config's own, where the attention has such a field.
    config = replaced(base_config(), {"model.normalization": "mean"})
    assert names(plan(config, ["none", "nam"], [0])) == ["none-seed0", f"{variants[2]}-seed0"]
    assert names(asked(config)) == ["none-seed0", f"{variants[2]}-seed0"]


def test_near_penalties_are_runs_of_their_own():
    runs = plan(base_config(), ["nam"], [0], [1e-4, 1.0000001e-4])
    assert names(runs) == ["nam-p0.0001-seed0", "nam-p0.00010000001-seed0"]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A comparison of two attentions, one seed."""
    workdir = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny.use(monkeypatch)
        runs = plan(base_config(), ["none", "nam"], [0])
        train_all(runs, epath.Path(workdir))
    return workdir


@pytest.fixture
def trained(first, tmp_path, monkeypatch):
    """A copy of it."""
    tiny.use(monkeypatch)
    return epath.Path(shutil.copytree(first, tmp_path / "cmp"))


def test_trains_every_run_with_the_same_data_and_writes_the_tables(trained):
    runs = read_runs(trained)
    assert sorted(names(runs)) == ["nam-seed0", "none-seed0"]
    # The stand-in for the network has no attention: all else being equal, so are the results.
    assert len({run.summary["state_sha256"] for run in runs}) == 1
    files = {"results.csv", "results.md", "results.png"}
    assert {path.name for path in trained.iterdir()} == {"nam-seed0", "none-seed0", *files}
    assert (trained / "results.png").read_bytes().startswith(b"\x89PNG")
    assert "runs: 2 finished." in (trained / "results.md").read_text()


@pytest.mark.slow
def test_goes_on_with_what_is_missing(trained, capsys):
    before = (trained / "none-seed0" / "summary.json").read_bytes()
    train_all(plan(base_config(), ["none", "nam"], [0, 1]), trained)
    output = capsys.readouterr().out
    assert (trained / "none-seed0" / "summary.json").read_bytes() == before
    assert output.startswith("2 of 4 runs are finished\n[3/4] none-seed1, 0:00:")
    assert "runs: 4 finished." in (trained / "results.md").read_text()
    # The stand-in for the network has no attention.
    assert "+0.00 (–)" in (trained / "results.md").read_text()


def test_a_run_of_another_config_is_refused_before_anything_is_trained(trained):
    config = base_config()
    config.epochs = 2
    with pytest.raises(ConfigError, match="epochs is 1 there and 2 here"):
        train_all(plan(config, ["se"], [0]), trained)
    assert not (trained / "se-seed0").exists()


def test_a_single_run_is_no_comparison(trained):
    with pytest.raises(ConfigError, match="holds a single run"):
        read_runs(trained / "nam-seed0")
    with pytest.raises(ConfigError, match=r"results\.md is a file; name a directory"):
        read_runs(trained / "results.md")


def test_a_run_that_may_not_be_read_is_not_left_out(trained, monkeypatch):
    stat = type(trained).stat

    def refuse(path, **options):
        if path.name == "config.json":
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(type(trained), "stat", refuse)
    with pytest.raises(PermissionError):
        read_runs(trained)


def test_a_run_under_another_name_is_refused(trained):
    (trained / "nam-seed0").rename(trained / "nam-seed7")
    with pytest.raises(ConfigError, match="nam-seed7 holds the run nam-seed0; rename it"):
        read_runs(trained)


@pytest.mark.parametrize("text", ["{}", '{"learning_rate": 0.1}', "[]", "spam", "\xff"])
def test_a_directory_of_something_else_is_named(trained, text):
    (trained / "a").mkdir()
    (trained / "a" / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=f"{trained}/a") as error:
        read_runs(trained)
    assert len(str(error.value).splitlines()) == 1


def test_runs_are_read_in_the_order_of_the_attentions_and_penalties(tmp_path):
    for run in plan(base_config(), ["tam", "nam", "none"], [11, 2], [2e-4, 1e-5]):
        directory.claim(epath.Path(tmp_path) / run.name, run.config)
    expected = ["none", "nam-p1e-05", "nam-p0.0002", "tam"]
    expected = [f"{variant}-seed{seed}" for variant in expected for seed in (2, 11)]
    assert names(read_runs(epath.Path(tmp_path))) == expected


def test_tables_from_the_directory_alone(trained):
    expected = (trained / "results.md").read_text()
    for name in ("results.csv", "results.md", "results.png"):
        (trained / name).unlink()
    directory.claim(trained / "se-seed0", plan(base_config(), ["se"], [0])[0].config)
    text = write_tables(trained)
    assert text == (trained / "results.md").read_text()
    assert text == expected.replace("2 finished.", "2 finished, 1 begun.")


def test_tables_of_no_finished_run(tmp_path):
    with pytest.raises(ConfigError, match="nowhere: there is no finished run of a comparison"):
        write_tables(epath.Path(tmp_path) / "nowhere")
    directory.claim(epath.Path(tmp_path) / "se-seed0", plan(base_config(), ["se"], [0])[0].config)
    with pytest.raises(ConfigError, match="there is no finished run of a comparison"):
        write_tables(epath.Path(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["se-seed0"]


FAILURES = {
    "se": (RunError("the loss of step 3 is nan."), "the loss of step 3 is nan."),
    "bam": (
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GiB\nand more"),
        "the device has too little memory; a smaller config.batch_size takes less "
        "(RESOURCE_EXHAUSTED: 9 GiB).",
    ),
    "cbam": (MemoryError(), "MemoryError."),
}


@pytest.mark.slow
def test_failed_runs_do_not_stop_the_others(tmp_path, monkeypatch, capsys):
    tiny.use(monkeypatch)
    run_steps = loop._run_steps

    def failing(run, *rest):
        attention = run.experiment.config.model.attention
        if attention in FAILURES:
            raise FAILURES[attention][0]
        return run_steps(run, *rest)

    monkeypatch.setattr(loop, "_run_steps", failing)
    runs = plan(base_config(), ["none", *FAILURES, "nam"], [0])
    with pytest.raises(RunError, match=r"^3 of 5 runs failed: se-seed0, bam-seed0, cbam-seed0\.$"):
        train_all(runs, epath.Path(tmp_path))
    printed = capsys.readouterr().out
    for attention, (_, said) in FAILURES.items():
        assert f"{attention}-seed0 failed: {said}\n" in printed
    assert "| nam |" in (tmp_path / "results.md").read_text()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_told_to_stop_at_the_end_of_a_run_it_begins_no_other(tmp_path, monkeypatch, number):
    tiny.use(monkeypatch)
    evaluate = loop.evaluate

    def told(*arguments):
        signal.raise_signal(number)
        return evaluate(*arguments)

    monkeypatch.setattr(loop, "evaluate", told)
    monkeypatch.setattr(os, "kill", lambda *_: None)
    runs = plan(base_config(), ["none", "se"], [0])
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(PreemptedError, match="stopped before se-seed0"):
        train_all(runs, epath.Path(tmp_path))
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert "runs: 1 finished." in (tmp_path / "results.md").read_text()
    assert not (tmp_path / "se-seed0").exists()


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_told_to_stop_while_a_run_is_set_up_it_saves_its_first_step(tmp_path, monkeypatch, number):
    tiny.use(monkeypatch)
    monkeypatch.setattr(os, "kill", lambda *_: None)
    monkeypatch.setattr(claimed, "set_damaged_aside", lambda _: signal.raise_signal(number))
    runs = plan(base_config(), ["none", "se"], [0])
    with pytest.raises(PreemptedError, match="stopped after step 1, which is saved"):
        train_all(runs, epath.Path(tmp_path))
    assert (tmp_path / "none-seed0" / "checkpoints" / "1").exists()


def test_seed_of_the_config_where_none_is_named():
    config = base_config()
    config.seed = 7
    assert names(asked(config)) == ["none-seed7", "nam-seed7"]
    assert names(asked(config, ["se"], ["3"], only="1/1")) == ["se-seed3"]


@pytest.mark.parametrize("texts", [[], ["0", "0"], ["a"], ["1.5"], ["-1"], ["9" * 5000]])
def test_seeds_are_whole_numbers_each_once(texts):
    with pytest.raises(ConfigError, match=r"--seeds: got .*; allowed: whole numbers from 0 on"):
        listed_numbers("seeds", texts, int, "seed")


@pytest.mark.parametrize("text", ["nan", "inf", "-1e-4", "x"])
def test_penalties_are_finite_and_not_negative(text):
    with pytest.raises(ConfigError, match=r"--sparsity: got '0,.*'; allowed: numbers from 0 on"):
        listed_numbers("sparsity", ["0", text], float, "optimizer.sparsity")


@pytest.mark.parametrize("names", [["none", "se"], ["none"]])
def test_penalties_of_no_attention_with_scales_are_refused(names):
    with pytest.raises(
        ConfigError, match=r"--sparsity: got '1e-4,0' with none.*, without NAM scales; leave"
    ):
        asked(base_config(), names, ["0"], ["1e-4", "0"])
    assert len(asked(base_config(), names, ["0"], ["0"])) == len(names)


def test_machines_share_the_runs():
    runs = plan(base_config(), ["none", "se", "nam"], [0, 1])
    parts = [names(share(runs, f"{k}/4")) for k in (1, 2, 3, 4)]
    assert sorted(itertools.chain(*parts)) == sorted(names(runs))
    assert parts[0] == ["none-seed0", "se-seed1"]
    assert share(runs, None) == runs


@pytest.mark.parametrize("only", ["0/2", "3/2", "1/7", "2", "a/b", "1/0", "-1/2"])
def test_wrong_shares(only):
    runs = plan(base_config(), ["none", "se", "nam"], [0, 1])
    with pytest.raises(ConfigError, match=r"--only: got .*N at most the 6 runs"):
        share(runs, only)
