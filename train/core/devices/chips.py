"""What chips can do at most."""

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


def peak_flops(device_kind: str) -> float | None:
    """The most operations a second of a device in bfloat16; None where it is not known.

    Args:
      device_kind: JAX's name of the device.
    """
    names = [name for name in PEAK_TFLOPS if device_kind.startswith(name)]
    return 1e12 * PEAK_TFLOPS[max(names, key=len)] if names else None
