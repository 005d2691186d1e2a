"""WaveFT: what is added to a weight is the inverse wavelet transform of a few trained coefficients.

Source: Bilican et al., arXiv:2505.12532.
"""

from __future__ import annotations

from autopeft.anatomy import Anatomy
from autopeft.methods.coefficients import (
    COEFFICIENTS,
    COEFFICIENTS_ALLOWED,
    COEFFICIENTS_SPREAD,
    coefficient_fields,
    coefficients_at,
)
from autopeft.methods.method import Build, Method, Settings


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Place coefficients on every linear that is on; each is one trained scalar."""
    counts = coefficients_at(settings, anatomy)
    config = {"peft_type": "WAVEFT", "wavelet_family": "db1", **coefficient_fields(counts, settings, scaling=25.0)}
    return Build(counts, sum(counts.values()), config)


METHOD = Method(
    name="waveft",
    title="WaveFT",
    source="arXiv:2505.12532",
    learning_rate=3e-4,
    learning_rate_source="PEFT's example",
    settings=COEFFICIENTS,
    allowed=COEFFICIENTS_ALLOWED,
    build=build,
    spread=COEFFICIENTS_SPREAD,
)
