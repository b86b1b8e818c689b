"""Compares training steps with those of the same network in PyTorch.

A step is forward pass, cross-entropy, backward pass and SGD with momentum, on
random images that lie on the device; both frameworks begin with the same
weights. PyTorch is compiled and has its images channels_last. On a GPU both
compute in bfloat16, on a CPU in float32. Needs pip install '.[train,peers]',
and one device.

Fields of the config that would change the network, the loss or the update are
refused. Of the others count the batch size, momentum, weight decay, and the
dataset's shape and classes: no image is cropped, mirrored or mixed, the
learning rate is constant, and model.dtype and model.pretrained do not matter.

Example:
  python -m benchmarks.step_vs_torch --config configs/cifar100_resnet20.py

Exit codes: 0 done, 1 failed, 2 the command line or the config is wrong.
"""

import datetime
import functools
import json
import os
import statistics
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
import torch

from benchmarks.calls import Call
from benchmarks.peers import resnet, timing
from nam_jax import models, torch_import
from train.benchmark import turns
from train.core import command_line, tables
from train.core.config.attentions import attention_name, with_attentions
from train.core.config.fields import FIELDS, Config, flatten
from train.core.data.sources.registry import source_of
from train.core.devices.busy import busy
from train.core.devices.environment import processor
from train.core.errors import ConfigError
from train.core.workdir.storage import write_json

# What the step has at its default alone, in either framework.
AT_DEFAULT = (
    "accumulate_steps",
    "loss",
    "label_smoothing",
    "ema_decay",
    "model.shortcut",
    "model.remat",
    "model.zero_init_last_scale",
    "model.drop_path",
    "model.dropout",
    "optimizer.name",
    "optimizer.nesterov",
    "optimizer.weight_decay_on",
    "optimizer.clip_norm",
    "optimizer.sparsity",
)


class JaxTraining:
    """Training with nam_jax and optax."""

    def __init__(self, config: Config, dtype: str, variables: Any, num_classes: int):
        """Starts with the variables."""
        model = config.model
        self._model = models.create(
            model.name,
            num_classes=num_classes,
            attention=model.attention,
            stem=model.stem,
            dtype=dtype,
        )
        options = config.optimizer
        self._tx = optax.chain(
            optax.add_decayed_weights(options.weight_decay),
            optax.sgd(options.learning_rate, options.momentum),
        )
        variables = jax.tree.map(jax.numpy.asarray, variables)
        self._state = (variables, self._tx.init(variables["params"]))

    def __call__(self, images: jax.Array, labels: jax.Array) -> jax.Array:
        """Makes a step and gives its loss."""
        self._state, loss = self._step(self._state, images, labels)
        return loss

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def _step(self, state: Any, images: jax.Array, labels: jax.Array) -> Any:
        variables, opt_state = state

        def loss(params: Any) -> Any:
            given = {**variables, "params": params}
            logits, new = self._model.apply(given, images, train=True, mutable="batch_stats")
            each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return each.mean(), new

        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        changes, opt_state = self._tx.update(grads, opt_state, variables["params"])
        params = optax.apply_updates(variables["params"], changes)
        return ({"params": params, **new}, opt_state), value


