"""The config's schema: what every field accepts, and what the errors say."""

import re
from typing import get_args

import pytest

from nam_jax.attention import NAMES as ATTENTIONS
from train.core.config.checks import validate
from train.core.config.data_fields import Interpolation, LoaderName
from train.core.config.fields import FIELDS, default_config, flatten, marked, reference, replaced
from train.core.config.optimizer_fields import OptimizerName
from train.core.config.parsing import from_fields
from train.core.config.spec import Mark
from train.core.data.crop import INTERPOLATIONS
from train.core.data.loaders import LOADERS
from train.core.engine.optimizer.updates import OPTIMIZERS
from train.core.errors import ConfigError

MANY = tuple(i / 102 for i in range(1, 102))
# Values just outside a field's range, of its own type; the boundary itself where it is excluded.
OUT_OF_RANGE = {
    "accumulate_steps": [0, 257],
    "optimizer.name": ["adam"],
    "optimizer.reference_batch_size": [-1, 2**31],
    "model.pretrained": ["a\nb.pth"],
    "model.pretrained_key": ["a\nb"],
    "seed": [-1, 2**32],
    "batch_size": [0, 2**20 + 1],
    "epochs": [0, 2**31],
    "steps": [-1, 2**31],
    "eval_every_epochs": [0, 2**31],
    "log_every_steps": [0, 2**31],
    "log.wandb_project": ["a/b", "a\nb", "a" * 129],
    "loss": ["cross_entropy"],
    "loss_threshold": [-0.1, 1.0],
    "label_smoothing": [-0.1, 1.0],
    "ema_decay": [-0.1, 1.0],
    "model.name": ["resnet51", ""],
    "model.attention": ["nam_", "NAM"],
    "model.normalization": ["sum", ""],
    "model.gate_scale": [0.0, -1.0, 1000.1],
    "model.stem": ["mnist"],
    "model.shortcut": ["identity", "pad_center"],
    "model.width": [0.0, 10.1],
    "model.dtype": ["float16", "float128"],
    "model.sync_bn_devices": [0, -2, 1_000_001],
    "model.drop_path": [-0.1, 1.0],
    "model.dropout": [-0.1, 1.0],
    "data.name": ["", "cifar-100", "a/..", "a:..", "a:1", "données"],
    "data.dir": ["", "a\0b", "\udc80"],
    "data.classes": ["a\nb"],
    "data.eval_fraction": [0.0, 0.0009, 1.0],
    "data.train_split": ["", "a\nb"],
    "data.eval_split": ["", "a\nb"],
    "data.loader": ["on_disk"],
    "data.resident_limit_gb": [0.0, -1.0, 1.1e6],
    "data.workers": [-1, 1001],
    "data.max_bad_fraction": [-0.1, 1.0],
    "data.image_size": [-1, 4097],
    "data.eval_image_size": [-1, 4097],
    "data.crop": ["center"],
    "data.eval_crop_ratio": [0.099, 1.1],
    "data.interpolation": ["nearest"],
    "data.mean": [(), (1.1,), (0.5, -0.1, 0.5)],
    "data.std": [(), (0.0009,), (0.2, -0.1, 0.2)],
    "data.crop_padding": [-1, 4097],
    "data.augmentation": ["autoaugment"],
    "data.randaugment_operations": [0, 101],
    "data.randaugment_level": [-1, 31],
    "data.randaugment_std": [-0.1],
    "data.augment_repeats": [0, 101],
    "data.random_erasing": [-0.1, 1.1],
    "data.mixup": [-0.1],
    "data.cutmix": [-0.1],
    "optimizer.learning_rate": [0.0, -0.1],
    "optimizer.schedule": ["linear"],
    "optimizer.warmup_epochs": [-0.5],
    "optimizer.milestones": [(0.6, 0.3), (0.3, 0.3), (0.0,), (0.5, 1.0), MANY],
    "optimizer.decay_factor": [0.0, 1.1],
    "optimizer.momentum": [-0.1, 1.0],
    "optimizer.betas": [(), (0.9,), (0.9, 1.0), (-0.1, 0.9), (0.9, 0.9, 0.9)],
    "optimizer.epsilon": [0.0, 1.1],
    "optimizer.weight_decay": [-5e-4],
    "optimizer.weight_decay_on": ["bias"],
    "optimizer.clip_norm": [-1.0],
    "optimizer.sparsity": [-1e-4],
    "optimizer.sparsity_mode": ["l1"],
    "checkpoint.every_steps": [-1, 2**31],
    "checkpoint.keep": [1, 2**31],
}

