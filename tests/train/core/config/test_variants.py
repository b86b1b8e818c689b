"""Attentions with hyper-parameters, as texts of a command line and as configs."""

import pytest

from nam_jax.attention import NAMES, has_nam_scales
from train.core.config.checks import validate
from train.core.config.fields import default_config, replaced
from train.core.config.variants import attention_options, variant_of, with_attention
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
    assert attention_options(config) == options
    assert variant_of(config) == text
    assert variant_of(with_attention(default_config(), "nam+gate_scale=1")) == "nam"


@pytest.mark.parametrize("name", NAMES)
def test_another_attention_keeps_what_it_has(name):
    config = with_attention(replaced(default_config(), VARIED), name)
    validate(config)
    kept = has_nam_scales(name)
    assert (config.model.normalization, config.optimizer.sparsity) == (
        ("mean", 1e-4) if kept else ("share", 0.0)
    )
    assert bool(attention_options(config)) == kept


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat", "there is no attention 'cat'; choose one of none, "),
        ("", "there is no attention ''; choose one of none, "),
        ("nam+", r"nam\+: got \+; allowed behind nam: FIELD=VALUE, a FIELD of normalization, "),
        ("nam+normalization", r"got \+normalization; allowed behind nam: FIELD=VALUE"),
        ("nam+momentum=0.5", r"got \+momentum=0.5; allowed behind nam: FIELD=VALUE"),
        ("se+gate_scale=2", r"got \+gate_scale=2; allowed behind se: no \+\.$"),
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
    with pytest.raises(ConfigError, match=f"^config.model.{name}: .*attention='se', which has"):
        validate(wrong)
