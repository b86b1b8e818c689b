"""What the compiler says of a compiled program."""

from typing import Any


def figures(program: Any) -> dict[str, Any]:
    """Operations, and bytes of memory and of traffic, of one device; None where it does not say.

    Args:
      program: from `jax.jit(…).lower(…).compile()`.
    """
    cost, memory = program.cost_analysis() or {}, program.memory_analysis()
    peak = memory.peak_memory_in_bytes
    # The figure for CPUs leaves the temporaries out.
    if peak < memory.temp_size_in_bytes:
        peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return {
        "flops": cost.get("flops"),
        "bytes_accessed": cost.get("bytes accessed"),
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "peak_bytes": peak,
    }
