"""Writes a trained network into one file, StableHLO for JAX or ONNX.

It takes uint8 images (N, H, W, channels) and gives logits. FILE.json or the
properties of an ONNX file say the rest. Needs '.[train,export]'.

Example:
  python -m train.export --workdir runs/digits_resnet20 --out digits.onnx

Exit codes: 0 done, 1 failed, 2 the command line or the config is wrong.
"""

import dataclasses
import importlib.util
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import jax.numpy as jnp

import nam_jax
from nam_jax.export import UnsupportedOperationError
from train.core import command_line
from train.core.command_line.values import one_of, output
from train.core.config.data_fields import DataConfig
from train.core.devices import environment
from train.core.devices.busy import busy
from train.core.engine import trained_network
from train.core.engine.trained_network import Trained
from train.core.errors import ConfigError
from train.core.workdir import storage
from train.core.workdir.checkpoint_files import state_sha256

# What each format needs beside the trainer's own packages.
PACKAGES = {"stablehlo": "flatbuffers", "onnx": "onnx"}


def described(network: Trained, *, raw: bool, probabilities: bool) -> dict[str, Any]:
    """What a service has to know of a network, and where it is from.

    Args:
      network: Network that is exported.
      raw: Whether the file takes images that are normalised already.
      probabilities: Whether it gives probabilities.
    """
    return {
        "classes": network.class_names,
        "images": _images(network.config.data, network.image_shape, raw=raw),
        "output": "probabilities" if probabilities else "logits",
        "step": network.step,
        "weights_sha256": state_sha256(network.variables),
        "config": dataclasses.asdict(network.config),
        "versions": environment.describe()["versions"],
    }


def _images(data: DataConfig, shape: tuple[int, int, int], *, raw: bool) -> dict[str, Any]:
    """What is made of an image before it is evaluated."""
    height, width, channels = shape
    is_cut = data.crop == "resized"
    return {
        "height": height,
        "width": width,
        "channels": channels,
        "dtype": "float32" if raw else "uint8",
        "mean": data.mean,
        "std": data.std,
        "crop_ratio": data.eval_crop_ratio if is_cut else 1.0,
        # Of whole images, what does not have the size is scaled as by evaluations.
        "interpolation": data.interpolation if is_cut else "area",
        "interpolation_enlarging": data.interpolation if is_cut else "bilinear",
    }


def write(network: Trained, target: Path, kind: str, *, raw: bool, probabilities: bool) -> None:
    """Writes the file, and that beside it where there is one.

    Args:
      network: Network that is exported.
      target: File to write.
      kind: Format, `stablehlo` or `onnx`.
      raw: Whether it takes images that are normalised already.
      probabilities: Whether it gives probabilities.

    Raises:
      ConfigError: the network has what cannot be exported.
    """
    about = described(network, raw=raw, probabilities=probabilities)
    data = network.config.data
    options: dict[str, Any] = {"probabilities": probabilities}
    options |= {} if raw else {"mean": data.mean, "std": data.std}
    arguments = network.model, network.variables, network.image_shape
    try:
        if kind == "onnx":
            properties = {name: json.dumps(value) for name, value in about.items()}
            # Its weights are float32: not those that a network of bfloat16 rounds at every step.
            model = network.model.clone(dtype=jnp.float32)
            arguments = model, *arguments[1:]
            content = nam_jax.export_onnx(*arguments, metadata=properties, **options)
        else:
            content = nam_jax.export(*arguments, **options)
    except UnsupportedOperationError as error:
        raise ConfigError(f"--format={kind}: {error} Give --format=stablehlo for it.") from error
    if kind == "onnx":
        storage.write_bytes(target, content)
        # It would tell of a StableHLO file that was there.
        beside(target).unlink(missing_ok=True)
    else:
        _write_both(target, content, about)


def _write_both(target: Path, content: bytes, about: dict[str, Any]) -> None:
    """Writes a StableHLO file and the one beside it, neither of which is of use alone."""
    with (
        storage.naming(target),
        storage.atomic(beside(target)) as description,
        storage.atomic(target) as network,
    ):
        storage.write_json(description, about)
        network.write_bytes(content)
        # A kill between the two that follow would leave it beside another network.
        beside(target).unlink(missing_ok=True)


def beside(target: Path) -> Path:
    """The file that says what a StableHLO file is."""
    return target.with_name(f"{target.name}.json")


def parser() -> command_line.Parser:
    """The command line."""
    parser = command_line.Parser(
        __doc__, "python -m train.export --workdir DIR --out FILE [OPTION ...]"
    )
    add = parser.add_argument
    switch: Any = {"action": "store_true"}
    parser.add_trained()
    add("--out", metavar="FILE", type=output, help="file to write")
    add(
        "--format",
        metavar="NAME",
        type=one_of(*PACKAGES),
        help="stablehlo or onnx; default: as the name ends",
    )
    add("--raw", help="takes normalised float32 images", **switch)
    add("--probabilities", help="gives the softmax of the logits", **switch)
    add("--overwrite", help="replaces a file that is there", **switch)
    return parser


def main(options: Namespace) -> None:
    """Writes the file, and prints what it is of."""
    if options.out is None:
        raise ConfigError("--out is missing; name the file to write.")
    kind = options.format or ("onnx" if options.out.suffix == ".onnx" else "stablehlo")
    _check_possible(options, kind)
    config = command_line.config_of_weights(options)
    if config is None:
        workdir = command_line.named_workdir(options, command_line.RUN_OR_WEIGHTS)
        network = trained_network.of_run(workdir, options.which, options.data_dir)
    else:
        network = trained_network.of_file(config)
    with busy(f"writing {options.out}, which takes up to a minute"):
        write(network, options.out, kind, raw=options.raw, probabilities=options.probabilities)
    step = "" if network.step is None else f", step {network.step}"
    print(f"{options.out}: {kind}, {options.out.stat().st_size:,} bytes{step}")


def _check_possible(options: Namespace, kind: str) -> None:
    """Finds out before the work what would be in its way."""
    there = [str(path) for path in (options.out, beside(options.out)) if path.exists()]
    if there and not options.overwrite:
        raise ConfigError(
            f"--out: there is {' and '.join(there)}; name another file, or give --overwrite."
        )
    if importlib.util.find_spec(PACKAGES[kind]) is None:
        raise ConfigError(
            f"--format={kind} needs the package {PACKAGES[kind]}; get it with "
            "pip install -e '.[train,export]'."
        )


if __name__ == "__main__":
    command_line.run(main, parser())
