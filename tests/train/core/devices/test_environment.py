"""What a run says of where it is computed."""

import datetime
import json
import platform

import pytest

from configs import digits_resnet20
from tests.helpers import tiny
from train.core.devices import environment
from train.core.engine import loop
from train.core.engine.experiment import build_experiment


def test_versions_and_devices():
    found = environment.describe()
    assert found.keys() == {
        *("versions", "platform", "device_kind", "devices", "processes", "date"),
    }
    packages = {"python", "jax", "jaxlib", "flax", "optax", "nam_jax"}
    assert found["versions"].keys() == packages
    assert all(version[0].isdigit() for version in found["versions"].values())
    assert (found["device_kind"], found["devices"], found["processes"]) == ("cpu", 4, 1)
    datetime.date.fromisoformat(found["date"])


def test_name_of_the_machine_is_not_told(monkeypatch):
    name = "secret-host"
    uname = platform.uname()
    monkeypatch.setattr(platform, "uname", lambda: uname._replace(node=name))
    monkeypatch.setattr(platform, "node", lambda: name)
    assert name not in json.dumps(environment.describe())


@pytest.mark.usefixtures("quick_compilation")
def test_every_start_of_an_unfinished_run_writes_it(tmp_path, monkeypatch):
    tiny.use(monkeypatch)
    config = digits_resnet20.get_config()
    config.steps, config.optimizer.sparsity = 1, 0.0
    file = tmp_path / "environment.json"
    tmp_path.joinpath("checkpoints").mkdir()
    file.write_text("of an earlier start")
    loop.train(build_experiment(config), tmp_path)
    assert json.loads(file.read_text()) == environment.describe()
    file.write_text("of the run")
    loop.train(build_experiment(config), tmp_path)
    assert file.read_text() == "of the run"
