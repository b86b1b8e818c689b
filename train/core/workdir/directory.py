"""A run's directory: the one config that it belongs to, and what is read of it."""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from etils import epath

from train.core.config.fields import Config, marked
from train.core.config.parsing import flattened, from_fields
from train.core.config.spec import Mark
from train.core.errors import ConfigError
from train.core.workdir.storage import is_number, read_text, write_json, writing_run

FREE = marked(Mark.FREE)
OWN_DIRECTORY = "Give this run a directory of its own"
# Of those in summary.json, what is read again.
FIGURES = (
    *("top1_error", "top5_error", "best_top1_error", "num_eval_images", "steps"),
    *("params", "macs", "wall_seconds", "images_per_second"),
)


def _before(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a run did in place of fields that did not exist when it was begun."""
    is_padded = fields.get("model.name") == "resnet20"
    defaults = as_saved(Config())
    later = {name: defaults[name] for name in marked(Mark.LATER)}
    return later | {"model.shortcut": "pad_end" if is_padded else ""}


def claim(workdir: epath.Path, config: Config) -> None:
    """Makes the directory and writes config.json, or checks that the run in it is this one.

    Args:
      workdir: Directory of the run.
      config: Config of the run.

    Raises:
      ConfigError: the directory holds a run of another config, or cannot be written.
    """
    with writing_run(workdir):
        (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
        if not (workdir / "config.json").exists():
            write_json(workdir / "config.json", dataclasses.asdict(config))
    check_config(workdir, config)


def check_config(
    workdir: epath.Path,
    config: Config,
    free: Collection[str] = FREE,
    advice: str = OWN_DIRECTORY,
) -> None:
    """Checks that the run in a directory has this config.

    Args:
      workdir: Directory of the run.
      config: Config that is wanted.
      free: Names of fields that may differ.
      advice: What to do where others differ, without a full stop.

    Raises:
      ConfigError: there is no run, or its config differs; names the fields.
    """
    saved, wanted = saved_fields(workdir), as_saved(config)
    differing = [
        name
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name) and name not in free
    ]
    if differing:
        both = "; ".join(
            f"config.{name} is {saved.get(name)!r} there and {wanted.get(name)!r} here"
            for name in differing
        )
        # Its default has changed.
        if differing == ["model.shortcut"]:
            advice += f", or take its own by --config.{differing[0]}={saved[differing[0]]}"
        raise ConfigError(
            f"--workdir {workdir} belongs to a run of another config: {both}. {advice}."
        )


def as_saved(config: Config) -> dict[str, Any]:
    """The fields of a config by their dotted names, with the values that config.json gives back."""
    return dict(flattened(json.loads(json.dumps(dataclasses.asdict(config)))))


def saved_config(workdir: epath.Path) -> Config:
    """The config of the run in a directory.

    Args:
      workdir: Directory of the run.

    Raises:
      ConfigError: there is no run, or its config cannot be read or is wrong.
    """
    return from_fields(saved_fields(workdir))


def saved_fields(workdir: epath.Path) -> dict[str, Any]:
    """What config.json of the run in a directory holds, by dotted names; another version's too.

    What was begun before a field existed has the value that means the same.

    Args:
      workdir: Directory of the run.

    Raises:
      ConfigError: there is no run, or its config cannot be read.
    """
    path = workdir / "config.json"
    try:
        text = read_text(path)
        if text is not None:
            fields = dict(flattened(json.loads(text)))
            return _before(fields) | fields
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"--workdir {workdir}: {path.name} is not the config of a run ({error}); name the "
            "directory of a run."
        ) from error
    raise ConfigError(
        f"--workdir {workdir}: there is no run, {path.name} is missing; name the directory of "
        "a run."
    )


def dataset(workdir: epath.Path) -> dict[str, Any] | None:
    """What is known of the images of the run in a directory.

    Args:
      workdir: Directory of the run.

    Returns:
      `num_classes`, `class_names` (None where they have none), `image_shape`, and `num_images` by
      split (empty where the run was begun before it was kept); None where nothing was kept.

    Raises:
      ConfigError: it cannot be read.
    """
    try:
        text = read_text(workdir / "dataset.json")
        return None if text is None else _checked_dataset(json.loads(text))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"--workdir {workdir}: dataset.json is not that of a run ({error}); where it is "
            "removed, the dataset itself is asked."
        ) from error


def _checked_dataset(kept: Any) -> dict[str, Any]:
    count, names, shape = (kept[name] for name in ("num_classes", "class_names", "image_shape"))
    if type(count) is not int:
        raise ValueError(f"num_classes is {count!r}")
    if [type(size) for size in shape] != [int, int, int]:
        raise ValueError(f"image_shape is {shape!r}")
    if names is not None and len(names) != count:
        raise ValueError(f"class_names names {len(names)} of {count} classes")
    images = kept.get("num_images", {})
    if not isinstance(images, dict) or any(type(n) is not int for n in images.values()):
        raise ValueError(f"num_images is {images!r}")
    known = {"num_classes": count, "class_names": names, "image_shape": shape}
    return {**known, "num_images": images}


def check_classes(
    workdir: epath.Path, names: Sequence[str] | None, advice: str = OWN_DIRECTORY
) -> None:
    """Checks that the labels of a dataset mean what they meant to the run in a directory.

    Args:
      workdir: Directory of the run.
      names: Names of the classes, by label; None where they have none.
      advice: What to do where others differ, without a full stop.

    Raises:
      ConfigError: the run was begun with other names.
    """
    kept = (dataset(workdir) or {}).get("class_names")
    pairs = enumerate(zip_longest(kept or (), names or (), fillvalue="none"))
    differing = [(label, *pair) for label, pair in pairs if pair[0] != pair[1]]
    if kept and names and differing:
        label, there, here = differing[0]
        raise ConfigError(
            f"--workdir {workdir} belongs to a run of other classes: class {label} is {there!r} "
            f"there and {here!r} here, and {len(differing)} differ in all. "
            f"{advice}."
        )


def check_images(
    workdir: epath.Path, image_shape: Sequence[int], num_images: Mapping[str, int]
) -> None:
    """Checks that there are as many images, of the same shape, as when a run began.

    Args:
      workdir: Directory of the run.
      image_shape: Shape (H, W, channels) of the images that are there.
      num_images: Number of the images that are there, by split.

    Raises:
      ConfigError: the run was begun with others, which make other epochs.
    """
    kept = dataset(workdir)
    if kept is None:
        return
    pairs = {
        "their shape": (kept["image_shape"], list(image_shape)),
        **{
            f"the number of {name!r}": (kept["num_images"].get(name, number), number)
            for name, number in num_images.items()
        },
    }
    differing = [f"{what} is {a} there and {b} here" for what, (a, b) in pairs.items() if a != b]
    if differing:
        raise ConfigError(
            f"--workdir {workdir} belongs to a run of other images: {'; '.join(differing)}. Bring "
            "back what was there, or give this run a directory of its own."
        )


def summary(workdir: epath.Path) -> dict[str, Any] | None:
    """The summary of a finished run, None before it is finished.

    Args:
      workdir: Directory of the run.

    Raises:
      ConfigError: it cannot be read.
    """
    try:
        text = read_text(workdir / "summary.json")
        if text is None:
            return None
        found = dict(json.loads(text))
        lacking = [name for name in FIGURES if not is_number(found.get(name))]
        if lacking:
            raise ValueError(f"it has no number for {', '.join(lacking)}")
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"--workdir {workdir}: summary.json is not that of a run ({error}); where it is "
            "removed, the command that trained the run writes it again."
        ) from error
    return found
