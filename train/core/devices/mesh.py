"""Devices: the mesh, where arrays lie on it, and functions that run on its shards."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from train.core.devices.busy import busy
from train.core.errors import ConfigError

# A batch is split over both axes. Devices along "group" share their batch statistics.
AXES = ("replica", "group")


def create(
    batch_size: int,
    sync_bn_devices: int = 1,
    devices: Sequence[jax.Device] | None = None,
    *,
    accumulate_steps: int = 1,
) -> Mesh:
    """Arranges devices as replica groups × devices of a group.

    Args:
      batch_size: Number of images of a step, over all devices.
      sync_bn_devices: Number of devices of a group; -1: all.
      devices: Devices to arrange; default: all there are.
      accumulate_steps: Number of parts in which each device takes its rows.

    Raises:
      ConfigError: the batch or the groups do not divide over the devices.
    """
    if devices is None:
        with busy("starting the devices"):
            devices = jax.devices()
    count = len(devices)
    parts = count * accumulate_steps
    if batch_size % parts:
        lower, upper = batch_size // parts * parts, -(-batch_size // parts) * parts
        nearest = f"{lower} or {upper}" if lower else str(upper)
        times = f" × {accumulate_steps} parts of config.accumulate_steps" * (accumulate_steps > 1)
        raise ConfigError(
            f"config.batch_size: {batch_size} images do not divide over {count} devices{times}; "
            f"the nearest sizes that do: {nearest}."
        )
    group = count if sync_bn_devices == -1 else sync_bn_devices
    if count % group:
        raise ConfigError(
            f"config.model.sync_bn_devices: {count} devices do not divide into groups of "
            f"{group}; use a divisor, or -1 for all."
        )
    shape = (count // group, group)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)


def describe(mesh: Mesh) -> str:
    """How many devices of which kind, such as `4 × TPU v5 lite`."""
    return f"{mesh.size} × {mesh.devices.flat[0].device_kind}"


def is_cpu(mesh: Mesh) -> bool:
    """Whether the devices are CPUs."""
    return mesh.devices.flat[0].platform == "cpu"


def norm_axis(mesh: Mesh) -> str | None:
    """The axis name for BatchNorm: None where every device has its own statistics."""
    return "group" if mesh.shape["group"] > 1 else None


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, P())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The sharding of batches, whose rows are split over all devices."""
    return NamedSharding(mesh, P(AXES))


def put_whole(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Lays arrays, equal in all processes, whole on every device of a replicated sharding."""

    def put(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda _: array)

    return jax.tree.map(put, tree)


def put_copies(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """Lays an array on devices, on each in memory of its own, as what is donated needs."""
    places = sharding.addressable_devices_indices_map(array.shape)
    parts = [jax.device_put(np.array(array[index]), device) for device, index in places.items()]
    return jax.make_array_from_single_device_arrays(array.shape, sharding, parts)


def process_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of the global batch that this process's devices have, ascending."""
    slices = by_rows(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.sort(np.concatenate([np.arange(batch_size)[rows] for rows in slices]))


def put_rows(rows: Any, mesh: Mesh, batch_size: int) -> Any:
    """Makes a global batch of the rows that each process has.

    Args:
      rows: Tree of arrays (n, …), the rows of `process_rows`.
      mesh: Mesh over whose devices the rows are split.
      batch_size: Number of rows of the global batch.

    Returns:
      The tree with arrays (batch_size, …), split over all devices.
    """

    def put(array: np.ndarray) -> jax.Array:
        shape = (batch_size, *array.shape[1:])
        return jax.make_array_from_process_local_data(by_rows(mesh), array, shape)

    return jax.tree.map(put, rows)


def mean(tree: Any, *, at_once: bool = False) -> Any:
    """Averages over all devices, inside a sharded function.

    Args:
      tree: Tree of arrays, those of one device.
      at_once: Whether all are sent as one array. GPUs and TPUs combine the messages without copying
        the arrays; the processes of CPUs would send one for each.
    """
    if jax.lax.axis_size(AXES) == 1 or not at_once:
        return jax.lax.pmean(tree, AXES)
    flat, unflatten = ravel_pytree(tree)
    return unflatten(jax.lax.pmean(flat, AXES))


def total(tree: Any) -> Any:
    """Sums over all devices, inside a sharded function."""
    return jax.lax.psum(tree, AXES)


def local_rows(mesh: Mesh, batch_size: int) -> jax.Array:
    """The rows of the global batch that are this device's, inside a sharded function."""
    per_device = batch_size // mesh.size
    return jax.lax.axis_index(AXES) * per_device + jnp.arange(per_device)


def jit_replicated(
    function: Callable[..., Any], mesh: Mesh, donate_argnums: Any = (), rows_argnum: int = -1
) -> Any:
    """Compiles a function that every device runs on whole arguments and its own rows.

    What it returns must be equal on all devices: sum or average it over them.

    Args:
      function: Function that each device runs; it may use `mean`, `total` and `local_rows`.
      mesh: Mesh of the devices.
      donate_argnums: Numbers of the arguments that are used up.
      rows_argnum: Number of the last argument, where that is a batch whose rows are split over the
        devices; -1: no argument is.
    """
    in_specs = P() if rows_argnum < 0 else (*[P()] * rows_argnum, P(AXES))
    # With check_vma=True, averaging gradients that shard_map already summed would scale them.
    sharded = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=P(), check_vma=False)
    return jax.jit(sharded, donate_argnums=donate_argnums)
