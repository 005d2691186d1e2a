"""FourierFT: what is added to a weight is the inverse Fourier transform of a few trained coefficients.

Source: Gao et al., arXiv:2405.03003.
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
    config = {"peft_type": "FOURIERFT", **coefficient_fields(counts, settings, scaling=150.0)}
    return Build(counts, sum(counts.values()), config)


METHOD = Method(
    name="fourierft",
    title="FourierFT",
    source="arXiv:2405.03003",
    learning_rate=1e-2,
    learning_rate_source="the authors' scripts for GLUE: between that of the coefficients, 5e-2, and the head's, 6e-3",
    settings=COEFFICIENTS,
    allowed=COEFFICIENTS_ALLOWED,
    build=build,
    spread=COEFFICIENTS_SPREAD,
    starts_at_identity=False,
)