WRONG_TYPE = {
    int: [1.0, "1", True, None],
    float: ["0.1", True, None, (0.1,)],
    bool: [1, "True", None],
    str: [1, None, ("test",)],
    tuple: [0.5, "0.5", None, ("0.5",), (True,)],
}

WITH_SCALES = [name for name in ATTENTIONS if name.startswith("nam")]
# Of the numbers near 0 and above all bounds float32 makes zeros and infinities.
NO_FLOAT32 = [float("nan"), float("inf"), float("-inf"), 1e-39, 1e39, 2**31, 10**400]


def config_with(name, value):
    """The default config with any value in one field."""
    return replaced(default_config(), {name: value})


def fields_of(*kinds):
    return [name for name, field in FIELDS.items() if type(field.default) in kinds]


def pairs(values_of):
    return [(name, value) for name in FIELDS for value in values_of(name)]


def assert_refused(name, value):
    with pytest.raises(ConfigError) as error:
        validate(config_with(name, value))
    message = str(error.value)
    assert f"config.{name}: got {value!r};" in message
    assert f"allowed: {FIELDS[name].allowed}" in message


def test_default_config_is_valid_and_has_no_other_fields():
    config = default_config()
    validate(config)
    assert dict(flatten(config)) == {name: field.default for name, field in FIELDS.items()}
    with pytest.raises(AttributeError):
        config.model.depth = 50


@pytest.mark.parametrize("name", FIELDS)
def test_default_passes_its_own_test(name):
    field = FIELDS[name]
    assert field.test(field.default)
    assert field.doc
    assert field.allowed


def test_every_field_with_a_range_has_a_value_outside_it():
    assert OUT_OF_RANGE.keys() == FIELDS.keys() - set(fields_of(bool))


@pytest.mark.parametrize(("name", "value"), pairs(lambda name: OUT_OF_RANGE.get(name, [])))
def test_value_out_of_range_is_refused(name, value):
    assert_refused(name, value)


@pytest.mark.parametrize(
    ("name", "value"), pairs(lambda name: WRONG_TYPE[type(FIELDS[name].default)])
)
def test_value_of_a_wrong_type_is_refused(name, value):
    assert_refused(name, value)


@pytest.mark.parametrize("value", NO_FLOAT32)
@pytest.mark.parametrize("name", fields_of(float, tuple))
def test_number_that_float32_does_not_hold_is_refused(name, value):
    is_tuple = isinstance(FIELDS[name].default, tuple)
    assert_refused(name, (value,) if is_tuple else value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 2**32 - 1),
        ("model.sync_bn_devices", -1),
        ("data.mean", [0, 0.5, 1]),
        ("data.mixup", 0),
        ("optimizer.milestones", ()),
        ("optimizer.learning_rate", 1),
        ("optimizer.momentum", 0.0),
        ("checkpoint.keep", 100),
    ],
)
def test_value_at_the_edge_is_accepted(name, value):
    validate(config_with(name, value))


@pytest.mark.parametrize("name", FIELDS)
def test_missing_field_is_named(name):
    values = dict(flatten(default_config()))
    del values[name]
    with pytest.raises(ConfigError, match=rf"config\.{re.escape(name)}: missing"):
        from_fields(values)


@pytest.mark.parametrize("name", ["depth", "model.depth", "optimizer.learning_rates"])
def test_unknown_field_is_named(name):
    values = {**dict(flatten(default_config())), name: 50}
    with pytest.raises(ConfigError, match=rf"config\.{re.escape(name)}: there is no such field"):
        from_fields(values)
    with pytest.raises(AttributeError):
        config_with(name, 50)


@pytest.mark.parametrize("part", ["model", "data", "optimizer", "checkpoint"])
def test_part_that_is_none_is_named(part):
    with pytest.raises(ConfigError, match=rf"config\.{part}: there is no such field"):
        validate(config_with(part, 3))


