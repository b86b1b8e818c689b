"""What XLA has to know of a GPU, to compile for one that is not there."""

# Limits, sizes and rates from the descriptions in XLA's repository, which its own tests compile
# for: https://github.com/openxla/xla/tree/main/xla/backends/gpu/target_config/specs (h100_sxm,
# h200, a100_sxm_80). Rates of single units of arithmetic, which are there too, change nothing.
_ALL: dict[str, int | float | str] = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "threads_per_core_limit": 2048,
    "thread_dim_limit_x": 1024,
    "thread_dim_limit_y": 1024,
    "thread_dim_limit_z": 64,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
    "shared_memory_per_block": 49152,
}
_HOPPER = {
    **_ALL,
    "cuda_compute_capability": "{ major: 9 feature_extension: ACCELERATED_FEATURES }",
    "core_count": 132,
    "fpus_per_core": 128,
    "clock_rate_ghz": 1.98,
    "shared_memory_per_core": 233472,
    "shared_memory_per_block_optin": 232448,
    "l2_cache_size": 52428800,
}
GPUS = {
    "h100": {
        **_HOPPER,
        "name": '"NVIDIA H100 80GB HBM3"',
        "memory_bandwidth": 3_352_320_000_000,
        "device_memory_size": 84_942_979_072,
    },
    "h200": {
        **_HOPPER,
        "name": '"NVIDIA H200"',
        "memory_bandwidth": 4_800_000_000_000,
        "device_memory_size": 151_397_597_184,
    },
    "a100": {
        **_ALL,
        "name": '"NVIDIA A100-SXM4-80GB"',
        "cuda_compute_capability": "{ major: 8 }",
        "core_count": 108,
        "fpus_per_core": 64,
        "clock_rate_ghz": 1.41,
        "shared_memory_per_core": 167936,
        "shared_memory_per_block_optin": 166912,
        "l2_cache_size": 41943040,
        "memory_bandwidth": 2_039_040_000_000,
        "device_memory_size": 85_100_068_864,
    },
}


def target_config(card: str) -> str:
    """The card as text of XLA's GpuTargetConfigProto.

    Args:
      card: Name in `GPUS`.
    """
    fields = " ".join(f"{name}: {value}" for name, value in GPUS[card].items())
    name = GPUS[card]["name"]
    return f'gpu_device_info {{ {fields} }} platform_name: "CUDA" device_description_str: {name}'
