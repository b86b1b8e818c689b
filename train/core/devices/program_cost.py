"""What a compiled program costs a device: operations, memory, traffic and collectives."""

import collections
import dataclasses
import math
import re
from typing import Any

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)

# The names of operations in the metadata are anything.
_QUOTED = re.compile(r'"[^"]*"')
# An operation, or the second half of one in two halves: `-start` gives its operands as well.
_INSTRUCTION = re.compile(rf" = (.*?) ({'|'.join(COLLECTIVES)})(?:-done)?\(")
# An array such as bf16[3,3,64]{2,1,0:T(8,128)}; token[] has no size.
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]")


def figures(program: Any) -> dict[str, Any]:
    """Operations, and bytes of memory and of traffic, of one device; None where it does not say.

    Args:
      program: Compiled program, from `jax.jit(…).lower(…).compile()`.
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


@dataclasses.dataclass(frozen=True)
class Collective:
    """All operations of one kind.

    Attributes:
      count: Number of operations in the text; one in a loop counts once.
      bytes: Size of their results on one device, in bytes.
    """

    count: int
    bytes: int


def collectives(hlo: str) -> dict[str, Collective]:
    """Counts the collectives of a compiled program.

    Args:
      hlo: Text of the program, as `compiled.as_text()` gives it.

    Returns:
      Count and bytes by the kinds that occur.
    """
    counts, sizes = collections.Counter[str](), collections.Counter[str]()
    for shape, kind in _INSTRUCTION.findall(_QUOTED.sub("", hlo)):
        counts[kind] += 1
        sizes[kind] += array_bytes(shape)
    return {kind: Collective(counts[kind], sizes[kind]) for kind in sorted(counts)}


def array_bytes(shape: str) -> int:
    """Bytes of all arrays of a shape in HLO text, without padding."""
    total = 0
    for name, bits, dimensions in _ARRAY.findall(shape):
        elements = math.prod(int(size) for size in dimensions.split(",") if size)
        total += -(-elements * (8 if name == "pred" else int(bits)) // 8)
    return total