def test_a_copy_leaves_the_config_as_it_is():
    config = default_config()
    assert replaced(config, {"model.name": "resnet18", "seed": 1}).model.name == "resnet18"
    assert config == default_config()


def with_sparsity(attention, sparsity):
    config = config_with("model.attention", attention)
    config.optimizer.sparsity = sparsity
    return config


@pytest.mark.parametrize("attention", sorted(set(ATTENTIONS) - set(WITH_SCALES)))
def test_sparsity_without_nam_scales_is_refused(attention):
    with pytest.raises(ConfigError, match=rf"config\.optimizer\.sparsity: 0\.1 .*'{attention}'"):
        validate(with_sparsity(attention, 0.1))
    validate(with_sparsity(attention, 0.0))


@pytest.mark.parametrize("attention", WITH_SCALES)
def test_sparsity_with_nam_scales_is_accepted(attention):
    validate(with_sparsity(attention, 0.1))


@pytest.mark.parametrize(
    ("field", "value", "without", "within"),
    [
        ("model.shortcut", "pad_end", "mobilenet_v2", "resnet18"),
        ("model.width", 0.5, "resnet18", "mobilenet_v2"),
    ],
)
def test_field_that_the_network_does_not_have_is_refused(field, value, without, within):
    config = replaced(default_config(), {"model.name": without, field: value})
    with pytest.raises(ConfigError, match=rf"config\.{field}: {value!r} .*'{without}'.* set it to"):
        validate(config)
    validate(replaced(config, {"model.name": within}))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"loss_threshold": 0.2}, "loss_threshold"),
        ({"data.augment_repeats": 100, "batch_size": 99}, "data.augment_repeats"),
        ({"data.augment_repeats": 50, "batch_size": 99, "data.mixup": 0.1}, "data.augment_repeats"),
        ({"data.augment_repeats": 50, "batch_size": 99, "data.cutmix": 1}, "data.augment_repeats"),
    ],
)
def test_value_that_does_not_fit_others_is_refused(changes, name):
    with pytest.raises(ConfigError, match=rf"config\.{name}: {changes[name]} "):
        validate(replaced(default_config(), changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_threshold": 0.2, "loss": "sigmoid"},
        {"data.augment_repeats": 100, "batch_size": 100},
        {"data.augment_repeats": 50, "batch_size": 100, "data.mixup": 0.1},
        {"batch_size": 1, "data.mixup": 0.1},
    ],
)
def test_values_that_fit_one_another_are_accepted(changes):
    validate(replaced(default_config(), changes))


@pytest.mark.parametrize(
    ("name", "value"), [("data.crop", "resized"), ("data.augmentation", "randaugment")]
)
def test_work_for_the_host_needs_the_streaming_loader(name, value):
    config = config_with(name, value)
    with pytest.raises(ConfigError, match=rf"config\.{name}: '{value}' .*loader=streaming"):
        validate(config)
    config.data.loader = "streaming"
    validate(config)


def test_what_may_differ_is_marked():
    assert marked(Mark.LOCAL) == {"data.classes", "data.dir", "data.workers"}
    free = {"log_every_steps", "data.loader", "data.resident_limit_gb", "data.max_bad_fraction"}
    free |= {"checkpoint.every_steps", "checkpoint.keep", "log.wandb_project", *marked(Mark.LOCAL)}
    assert marked(Mark.FREE) == free
    evaluation = {"accumulate_steps", "batch_size", "data.eval_split", "data.eval_crop_ratio"}
    evaluation |= {
        "data.eval_image_size",
        "data.interpolation",
        "model.pretrained",
        "model.pretrained_key",
    }
    evaluation |= {"model.remat", "model.sync_bn_devices"}
    assert marked(Mark.EVALUATION) == evaluation


def test_reference_tells_of_every_field():
    paragraphs = reference().split("\n")
    for name, field in FIELDS.items():
        at = paragraphs.index(f"{name} = {field.default!r}")
        assert field.doc in paragraphs[at + 1]
        assert field.allowed in paragraphs[at + 1]


@pytest.mark.parametrize(
    ("names", "by_name"),
    [(OptimizerName, OPTIMIZERS), (Interpolation, INTERPOLATIONS), (LoaderName, LOADERS)],
)
def test_every_choice_has_what_it_chooses(names, by_name):
    assert get_args(names) == tuple(by_name)
