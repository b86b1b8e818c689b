"""On what a run is computed: versions and devices, and never the name of a machine."""

import datetime
import platform
import re
from pathlib import Path
from typing import Any

import flax
import jax
import jaxlib
import optax

import nam_jax

# What matrix products and convolutions on a CPU are built on.
INSTRUCTION_SETS = ("avx", "avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve")


def describe() -> dict[str, Any]:
    """Versions, system, devices, processes and the date.

    Returns:
      `versions` by package, `platform`, `processor`, `device_kind`, `devices` and `processes` (how
      many there are in all), and `date`.
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
        "processor": processor(),
        "device_kind": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "date": datetime.date.today().isoformat(),
    }


def processor() -> str:
    """The name of the CPU, with those of `INSTRUCTION_SETS` that it has, as far as Linux tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    lines = re.findall(r"^(model name|flags|Features)\s*: (.*)$", text, re.MULTILINE)
    # Of the first core.
    found = dict(reversed(lines))
    flags = (found.get("flags") or found.get("Features") or "").split()
    sets = [name for name in INSTRUCTION_SETS if name in flags]
    name = found.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({', '.join(sets)})" if sets else name
