"""What programs cost: their collectives and kernels, and what chips can do."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from train.core.devices import scheduled_program
from train.core.devices.chips import memory_bytes, peak_flops
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

    occurring = collectives(run.lower(jnp.ones((8, 5))).compile().as_text())
    assert occurring == {"all-gather": Collective(1, 160), "all-reduce": Collective(1, 40)}


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA H200 NVL", 835.5),
    ],
)
def test_peak_of_a_device(kind: str, tflops: float) -> None:
    assert peak_flops(kind) == 1e12 * tflops


@pytest.mark.parametrize("kind", ["cpu", "TPU v3", "NVIDIA H100 NVL", "NVIDIA GeForce RTX 4090"])
def test_peak_that_is_not_known(kind: str) -> None:
    assert peak_flops(kind) is None


@pytest.mark.parametrize(("kind", "size"), [("TPU v5 lite", 16911433728), ("cpu", None)])
def test_memory_of_a_device(kind: str, size: int | None) -> None:
    assert memory_bytes(kind) == size


# What kernels read, write and compute, from the text of a program.

FUSED = """
%fused (p.0: bf16[4,8], p.1: f32[8], p.2: u8[100,8]) -> f32[4,8] {
  %p.0 = bf16[4,8]{1,0} parameter(0)
  %p.1 = f32[8]{0} parameter(1)
  %p.2 = u8[100,8]{1,0} parameter(2)
  %slice = u8[2,8]{1,0} slice(%p.2), slice={[0:2], [0:8]}
  %convert = f32[4,8]{1,0} convert(%p.0)
  %tanh = f32[4,8]{1,0} tanh(%convert)
  %broadcast = f32[4,8]{1,0} broadcast(%p.1), dimensions={1}
  ROOT %multiply = f32[4,8]{1,0} multiply(%tanh, %broadcast)
}
"""
FUSION = "%f = f32[4,8]{1,0} fusion(%a, %b, %c), kind=kLoop, calls=%fused"
ARGUMENTS = """
  %a = bf16[4,8]{1,0} parameter(0)
  %b = f32[8]{0} parameter(1)
  %c = u8[100,8]{1,0} parameter(2)
"""


def figures(*lines: str, more: str = "") -> dict[str, int]:
    body = "".join(f"  {line}\n" for line in lines)
    return scheduled_program.figures(
        f"HloModule m\n{FUSED}{more}\nENTRY %main {{{ARGUMENTS}{body}}}"
    )


def test_a_fusion_reads_each_operand_once_and_of_slices_the_slices() -> None:
    assert figures(FUSION) == {
        "flops": 2 * 32,
        "transcendentals": 32,
        "bytes_accessed": 2 * 32 + 4 * 8 + 16 + 4 * 32,
        "kernels": 1,
        # Larger than the largest float32 argument.
        "float32_map_bytes": 4 * 32,
    }


def test_what_is_no_kernel_costs_nothing() -> None:
    same = figures("%t = (f32[8], f32[8]) tuple(%b, %b)", "%g = f32[8] get-tuple-element(%t)")
    assert same == dict.fromkeys(same, 0)


def test_an_operand_that_is_given_twice_is_read_once() -> None:
    lines = ("%v = f32[2,4]{1,0} bitcast(%b)", "ROOT %s = f32[8]{0} add(%v, %b)")
    assert figures(*lines)["bytes_accessed"] == 2 * 32


def test_float32_maps_count_where_they_are_read_too() -> None:
    found = figures(FUSION, "ROOT %n = bf16[4,8]{1,0} convert(%f)")
    assert found["float32_map_bytes"] == 2 * 4 * 32


@pytest.mark.parametrize(
    "caller",
    [
        "%w = f32[8] while(%b), condition=%empty, body=%called",
        "%w = f32[8] call(%b), to_apply=%called",
        "%w = f32[8] conditional(%b, %b), branch_computations={%empty, %called}",
    ],
)
def test_kernels_of_called_computations(caller: str) -> None:
    more = """
%empty (x: f32[8]) -> f32[8] {
  ROOT %x = f32[8]{0} parameter(0)
}
%called (y: f32[8]) -> f32[8] {
  %y = f32[8]{0} parameter(0)
  ROOT %n = f32[8]{0} negate(%y)
}
"""
    found = figures(caller, more=more)
    assert (found["kernels"], found["bytes_accessed"], found["flops"]) == (1, 64, 8)


# A convolution of 2 images, 5×5, 3 channels to 4, with a 3×3 kernel that keeps the size.
X, KERNEL, Y = "f32[2,5,5,3]", "f32[4,3,3,3]", "f32[2,5,5,4]"


@pytest.mark.parametrize(
    ("target", "operands", "result"),
    [
        ("Forward", (X, KERNEL), Y),
        ("BackwardInput", (Y, KERNEL), X),
        ("BackwardFilter", (X, Y), KERNEL),
    ],
)
def test_convolutions_take_their_operands_and_the_same_flops_in_either_direction(
    target: str, operands: tuple[str, str], result: str
) -> None:
    found = figures(
        f"%p = {operands[0]}{{3,2,1,0}} parameter(3)",
        f"%q = {operands[1]}{{3,2,1,0}} parameter(4)",
        f"%y = ({result}{{3,2,1,0}}, u8[0]{{0}}) custom-call(%p, %q), window={{size=3x3}}, "
        f'dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$conv{target}"',
    )
    assert found["flops"] == 2 * (2 * 5 * 5 * 4) * (3 * 3 * 3)
    assert found["bytes_accessed"] == 4 * (2 * 5 * 5 * 3 + 4 * 3 * 3 * 3 + 2 * 5 * 5 * 4)


def test_products_and_sums() -> None:
    dot = "%d = f32[4,6]{1,0} dot(%x, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    lines = ("%x = f32[4,5]{1,0} parameter(3)", "%y = f32[5,6]{1,0} parameter(4)", dot)
    assert figures(*lines)["flops"] == 2 * 4 * 5 * 6
    lines = ("%z = f32[] constant(0)", "%r = f32[4]{0} reduce(%x, %z), dimensions={1}")
    assert figures("%x = f32[4,5]{1,0} parameter(3)", *lines)["flops"] == 16
