"""Collectives read from the text of compiled programs."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from train.core.devices.program_cost import Collective, array_bytes, collectives


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[]", 4),
        ("f32[]{:T(128)}", 4),
        ("bf16[3,3,64]{2,1,0:T(8,128)(2,1)S(1)}", 2 * 576),
        ("pred[7]", 7),
        ("s4[5]", 3),
        ("f8e4m3fn[10]", 10),
        ("c64[2]", 16),
        ("f32[0,8]", 0),
        ("token[]", 0),
        ("(f32[16]{0:T(128)S(1)}, /*index=5*/u8[2,2]{1,0:T(8,128)(4,1)}, u32[]{:S(2)})", 72),
    ],
)
def test_bytes_of_a_shape(shape: str, size: int) -> None:
    assert array_bytes(shape) == size


TEXT = """
HloModule jit_step, is_scheduled=true
%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}
ENTRY %main {
  %all-reduce.1 = (f32[16]{0:T(128)}, /*index=1*/bf16[4,4]{1,0}) all-reduce(%a, %b), to_apply=%add
  %get-tuple-element.1 = f32[16]{0:T(128)} get-tuple-element(%all-reduce.1), index=0
  ROOT %all-reduce.2 = f32[] all-reduce(%c), metadata={op_name="jit(step)/all-gather(x)"}
  %all-gather-start.1 = (f32[8]{0}, f32[32]{0}) all-gather-start(%d), dimensions={0}
  %all-gather-done.1 = f32[32]{0} all-gather-done(%all-gather-start.1)
  %reduce-scatter.3 = u8[12]{0} reduce-scatter(%e), dimensions={0}, to_apply=%add
  %collective-permute.4 = s32[2]{0} collective-permute(%f), source_target_pairs={{0,1}}
  %all-to-all.5 = f32[4]{0} all-to-all(%g)
  %fusion.5 = f32[9]{0} fusion(%h), metadata={op_name="a = f32[9] all-gather(x)"}
  %fusion.6 = f32[4]{0} fusion(%h), calls=%all-reduce-computation
}
"""


def test_kinds_counts_and_bytes() -> None:
    assert collectives(TEXT) == {
        "all-gather": Collective(1, 128),
        "all-reduce": Collective(2, 64 + 32 + 4),
        "all-to-all": Collective(1, 16),
        "collective-permute": Collective(1, 8),
        "reduce-scatter": Collective(1, 12),
    }


def test_program_of_one_device_has_none() -> None:
    assert collectives(jax.jit(jnp.sin).lower(jnp.ones(3)).compile().as_text()) == {}


def test_program_compiled_here() -> None:
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=P("x"), out_specs=P(), check_vma=False)
    def run(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.lax.psum(x, "x"), jax.lax.all_gather(x, "x")

    found = collectives(run.lower(jnp.ones((8, 5))).compile().as_text())
    assert found == {"all-gather": Collective(1, 160), "all-reduce": Collective(1, 40)}
