"""Curvatures of the base on general speech: how much each change of the adapted layers would make it forget."""

from __future__ import annotations

from affetto.preserve.curvature.diagonal import Diagonal, PositionDiagonal, Rank1
from affetto.preserve.curvature.factors import CONTROLS
from affetto.preserve.curvature.form import Curvature, Factor
from affetto.preserve.curvature.kronecker import Kfac
from affetto.preserve.curvature.sampled import Full, Sketch

__all__ = [
    "CONTROLS", "CURVATURES", "Curvature", "Diagonal", "Factor", "Full", "Kfac", "PositionDiagonal", "Rank1",
    "Sketch",
]  # fmt: skip

CURVATURES: dict[str, type[Curvature]] = {
    kind.name: kind for kind in (Diagonal, PositionDiagonal, Rank1, Kfac, Sketch, Full)
}
"""By the name that `ewc_curvature` takes in the configuration."""
