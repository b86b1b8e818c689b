"""On what a run is computed: versions and devices, and never the name of a machine."""

import datetime
import platform
from typing import Any

import flax
import jax
import jaxlib
import optax

import nam_jax


def describe() -> dict[str, Any]:
    """Versions, system, devices, processes and the date.

    Returns:
      `versions` by package, `platform`, `device_kind`, `devices` and `processes` (how many there
      are in all), and `date`.
    """
    return {
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "flax": flax.__version__,
            "optax": optax.__version__,
            "nam_jax": nam_jax.__version__,
        },
        "platform": platform.platform(),
        "device_kind": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "date": datetime.date.today().isoformat(),
    }
