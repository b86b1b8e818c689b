"""Every value of every config field builds its step, or is refused in one line that names it."""

import contextlib
import signal
import tempfile
from functools import partial

import numpy as np
import pytest
from etils import epath
from hypothesis import HealthCheck, assume, given, reject, settings
from hypothesis import strategies as st

from configs import digits_resnet20
from nam_jax import models
from nam_jax.attention import NAMES as ATTENTIONS
from nam_jax.models.resnet import BasicBlock, Bottleneck, ResNet
from tests.helpers import tiny
from tests.helpers.image_datasets import tfds_writer
from tests.helpers.values import allowed, foreign, of_kind
from train.core.config.checks import validate
from train.core.config.fields import FIELDS, default_config, flatten, replaced
from train.core.engine import loop
from train.core.engine.compiled_steps import lower_train_step
from train.core.engine.experiment import build_experiment
from train.core.engine.feeds import train_example
from train.core.engine.state import abstract_state
from train.core.errors import ConfigError, RunError

pytestmark = pytest.mark.faults

# Nothing here takes a tenth of it; what hangs does.
LIMIT_SECONDS = 120


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A dataset for the streaming loader."""
    path = tmp_path_factory.mktemp("datasets")
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), np.uint8)
    for split, count in (("train", 24), ("test", 8)):
        labels = np.arange(count) % 10
        tfds_writer.write(path, "tiny", images[:count], labels, 10, split)
    return path


@pytest.fixture(scope="module", autouse=True)
def small_networks():
    """Networks of two blocks: tracing the real ones takes seconds."""
    basic = partial(ResNet, BasicBlock, (1, 1), width=8, shortcut="pad_centre")
    bottleneck = partial(ResNet, Bottleneck, (1, 1), width=8)
    small = dict.fromkeys(models.NAMES, bottleneck) | {"resnet20": basic}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "_MODELS", small)
        yield


@contextlib.contextmanager
def limited():
    """Fails where something hangs."""

    def fail(number, frame):
        raise TimeoutError(f"it takes more than {LIMIT_SECONDS} seconds")

    previous = signal.signal(signal.SIGALRM, fail)
    signal.alarm(LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def assert_named(error, names):
    message = str(error)
    assert len(message.splitlines()) == 1, message
    assert any(f"config.{name}" in message for name in names), (message, names)


@pytest.mark.parametrize("name", FIELDS)
@given(data=st.data())
def test_any_value_is_accepted_or_the_field_is_named(name, data):
    config = replaced(default_config(), {name: data.draw(of_kind(name) | foreign)})
    with limited():
        try:
            validate(config)
        except ConfigError as error:
            assert_named(error, [name])


@pytest.mark.parametrize("name", FIELDS)
def test_number_too_long_to_be_written_is_refused(name):
    config = replaced(default_config(), {name: 10**5000})
    with pytest.raises(ConfigError) as caught:
        validate(config)
    assert_named(caught.value, [name])


@st.composite
def changes(draw, most):
    """Some fields with values: three of four are those that the field allows."""
    names = draw(st.lists(st.sampled_from(list(FIELDS)), max_size=most, unique=True))
    changed = {"model.attention": draw(st.sampled_from(ATTENTIONS))}
    for name in names:
        is_allowed = draw(st.integers(0, 3))
        changed[name] = draw(allowed(name) if is_allowed else of_kind(name) | foreign)
    return changed


def base(loader, directory):
    """A small config that is right."""
    config = digits_resnet20.get_config()
    config.optimizer.sparsity = 0.0
    if loader != "digits":
        config.data.name, config.data.dir, config.data.loader = "tiny", str(directory), loader
        config.batch_size, config.data.workers = 8, 1
    return config


loaders = st.sampled_from(["digits", "resident", "streaming"])


@pytest.mark.slow
@given(loader=loaders, changed=changes(4))
def test_several_values_build_their_step_or_one_field_is_named(directory, loader, changed):
    config = replaced(base(loader, directory), changed)
    with limited():
        try:
            built = build_experiment(config)
        except ConfigError as error:
            # The first two belong to the loader that was drawn.
            assert_named(error, ["data.name", "data.loader", *changed])
            return
        lower_train_step(built, abstract_state(built), train_example(built))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 2**31 - 1),
        ("accumulate_steps", 7),
        ("data.crop_padding", 9),
        ("optimizer.warmup_epochs", 1e38),
        ("optimizer.name", "lars"),
        ("optimizer.sparsity", 0.1),
    ],
)
def test_value_that_does_not_fit_the_others_is_named(name, value):
    config = replaced(base("digits", None), {"model.attention": "se", name: value})
    with pytest.raises(ConfigError) as caught:
        build_experiment(config)
    assert_named(caught.value, [name])


def test_pairs_that_devices_cannot_make_are_named():
    config = base("digits", None)
    config.batch_size, config.data.mixup = 4, 0.1
    with pytest.raises(ConfigError) as caught:
        build_experiment(config)
    assert_named(caught.value, ["data.mixup"])


# Of larger ones two steps would take minutes.
LARGEST = {"batch_size": 64, "accumulate_steps": 4, "data.image_size": 32}
# The tiny network has no NAM.
TWO_STEPS = {"steps": 2, "optimizer.sparsity": 0.0}


@pytest.fixture(scope="module")
def tiny_network():
    """Of the small ones compilation takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        tiny.use(patch)
        yield


@pytest.mark.long
@pytest.mark.usefixtures("tiny_network")
@settings(max_examples=40, suppress_health_check=[HealthCheck.filter_too_much])
@given(loader=loaders, changed=changes(4))
def test_what_is_accepted_trains_two_steps_or_says_why_not(directory, loader, changed):
    config = replaced(base(loader, directory), changed | TWO_STEPS)
    with limited(), tempfile.TemporaryDirectory() as workdir:
        try:
            built = build_experiment(config)
        except ConfigError:
            reject()
        values = dict(flatten(config))
        assume(all(values[name] <= largest for name, largest in LARGEST.items()))
        # A loss that is not finite, or weights that are not there.
        with contextlib.suppress(ConfigError, RunError):
            assert loop.train(built, epath.Path(workdir))["steps"] == 2
