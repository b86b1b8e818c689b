"""What chips can do at most, and the memory that programs have on them."""

from train.core.devices.gpus import GPUS

GIB = 2**30

# 10¹² operations a second in bfloat16, without sparsity, by the beginning of JAX's name of the
# device. TPUs: the "system architecture" pages of each generation at cloud.google.com/tpu/docs.
# GPUs: NVIDIA's data sheets of A100, H100 and H200, whose figures for sparse matrices are twice
# these. A TPU v4, v5e, v5p or v6e chip is one device.
PEAK_TFLOPS = {
    "TPU v4": 275,
    "TPU v5 lite": 197,
    "TPU v5": 459,
    "TPU v6 lite": 918,
    "NVIDIA A100": 312,
    "NVIDIA H100 80GB HBM3": 989.5,
    "NVIDIA H100 PCIe": 756.5,
    "NVIDIA H200": 989.5,
    "NVIDIA H200 NVL": 835.5,
}

# GiB that the compiler lets a program use on each TPU: libtpu's own figures, from its refusal of a
# program that needs more. A v2, v3 or tpu7x chip is two devices, any other one.
MEMORY_GIB = {
    "TPU v2": 7.48,
    "TPU v3": 15.48,
    "TPU v4": 30.75,
    "TPU v5 lite": 15.75,
    "TPU v5": 95.74,
    "TPU v6 lite": 31.25,
    "TPU7x": 94.75,
}


def peak_flops(device_kind: str) -> float | None:
    """The most operations a second of a device in bfloat16; None where it is not known.

    Args:
      device_kind: Name that JAX gives the device, such as `TPU v5 lite`.
    """
    names = [name for name in PEAK_TFLOPS if device_kind.startswith(name)]
    return 1e12 * PEAK_TFLOPS[max(names, key=len)] if names else None


def memory_bytes(device_kind: str) -> int | None:
    """Bytes of a TPU's memory that a program may use, or all of a GPU's; None where not known.

    Args:
      device_kind: Name that JAX gives the device, such as `TPU v5 lite`.
    """
    for card in GPUS.values():
        if card["name"] == f'"{device_kind}"':
            return int(card["device_memory_size"])
    gib = MEMORY_GIB.get(device_kind)
    return None if gib is None else int(gib * GIB)
