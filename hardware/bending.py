"""Bending: how two bonded layers that shrink differently curve, and how far they bow."""

from dataclasses import dataclass

from hardware.technology import Material
from hardware.units import Number


@dataclass(frozen=True)
class Sheet:
    """A layer of a laminate: expansion per K, biaxial modulus in Pa, thickness in m."""

    expansion: Number
    modulus: Number
    thickness: Number

    @classmethod
    def of(cls, material: Material, thickness: Number) -> "Sheet":
        """Return a sheet of *material*; in a plate its modulus is E / (1 - ν)."""
        return cls(material.expansion, material.modulus / (1 - material.poisson), thickness)

    def __add__(self, other: "Sheet") -> "Sheet":
        """Two sheets taken as one, by the rule of mixtures; their own bending is left out."""
        thickness = self.thickness + other.thickness
        first, second = self.modulus * self.thickness, other.modulus * other.thickness
        stiffness = first + second
        expansion = (first * self.expansion + second * other.expansion) / stiffness
        return Sheet(expansion, stiffness / thickness, thickness)


def curvature(lower: Sheet, upper: Sheet, change: Number) -> Number:
    """Return 1/m of two sheets bonded flat and heated by *change* K; > 0 if the middle rises.

    κ = 6 (α₂ - α₁) ΔT (1 + m)² / (h (3 (1 + m)² + (1 + m n)(m² + 1/(m n)))) with m = t₁/t₂,
    n = E₁/E₂, h = t₁ + t₂ (Timoshenko, Analysis of Bi-Metal Thermostats, J. Opt. Soc. Am.
    11, 1925, equation 4). Numbers and arrays broadcast.
    """
    m = lower.thickness / upper.thickness
    n = lower.modulus / upper.modulus
    mismatch = (upper.expansion - lower.expansion) * change
    height = lower.thickness + upper.thickness
    stiffness = 3 * (1 + m) ** 2 + (1 + m * n) * (m**2 + 1 / (m * n))
    return 6 * mismatch * (1 + m) ** 2 / (height * stiffness)


def bow(bend: Number, length: Number) -> Number:
    """Return the m by which the middle of *length* stands off its ends: κ L² / 8, a flat arc."""
    return bend * length**2 / 8
