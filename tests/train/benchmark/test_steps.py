"""train.benchmark of training steps: what it measures and prints, not how fast anything is."""

import json
import re

import jax
import numpy as np
import pytest

from configs import cifar100_resnet20
from nam_jax import models
from nam_jax.models.resnet import BasicBlock, ResNet
from nam_jax.models.size import multiply_adds
from tests.helpers import tiny
from tests.helpers.image_datasets import imagenet
from tests.helpers.tiny import digits as whole_digits
from train.benchmark import __main__ as benchmark
from train.benchmark import steps, variants
from train.benchmark.turns import Times
from train.benchmark.variants import measure_variants, with_fields
from train.core.command_line import call
from train.core.config.attentions import with_attention, with_attentions
from train.core.config.fields import replaced
from train.core.data import resident
from train.core.data.feed import Feed
from train.core.data.streaming import READY
from train.core.devices import chips
from train.core.engine import compiled_steps
from train.core.engine.experiment import build_experiment
from train.core.engine.feeds import train_example, train_feed
from train.core.errors import ConfigError, RunError

KEYS = {
    "images_per_second",
    "step_ms",
    "step_ms_p95",
    "compile_seconds",
    "time_vs_none",
    "utilisation",
    "flops",
    "bytes_accessed",
    "argument_bytes",
    "output_bytes",
    "temp_bytes",
    "peak_bytes",
    "fed_images_per_second",
    "data_wait",
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A network of one block in place of any other, and a name for the config."""

    def create(name, *, num_classes, attention, stem, dtype, axis_name, **_):
        fields = {"attention": attention, "stem": stem, "dtype": dtype, "axis_name": axis_name}
        return ResNet(BasicBlock, (1,), num_classes=num_classes, width=4, **fields)

    monkeypatch.setattr(models, "create", create)


@pytest.fixture(autouse=True)
def cache():
    """Gives back the compilation cache, without which steps are measured."""
    yield
    jax.config.update("jax_enable_compilation_cache", True)


def digits(**changes):
    return whole_digits(**{"batch_size": 8, **changes})


def measured(config, names, steps):
    return measure_variants(with_attentions(config, names), "small", steps, "none")


@pytest.mark.slow
def test_figures_of_two_attentions_stand_under_their_names(capsys):
    found = measured(digits(), ["nam", "none"], steps=2)
    assert {"none", "nam"} < set(found)
    for name in ("none", "nam"):
        assert set(found[name]) == KEYS
        assert all(v > 0 for k, v in found[name].items() if k not in ("utilisation", "data_wait"))
        assert found[name]["utilisation"] is None
        assert 0 <= found[name]["data_wait"] < 1
        assert found[name]["peak_bytes"] >= found[name]["temp_bytes"]
    assert found["none"]["time_vs_none"] == 1
    assert found["nam"]["flops"] > found["none"]["flops"]
    assert found["nam"]["temp_bytes"] > found["none"]["temp_bytes"]
    expected = {"config": "small", "batch_size": 8, "devices": 4, "device_kind": "cpu", "steps": 2}
    assert expected.items() <= found.items()
    assert found["versions"]["jax"] == jax.__version__
    *table, last = capsys.readouterr().out.splitlines()
    assert json.loads(last) == found
    assert [line.split()[0] for line in table] == ["variant", table[1], "nam", "none"]


@pytest.mark.slow
def test_what_fields_of_the_config_cost_stands_beside_it(capsys):
    texts = ["loss=sigmoid+loss_threshold=0.2", "data.image_size=12"]
    configs = with_fields(digits(**{"model.attention": "none", "optimizer.sparsity": 0.0}), texts)
    found = measure_variants(configs, "small", 2, "unchanged")
    assert found["config"] == "small"
    assert found["unchanged"]["time_vs_unchanged"] == 1
    for text in texts:
        assert set(found[text]) == KEYS - {"time_vs_none"} | {"time_vs_unchanged"}
        assert found[text]["flops"] > found["unchanged"]["flops"]
        assert found[text]["fed_images_per_second"] > 0
    header, _, *lines, _ = capsys.readouterr().out.splitlines()
    assert "vs unchanged" in header
    assert [line.split()[0] for line in lines] == list(configs)


def test_each_variant_is_fed_with_its_own_images(tmp_path, monkeypatch, capsys):
    tiny.use(monkeypatch)
    opened = []

    def feed(experiment):
        config = experiment.config
        opened.append((config.batch_size, config.log_every_steps, config.data.image_size))
        return train_feed(experiment)

    monkeypatch.setattr(steps, "train_feed", feed)
    texts = ["optimizer.momentum=0.5", "batch_size=16", "log_every_steps=1", "data.image_size=12"]
    absent = f"data.name=cifar100+data.dir={tmp_path}+data.mean=0.5+data.std=0.25"
    configs = with_fields(digits(**{"optimizer.sparsity": 0.0}), [*texts, absent])
    found = measure_variants(configs, "small", 1, "unchanged")
    every = digits().log_every_steps
    assert opened == [(8, every, 0), (16, every, 0), (8, 1, 0), (8, every, 12)]
    assert all(found[name]["fed_images_per_second"] > 0 for name in texts)
    assert found[absent]["fed_images_per_second"] is None
    assert f"not measured with a loader: cifar100 is not in {tmp_path} " in capsys.readouterr().out


def test_fields_are_parsed_and_checked_together():
    texts = ["loss=sigmoid+loss_threshold=0.2", "optimizer.learning_rate=1e+3"]
    config = digits()
    found = with_fields(config, texts)
    assert list(found) == ["unchanged", *texts]
    assert found["unchanged"] is config
    both, rate = (found[text] for text in texts)
    assert both == replaced(config, {"loss": "sigmoid", "loss_threshold": 0.2})
    assert rate.optimizer.learning_rate == 1000


def test_a_plus_within_a_value_stays():
    text = "data.train_split=train+test+seed=3"
    varied = with_fields(digits(), [text])[text]
    assert (varied.data.train_split, varied.seed) == ("train+test", 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.drop_path", r"got 'model.drop_path'; allowed: FIELD=VALUE, each field once"),
        ("seed=1+seed=2", "got 'seed=2'; allowed: FIELD=VALUE, each field once"),
        ("model.drop_pat=0", "config.model.drop_pat: .*did you mean config.model.drop_path"),
        ("model.drop_path=2", "config.model.drop_path: got "),
        ("loss_threshold=0.2", "config.loss_threshold"),
    ],
)
def test_fields_that_cannot_be_are_refused(text, message):
    with pytest.raises(ConfigError, match=rf"^--also {re.escape(text)}: {message}"):
        with_fields(digits(), [text])


def test_fields_that_are_given_twice_are_refused():
    with pytest.raises(ConfigError, match=r"^--also seed=1: it is given twice\.$"):
        with_fields(digits(), ["seed=1", "seed=1"])


@pytest.mark.slow
def test_figures_of_one_attention_stand_by_themselves(tmp_path, capsys):
    """Of a dataset that is not on disk, with the loader that would lay it on the device."""
    config = cifar100_resnet20.get_config()
    config.batch_size, config.data.dir = 8, str(tmp_path)
    found = measured(config, ["none"], steps=1)
    assert set(found) > KEYS
    assert (found["fed_images_per_second"], found["data_wait"]) == (None, None)
    first, *table, _ = capsys.readouterr().out.splitlines()
    assert first == f"not measured with a loader: cifar100 is not in {tmp_path} (config.data.dir)"
    assert len({len(line) for line in table}) == 1
    assert table[-1].split()[-2:] == ["–", "–"]


@pytest.mark.slow
def test_streaming_loader_feeds_the_steps(tmp_path):
    for split in ("train", "validation"):
        imagenet.write(tmp_path, imagenet.jpegs(16), split)
    experiment = steps.experiment_of(with_attention(imagenet.config(tmp_path), "none"))
    found = steps.measure({"none": experiment}, 2, "none")
    assert found["none"]["fed_images_per_second"] > 0
    assert 0 <= found["none"]["data_wait"] <= 1


@pytest.mark.parametrize("loader", ["resident", "streaming"])
def test_random_images_lie_like_those_of_the_loader(tmp_path, loader):
    changes = {"batch_size": 8, "data.dir": str(tmp_path), "data.loader": loader}
    config = replaced(cifar100_resnet20.get_config(), changes)
    experiment = steps.experiment_of(with_attention(config, "se"))
    images = steps.random_images(experiment)
    expected, *_ = train_example(experiment)

    def layout(x):
        return x.shape, x.dtype, x.sharding

    assert jax.tree.map(layout, images) == jax.tree.map(layout, expected)
    assert len(np.unique(images.images)) == 256
    assert 0 <= images.labels.min() < images.labels.max() < 100


def test_steps_are_dispatched_together_where_the_trainer_does_so(monkeypatch):
    tiny.use(monkeypatch)
    for module in (resident, compiled_steps):
        monkeypatch.setattr(module, "is_cpu", lambda mesh: False)
    monkeypatch.setattr(resident, "LONGEST_DISPATCH", 4)
    experiment = steps.experiment_of(with_attention(digits(), "none"))
    run = steps.CompiledStep(experiment, steps.random_images(experiment))
    counts, program = [], run.program

    def counted(state, split, count):
        counts.append(int(count))
        return program(state, split, count)

    run.program = counted
    run.start(10)
    run.wait()
    assert counts == [4, 4, 2]
    feed = train_feed(experiment)
    steps.fed_figures(run, feed, experiment.dispatches(0), 6)
    # A row of the log is due after 22 steps: the sixth dispatch ends there.
    assert counts[3:] == [4, 4, 4, 4, 4, 2, 4]


def test_attentions_without_scales_have_no_penalty():
    config = digits()
    assert config.optimizer.sparsity > 0
    assert with_attention(config, "se").optimizer.sparsity == 0
    tied = with_attention(config, "nam_tied")
    assert tied.optimizer.sparsity == config.optimizer.sparsity
    assert (tied.model.attention, config.model.attention) == ("nam_tied", "nam")


class Timed:
    """In place of a compiled run."""

    def __init__(self, experiment):
        self.experiment, self.compile_seconds = experiment, 1.234
        self.program = jax.jit(lambda x: x @ x).lower(np.ones((4, 4), np.float32)).compile()


def test_arithmetic_of_the_figures(monkeypatch):
    experiment = build_experiment(digits())
    times = Times([0.1 * n for n in range(1, 22)], [0.04, 0.05, 0.06])
    base = Times([], [0.02, 0.02, 0.02])
    monkeypatch.setattr(chips, "peak_flops", lambda kind: 1e6)
    found = steps.step_figures(Timed(experiment), times, "none", base)
    assert (found["step_ms"], found["step_ms_p95"]) == (1100, 2000)
    assert (found["images_per_second"], found["time_vs_none"]) == (160, 2.5)
    assert (found["flops"], found["compile_seconds"]) == (2 * 4**3, 1.23)
    # Each of the four devices.
    flops = 6 * multiply_adds(experiment.model, (8, 8, 1)) * 160
    assert found["utilisation"] == pytest.approx(flops / 4e6, abs=1e-4)
    assert steps.step_figures(Timed(experiment), times, "none", None)["time_vs_none"] is None


class Counted:
    """In place of a compiled run: a step takes two seconds of a clock that is none."""

    def __init__(self, experiment, clock):
        self.experiment, self.clock, self.seen = experiment, clock, []

    def dispatch(self, arguments):
        self.seen.append(arguments)
        self.clock[0] += 2.0
        return 0.0

    def wait(self):
        pass


def test_waiting_for_images_is_a_share_of_the_time():
    clock = [0.0]

    def batches(start):
        for number in range(100):
            clock[0] += 0.5
            yield (number,)

    run = Counted(build_experiment(digits()), clock)
    found = steps.fed_figures(
        run, Feed((), batches), run.experiment.dispatches(0), 4, clock=lambda: clock[0]
    )
    assert found == {"fed_images_per_second": 3.2, "data_wait": 0.2}
    assert run.seen == [(n,) for n in range(READY + 4)]


def test_step_that_does_not_run_is_refused_in_one_line(monkeypatch):
    def fail(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nand more")

    monkeypatch.setattr(variants, "measure", fail)
    with pytest.raises(
        RunError, match=r"config\.batch_size takes less \(RESOURCE_EXHAUSTED: out of memory\)"
    ) as error:
        measured(digits(), ["nam"], steps=1)
    assert len(str(error.value).splitlines()) == 1


def test_batch_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match="10 images do not divide over 4 devices"):
        measured(digits(batch_size=10), ["nam"], steps=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attention=none,sae"], "error: --attention: got 'none,sae': there is no attention"),
        (["--steps=0"], "error: --steps: got '0'; allowed: "),
        (["--attention=nam", "--also=seed=1"], "error: --also and --attention each name what"),
        (["--json=no/such/directory/f.json"], "error: --json: got 'no/such/directory/f.json'"),
    ],
)
def test_wrong_options_are_refused_in_one_line(arguments, message, capsys):
    arguments = ["--config=configs/digits_resnet20.py", *arguments]
    assert call(benchmark.main, benchmark.parser(), arguments) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(message)
    assert len(error.splitlines()) == 1
