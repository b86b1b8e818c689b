"""What NAM has learned and what it does: its weights by layer, its gates by image."""

from nam_jax.inspection.gate_spread import (
    NEAR_HALF,
    GateMoments,
    GateStatistics,
    gate_moments,
    gate_statistics,
    statistics_of,
)
from nam_jax.inspection.image_gates import gates, half_gates
from nam_jax.inspection.layer_weights import (
    SMALL_WEIGHT,
    count_small_weights,
    saliency,
    small_weight_percentage,
)

__all__ = [
    "NEAR_HALF",
    "SMALL_WEIGHT",
    "GateMoments",
    "GateStatistics",
    "count_small_weights",
    "gate_moments",
    "gate_statistics",
    "gates",
    "half_gates",
    "saliency",
    "small_weight_percentage",
    "statistics_of",
]
