"""Heat: steady temperatures in a block of cells, by finite volumes.

∇·(k ∇T) + q = 0 inside, k ∂T/∂n = h (T_a - T) at top and bottom, no flux through the sides.
A face between two cells conducts as their two halves in series, which is of second order
and exact for layers (Patankar, Numerical Heat Transfer and Fluid Flow, 1980, section 4.2).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Block:
    """Cells of one block, indexed z y x from the bottom.

    conductivity: W/(m K) of each cell, nz × ny × nx. widths: m of the cells along z, y and x.
    top, bottom: W/(m² K) from the outer faces to the surroundings.
    """

    conductivity: Array
    widths: tuple[Array, Array, Array]
    top: float
    bottom: float

    def rise(self, power: Array) -> Array:
        """Return K above the surroundings in each cell's middle, for W in each cell.

        power: … × nz × ny × nx; all its maps share one factorisation.
        """
        from scipy.sparse.linalg import splu

        columns = power.reshape(-1, self.conductivity.size).T
        # the matrix is symmetric: an ordering for such needs half the time and memory
        factors = splu(self._matrix(), permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})
        solution: Array = factors.solve(np.ascontiguousarray(columns))
        return solution.T.reshape(power.shape)

    def leaving(self, rise: Array) -> tuple[Array, Array]:
        """Return the W that leave through bottom and top, for K in each cell."""
        bottom, top = self._outer()
        return (bottom * rise[..., 0, :, :]).sum((-2, -1)), (top * rise[..., -1, :, :]).sum(
            (-2, -1)
        )

    def _matrix(self) -> Any:
        """Conductances in W/K: what leaves a cell on the diagonal, its neighbours beside it."""
        from scipy.sparse import coo_array

        shape = self.conductivity.shape
        index = np.arange(self.conductivity.size).reshape(shape)
        leaving = np.zeros(shape)
        leaving[0] += self._outer()[0]
        leaving[-1] += self._outer()[1]
        rows, columns, values = [index.ravel()], [index.ravel()], [leaving.ravel()]
        for axis in range(3):
            low, high = (np.delete(index, end, axis).ravel() for end in (-1, 0))
            between = self._between(axis).ravel()
            rows += [low, high, low, high]
            columns += [high, low, low, high]
            values += [-between, -between, between, between]
        parts = (np.concatenate(rows), np.concatenate(columns))
        return coo_array((np.concatenate(values), parts), shape=(index.size, index.size)).tocsc()

    def _between(self, axis: int) -> Array:
        """Conductance of each face across *axis*: two half cells in series."""
        half = self._along(axis) / (2 * self.conductivity)
        low, high = (np.delete(half, end, axis) for end in (-1, 0))
        first, second = (self._along(other) for other in range(3) if other != axis)
        area: Array = first * second
        return area / (low + high)

    def _outer(self) -> tuple[Array, Array]:
        """Conductance of each bottom and top face: half a cell and the surface in series."""
        area = self._along(1)[0] * self._along(2)[0]
        half = self._along(0) / (2 * self.conductivity)
        ends = ((half[0], self.bottom), (half[-1], self.top))
        bottom, top = (area * transfer / (1 + transfer * inner) for inner, transfer in ends)
        return bottom, top

    def _along(self, axis: int) -> Array:
        """Widths along *axis*, shaped to broadcast against the cells."""
        shape = [1, 1, 1]
        shape[axis] = -1
        return self.widths[axis].reshape(shape)
