"""Trained networks for services: StableHLO and ONNX."""

from nam_jax.export.onnx import export_onnx
from nam_jax.export.stablehlo import export
from nam_jax.export.trace import UnsupportedOperationError

__all__ = ["UnsupportedOperationError", "export", "export_onnx"]
