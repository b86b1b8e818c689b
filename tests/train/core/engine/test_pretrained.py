"""Runs that start from PyTorch weights."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import traverse_util

from nam_jax import models
from nam_jax.models.resnet import BasicBlock, ResNet
from nam_jax.torch_import import MisfitError
from nam_jax.torch_import.misfit import Cause
from tests.helpers.commands import call
from tests.helpers.tiny import digits
from tests.helpers.torch_weights import networks
from tests.helpers.torch_weights.files import literal, state_dict, storage, tensor, write_zip
from train.core.engine import loop
from train.core.engine.experiment import Experiment, build_experiment
from train.core.engine.pretrained import explained, load_pretrained
from train.core.engine.state import initial_state
from train.core.errors import ConfigError
from train.core.workdir import directory
from train.core.workdir.checkpoint_files import saved_steps

IMAGE = (8, 8, 1)


def build(path: Path, **changes: Any) -> Experiment:
    changes = {"model.attention": "nam_channel", "model.pretrained": str(path), **changes}
    return build_experiment(digits(**{"steps": 1, **changes}))


def model(num_classes: int, attention: str) -> Any:
    return models.create("resnet20", num_classes=num_classes, attention=attention, stem="cifar")


def save(path: Path, num_classes: int, attention: str, prefix: str = "") -> Any:
    """Writes PyTorch weights with random numbers; returns them as variables."""
    return networks.save(path, model(num_classes, attention), IMAGE, prefix)


def flat(variables: Any) -> dict[str, np.ndarray]:
    return traverse_util.flatten_dict(variables, sep="/")


def load(path: Path, seed: int = 0) -> dict[str, np.ndarray]:
    return flat(load_pretrained(build(path, seed=seed)))


@pytest.fixture
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """For runs: one block in place of nine."""

    def create(name: str, *, num_classes: int, attention: str, stem: str, **_: Any) -> ResNet:
        fields = {"attention": attention, "stem": stem, "width": 16}
        return ResNet(BasicBlock, (1,), num_classes=num_classes, **fields)

    monkeypatch.setattr(models, "create", create)


@pytest.mark.usefixtures("small_network")
def test_all_of_a_fitting_file_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = flat(save(tmp_path / "w.npz", 10, "nam_channel", prefix="module."))
    actual = load(tmp_path / "w.npz")
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    assert f"weights from {tmp_path / 'w.npz'}; fresh: nothing" in capsys.readouterr().out


def save_checkpoint(path: Path, **state_dicts: dict[str, np.ndarray]) -> None:
    """Writes a file of torch.save with several state dicts."""
    storages: dict[str, bytes] = {}
    content = {"epoch": literal(3)}
    for key, arrays in state_dicts.items():
        entries = {}
        for name, array in arrays.items():
            number = str(len(storages))
            storages[number] = array.astype(np.float32).tobytes()
            strides = tuple(stride // array.itemsize for stride in array.strides)
            entries[name] = tensor(array.shape, strides, of=storage(key=number))
        content[key] = state_dict(**entries)[2:-1]
    write_zip(path, state_dict(**content), storages)


MODEL = "--config.model.pretrained_key=model takes that"
EMA = "--config.model.pretrained_key=model_ema takes that"


@pytest.mark.usefixtures("small_network")
@pytest.mark.parametrize(
    ("keys", "key", "taken", "said"),
    [
        (["model"], "", "model", ": its model"),
        (["model_ema"], "", "model_ema", ": its model_ema"),
        (["model_ema", "model"], "", "model", f": its model, not model_ema ({EMA})"),
        (["model_ema", "model"], "model_ema", "model_ema", f": its model_ema, not model ({MODEL})"),
    ],
)
def test_which_state_dict_was_taken_is_said(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    keys: list[str],
    key: str,
    taken: str,
    said: str,
) -> None:
    save(tmp_path / "w.npz", 10, "nam_channel")
    with np.load(tmp_path / "w.npz") as file:
        arrays = {name: np.ascontiguousarray(value) for name, value in file.items()}
    path = tmp_path / "w.ckpt"
    # The length of its key tells one from another.
    save_checkpoint(path, **{each: {k: v + len(each) for k, v in arrays.items()} for each in keys})
    actual = flat(load_pretrained(build(path, **{"model.pretrained_key": key})))
    expected = (arrays["bn1.weight"] + len(taken)).astype(np.float32)
    np.testing.assert_array_equal(actual["params/bn1/scale"], expected)
    assert f"weights from {path}{said}; fresh: nothing\n" in capsys.readouterr().out


@pytest.mark.parametrize(("keys", "key"), [(["model"], "net"), (["student", "teacher"], "")])
def test_key_that_names_none_is_refused(tmp_path: Path, keys: list[str], key: str) -> None:
    path = tmp_path / "w.th"
    save_checkpoint(path, **{key: {"fc.bias": np.zeros(10)} for key in keys})
    match = rf"^config\.model\.pretrained_key: {path} .* {', '.join(keys)}$"
    with pytest.raises(ConfigError, match=match):
        load_pretrained(build(path, **{"model.pretrained_key": key}))


def test_key_without_a_file_is_refused() -> None:
    match = r"^config\.model\.pretrained_key: 'net' without a file; set config\.model\.pretrained"
    with pytest.raises(ConfigError, match=match):
        build(Path("spam"), **{"model.pretrained": "", "model.pretrained_key": "net"})


@pytest.mark.slow
def test_another_number_of_classes_gets_a_fresh_head(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = flat(save(tmp_path / "w.npz", 7, "nam_channel"))
    first, again, other = (load(tmp_path / "w.npz", seed=seed) for seed in (0, 0, 1))
    assert "fresh: fc\n" in capsys.readouterr().out
    for name, value in first.items():
        if "/fc/" not in name:
            np.testing.assert_array_equal(value, expected[name], err_msg=name)
    head = "params/fc/kernel"
    assert first[head].shape == (64, 10)
    np.testing.assert_array_equal(first[head], again[head])
    assert not np.array_equal(first[head], other[head])


def test_a_backbone_keeps_the_attention_fresh(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = flat(save(tmp_path / "w.npz", 10, "none"))
    actual = load(tmp_path / "w.npz")
    blocks = [f"layer{i // 3 + 1}_{i % 3}/attention" for i in range(5)]
    assert f"fresh: {', '.join(blocks)} and 4 more\n" in capsys.readouterr().out
    for name, value in actual.items():
        if "attention" in name:
            fresh = 1.0 if name.endswith(("scale", "var")) else 0.0
            np.testing.assert_array_equal(value, np.full_like(value, fresh), err_msg=name)
        else:
            np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.usefixtures("small_network")
@pytest.mark.parametrize("ema_decay", [pytest.param(0.0, marks=pytest.mark.slow), 0.9])
def test_a_run_starts_from_the_file(tmp_path: Path, ema_decay: float) -> None:
    expected = save(tmp_path / "w.npz", 10, "nam_channel")
    experiment = build(tmp_path / "w.npz", ema_decay=ema_decay)
    state = initial_state(experiment, load_pretrained(experiment))
    jax.tree.map(np.testing.assert_array_equal, state.variables, expected)
    # It trains: nothing that was read is donated twice.
    summary = loop.train(experiment, tmp_path / "run")
    assert summary["steps"] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("small_network")
def test_a_run_that_has_saved_goes_on_without_the_file(tmp_path: Path) -> None:
    save(tmp_path / "w.npz", 10, "nam_channel")
    experiment = build(tmp_path / "w.npz", **{"checkpoint.every_steps": 1})
    loop.train(experiment, tmp_path / "run")
    (tmp_path / "w.npz").unlink()
    (tmp_path / "run" / "summary.json").unlink()
    summary = loop.train(experiment, tmp_path / "run")
    assert summary["steps"] == 1


@pytest.mark.usefixtures("small_network")
def test_an_unfinished_checkpoint_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    save(tmp_path / "w.npz", 10, "nam_channel")
    experiment = build(tmp_path / "w.npz")
    (tmp_path / "run" / "checkpoints" / "22.orbax-checkpoint-tmp").mkdir(parents=True)
    assert not saved_steps(tmp_path / "run" / "checkpoints")
    directory.claim(tmp_path / "run", experiment.config)
    (tmp_path / "w.npz").unlink()
    with pytest.raises(ConfigError, match="No such file"):
        loop.train(experiment, tmp_path / "run")


@pytest.mark.usefixtures("small_network")
@pytest.mark.parametrize("value", [np.nan, "text"])
def test_weights_that_are_no_finite_numbers_are_refused(tmp_path: Path, value: Any) -> None:
    save(tmp_path / "w.npz", 10, "nam_channel")
    arrays = dict(np.load(tmp_path / "w.npz"))
    arrays["bn1.bias"] = np.full(16, value)
    np.savez(tmp_path / "w.npz", **arrays)
    match = "not finite" if value is np.nan else "not real numbers: bn1.bias <U4"
    with pytest.raises(ConfigError, match=match):
        load(tmp_path / "w.npz")


@pytest.mark.usefixtures("small_network")
@pytest.mark.parametrize("case", ["missing", "damaged", "misfit"])
def test_a_wrong_file_is_refused_before_anything_is_written(tmp_path: Path, case: str) -> None:
    path = tmp_path / "w.npz"
    if case == "damaged":
        path.write_bytes(b"PK")
    if case == "misfit":
        np.savez(path, **{"conv1.weight": np.zeros((3, 3))})
    experiment = build(path)
    expected = {"missing": "No such file", "damaged": "cannot be read", "misfit": "does not fit"}
    with pytest.raises(ConfigError, match=rf"config\.model\.pretrained: .*{expected[case]}"):
        loop.train(experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("small_network")
def test_what_was_adapted_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = flat(save(tmp_path / "w.npz", 10, "nam_channel"))
    state_dict = {
        f"module.{name}".replace(".fc.", ".linear."): value
        for name, value in np.load(tmp_path / "w.npz").items()
    }
    kernel = state_dict["module.conv1.weight"]
    colours = np.concatenate([kernel, 2 * kernel, -kernel], 1)
    np.savez(tmp_path / "w.npz", **state_dict | {"module.conv1.weight": colours})
    actual = load(tmp_path / "w.npz")
    expected["params/conv1/kernel"] = 2 * expected["params/conv1/kernel"]
    for name, value in actual.items():
        np.testing.assert_allclose(value, expected[name], 1e-6, err_msg=name)
    assert (
        "; fresh: nothing; adapted: prefix 'module.' dropped; 'linear' taken for the classifier "
        "'fc'; conv1.weight summed over its 3 channels\n"
    ) in capsys.readouterr().out


@pytest.mark.usefixtures("small_network")
def test_misfit_names_the_options_of_the_command(tmp_path: Path) -> None:
    save(tmp_path / "w.npz", 10, "se")
    run = tmp_path / "run"
    options = "--config.model.attention=nam", f"--config.model.pretrained={tmp_path / 'w.npz'}"
    config = "--config", "configs/digits_resnet20.py"
    result = call("main", *config, *options, "--workdir", str(run), "--num_processes=1")
    assert result.code == 2
    first, *lists = result.err.splitlines()
    assert first == (
        f"error: config.model.pretrained: {tmp_path / 'w.npz'} does not fit the network: its "
        "attention is se, and not nam. Try --config.model.attention=se."
    )
    assert lists == ["left over: layer1.0.se.fc1.weight (1, 16), layer1.0.se.fc2.weight (16, 1)"]
    assert not run.exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"width_multiplier": 0.5}, "Try --config.model.width=0.5."),
        (
            {"name": "resnet50", "stem": "imagenet"},
            "Try --config.model.name=resnet50 --config.model.stem=imagenet.",
        ),
        ({"key": "model"}, "Try --config.model.pretrained_key=net.model."),
        ({}, "the reason."),
    ],
)
def test_options_are_those_of_the_command(options: dict[str, Any], expected: str) -> None:
    lines = explained(
        "w.pth", "net", MisfitError([Cause("the reason", options)], ["missing: a", "b"])
    )
    first, *lists = lines.split("\n")
    assert first.startswith("config.model.pretrained: w.pth does not fit the network: the reason.")
    assert first.endswith(expected)
    assert lists == ["missing: a", "b"]


@pytest.mark.faults
@pytest.mark.usefixtures("small_network")
@pytest.mark.parametrize("value", [1e39, -1e300, np.inf])
def test_numbers_too_large_for_float32_are_refused(tmp_path: Path, value: float) -> None:
    save(tmp_path / "w.npz", 10, "nam_channel")
    arrays = dict(np.load(tmp_path / "w.npz"))
    arrays["bn1.bias"][3] = value
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(ConfigError, match=r"^config\.model\.pretrained: .* not finite in float32"):
        load(tmp_path / "w.npz")


@pytest.mark.faults
@pytest.mark.parametrize(
    "path", ["~spam/weights.pth", "a\0b.npz", "a/" * 3000 + "b.npz", "/dev/a.pt"]
)
def test_path_that_leads_nowhere_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=r"^config\.model\.pretrained: "):
        load(Path(path))
