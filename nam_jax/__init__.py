"""Normalization-based attention (NAM) for Flax."""

import importlib
from typing import TYPE_CHECKING

from nam_jax import models, torch_import
from nam_jax.attach import attach
from nam_jax.attention import (
    BAM,
    CBAM,
    ECA,
    AttentionModule,
    CoordinateAttention,
    HalfGate,
    SimAM,
    SqueezeExcite,
    TripletAttention,
    attention,
)
from nam_jax.attention.nam import NAM, ChannelNAM, SpatialNAM
from nam_jax.export import UnsupportedOperationError, export, export_onnx
from nam_jax.inspection import gate_statistics, gates, half_gates, saliency
from nam_jax.layers.batch_norm import BatchNorm, Moments
from nam_jax.layers.convolution import convolution
from nam_jax.resize import resize_spatial
from nam_jax.sparsity import add_sparsity_penalty, proximal_sparsity, sparsity_penalty

__version__ = "0.1.0"

__all__ = [
    "BAM",
    "CBAM",
    "ECA",
    "NAM",
    "AttentionModule",
    "BatchNorm",
    "ChannelNAM",
    "CoordinateAttention",
    "HalfGate",
    "Moments",
    "SimAM",
    "SpatialNAM",
    "SqueezeExcite",
    "TripletAttention",
    "UnsupportedOperationError",
    "add_sparsity_penalty",
    "attach",
    "attention",
    "convolution",
    "export",
    "export_onnx",
    "gate_statistics",
    "gates",
    "half_gates",
    "models",
    "proximal_sparsity",
    "resize_spatial",
    "saliency",
    "sparsity_penalty",
    "torch_import",
]

if TYPE_CHECKING:
    from nam_jax import nnx as nnx
else:

    def __getattr__(name):
        # Not before it is asked for: linen does without Flax NNX, which takes a while to import.
        if name == "nnx":
            return importlib.import_module("nam_jax.nnx")
        raise AttributeError(f"module 'nam_jax' has no attribute {name!r}")