class TorchTraining:
    """Training with PyTorch."""

    def __init__(self, config: Config, dtype: str, peer: resnet.ResNet, device: str):
        """Starts with the peer's weights."""
        peer.to(device, memory_format=torch.channels_last).train()
        self._autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")
        self._model = torch.compile(peer)
        options = config.optimizer
        self._optimizer = torch.optim.SGD(
            peer.parameters(),
            options.learning_rate,
            options.momentum,
            weight_decay=options.weight_decay,
            fused=device == "cuda",
        )

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Makes a step and gives its loss."""
        self._optimizer.zero_grad()
        with self._autocast:
            loss = torch.nn.functional.cross_entropy(self._model(images), labels)
        loss.backward()
        self._optimizer.step()
        return loss.detach()


def pair(config: Config, dtype: str) -> dict[str, Any]:
    """The training steps of both frameworks, as functions that give the loss."""
    source = source_of(config.data)
    num_classes, image_shape = source.num_classes, source.image_shape
    rng = np.random.default_rng(0)
    images = rng.standard_normal((config.batch_size, *image_shape), np.float32)
    labels = rng.integers(0, num_classes, config.batch_size)
    torch.manual_seed(0)
    model = config.model
    peer = resnet.create(
        model.name,
        num_classes=num_classes,
        image_shape=image_shape,
        attention=model.attention,
        stem=model.stem,
    )
    entries = {name: tensor.numpy().copy() for name, tensor in peer.state_dict().items()}
    module = models.create(
        model.name, num_classes=num_classes, attention=model.attention, stem=model.stem
    )
    variables = torch_import.variables(module, entries, (1, *image_shape))
    device = timing.torch_device()
    theirs = torch.tensor(images.transpose(0, 3, 1, 2), device=device)
    theirs = theirs.contiguous(memory_format=torch.channels_last)
    return {
        "nam_jax": functools.partial(
            JaxTraining(config, dtype, variables, num_classes),
            *jax.device_put((images, labels.astype(np.int32))),
        ),
        "torch": functools.partial(
            TorchTraining(config, dtype, peer, device), theirs, torch.tensor(labels, device=device)
        ),
    }


def measure(config: Config, dtype: str, steps: int) -> dict[str, Any]:
    """Times both frameworks in turns.

    Args:
      config: Config of the run.
      dtype: Type of the computation.
      steps: Number of steps of each that are timed.

    Returns:
      By framework `images_per_second`, `step_ms` and `step_ms_p95`, and `speed_vs_torch`, which
      is above 1 where nam_jax is faster.
    """
    calls = pair(config, dtype)
    variants: dict[str, turns.Timed] = {
        "nam_jax": Call(calls["nam_jax"]),
        "torch": timing.TorchCall(calls["torch"]),
    }
    times = turns.take_turns(variants, steps)
    figures: dict[str, Any] = {
        name: {
            "images_per_second": round(config.batch_size / statistics.median(found.rounds), 2),
            "step_ms": round(1e3 * statistics.median(found.steps), 3),
            "step_ms_p95": round(1e3 * float(np.percentile(found.steps, 95)), 3),
        }
        for name, found in times.items()
    }
    return {**figures, "speed_vs_torch": round(turns.ratio(times["torch"], times["nam_jax"]), 4)}


def check(configs: Mapping[str, Config]) -> None:
    """Refuses what there is no peer of.

    Args:
      configs: Configs by the names of their attentions.

    Raises:
      ConfigError: naming what there is.
    """
    for name, config in configs.items():
        if config.model.name not in resnet.NAMES:
            raise ConfigError(
                f"config.model.name: got {config.model.name!r}; allowed: {', '.join(resnet.NAMES)}."
            )
        if name not in resnet.ATTENTIONS:
            raise ConfigError(
                f"--attention: got {name!r}; allowed: {', '.join(resnet.ATTENTIONS)}."
            )
        values = dict(flatten(config))
        for field in AT_DEFAULT:
            if values[field] != FIELDS[field].default:
                raise ConfigError(
                    f"config.{field}: got {values[field]!r}; allowed: {FIELDS[field].default!r}, "
                    "as the step in PyTorch has it."
                )


def parser() -> command_line.Parser:
    """The command line."""
    parser = command_line.Parser(
        __doc__, "python -m benchmarks.step_vs_torch --config FILE [OPTION ...]"
    )
    parser.add_config("the experiment: network, batch, momentum, decay")
    parser.add_attention("none, nam_channel, nam_spatial, nam")
    parser.add_steps()
    parser.add_json()
    return parser


def main(options: Namespace) -> None:
    """Measures, and prints a table and JSON."""
    config = options.config
    configs = with_attentions(config, options.attention or [attention_name(config)])
    check(configs)
    # PyTorch needs memory too.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    dtype = "bfloat16" if timing.torch_device() == "cuda" else "float32"
    torch.backends.cudnn.benchmark = True
    result = {
        "config": options.config_name,
        "batch_size": config.batch_size,
        "dtype": dtype,
        "device_kind": jax.devices()[0].device_kind,
        "processor": processor(),
        "versions": {"jax": jax.__version__, "torch": torch.__version__},
        "date": datetime.date.today().isoformat(),
    }
    columns = ("attention", "nam_jax images/s", "torch images/s", "speed vs torch")
    rows = []
    for name, varied in configs.items():
        with busy(f"compiling and timing {name}, which takes minutes for a large network"):
            figures = measure(varied, dtype, options.steps)
        result[name] = figures
        speeds = (figures[framework]["images_per_second"] for framework in ("nam_jax", "torch"))
        rows.append((name, *(f"{s:,.1f}" for s in speeds), f"{figures['speed_vs_torch']:.3f}"))
    print(tables.Table(columns, rows).text())
    print(json.dumps(result))
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    command_line.run(main, parser())
