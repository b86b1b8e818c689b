"""Attentions with hyper-parameters, as texts of a command line and as configs."""

import pytest

from nam_jax.attention import NAMES, has_nam_scales
from train.core.config.attentions import (
    attention_name,
    attention_options,
    with_attention,
    with_attentions,
)
from train.core.config.checks import validate
from train.core.config.fields import default_config, flatten, replaced
from train.core.errors import ConfigError

VARIED = {
    "model.attention": "nam",
    "model.normalization": "mean",
    "model.gate_scale": 2.0,
    "model.weight_gradient": True,
    "optimizer.sparsity": 1e-4,
}


def test_text_and_config_say_the_same():
    text = "nam+normalization=mean+gate_scale=2.0+weight_gradient=True"
    config = with_attention(default_config(), text)
    options = {"normalization": "mean", "gate_scale": 2.0, "weight_gradient": True}
    assert attention_options(dict(flatten(config))) == options
    assert attention_name(config) == text
    assert attention_name(with_attention(default_config(), "nam+gate_scale=1")) == "nam"
    varied = with_attention(default_config(), "nam+gate_scale=1e+1+normalization=mean").model
    assert (varied.gate_scale, varied.normalization) == (10, "mean")


def test_what_a_text_leaves_out_is_that_of_the_config():
    config = replaced(default_config(), {"model.attention": "nam", "model.normalization": "mean"})
    found = with_attentions(config, ["none", "nam", "nam+normalization=share", "nam+gate_scale=2"])
    assert list(found) == [
        "none",
        "nam+normalization=mean",
        "nam",
        "nam+normalization=mean+gate_scale=2.0",
    ]
    assert [c.model.normalization for c in found.values()] == ["share", "mean", "share", "mean"]
    message = "^--attention: got 'nam,nam.gate_scale=1', with nam.normalization=mean twice"
    with pytest.raises(ConfigError, match=message):
        with_attentions(config, ["nam", "nam+gate_scale=1"])


@pytest.mark.parametrize("name", NAMES)
def test_another_attention_keeps_what_it_has(name):
    config = with_attention(replaced(default_config(), VARIED), name)
    validate(config)
    kept = has_nam_scales(name)
    assert (config.model.normalization, config.optimizer.sparsity) == (
        ("mean", 1e-4) if kept else ("share", 0.0)
    )
    assert bool(attention_options(dict(flatten(config)))) == kept


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat", "there is no attention 'cat'; choose one of none, "),
        ("", "there is no attention ''; choose one of none, "),
        (
            "nam+",
            r"got \+; allowed behind nam\+: FIELD=VALUE, each FIELD of norm",
        ),
        ("nam+normalization", r"got \+normalization; allowed behind nam\+: FIELD=VALUE"),
        ("nam+momentum=0.5", r"got \+momentum=0.5; allowed behind nam\+: FIELD=VALUE"),
        ("se+gate_scale=2", r"got \+gate_scale=2; allowed behind se\+: nothing\.$"),
        ("nam+gate_scale=2+gate_scale=3", r"got \+gate_scale=3; allowed behind nam\+: .* once\.$"),
        ("nam+gate_scale=0", "config.model.gate_scale: got 0.0; allowed: above 0 and at most"),
        ("nam+normalization=sum", "config.model.normalization: got 'sum'; allowed: one of share"),
    ],
)
def test_wrong_texts(text, message):
    with pytest.raises(ConfigError, match=message) as error:
        with_attention(default_config(), text)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["normalization", "gate_scale", "weight_gradient"])
def test_hyperparameters_are_of_attentions_that_have_them(name):
    config = replaced(default_config(), {"model.attention": "se"})
    validate(config)
    wrong = replaced(config, {f"model.{name}": VARIED[f"model.{name}"]})
    message = f"^config.model.{name}: .*attention='se', which has no such"
    with pytest.raises(ConfigError, match=message):
        validate(wrong)
