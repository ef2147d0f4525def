"""Two frame rates side by side: source units and codec codes."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import numpy as np
from torch import Tensor

from vivavoce.core.errors import ConfigError

Index = TypeVar("Index", int, np.ndarray, Tensor)


@dataclass(frozen=True)
class Grid:
    """How code frames lie on unit frames. Frame t of rate r begins at t / r seconds, so code frame t is covered by unit
    frame floor(t * unit_rate / code_rate): where the rates are equal, by its own.

    A tick is the shortest time that is whole in both: 20 ms at 50 and 50 Hz, 40 ms (two units, three codes) at 50 and
    75 Hz.

    Args:
        unit_rate, code_rate: Hz. Raises ConfigError where codes are rarer than units: some units would go unheard.
    """

    unit_rate: Fraction = Fraction(50)
    code_rate: Fraction = Fraction(50)

    def __post_init__(self) -> None:
        if self.code_rate < self.unit_rate:
            raise ConfigError(f"a codec of {float(self.code_rate):g} frames a second is slower than the units' "
                              f"{float(self.unit_rate):g}; use one of as many or more")

    @property
    def ratio(self) -> Fraction:
        """Code frames a unit frame."""
        return self.code_rate / self.unit_rate

    @property
    def tick(self) -> tuple[int, int]:
        """Unit frames and code frames of a tick."""
        return self.ratio.denominator, self.ratio.numerator

    def codes(self, units: Index) -> Index:
        """Code frames that begin before unit frame `units` does: how many cover that many unit frames, and the first
        that is covered by it."""
        u, c = self.tick
        return -(-units * c // u)

    def unit(self, code: Index) -> Index:
        """The unit frame that covers a code frame."""
        u, c = self.tick
        return code * u // c

    def ahead(self, code: Index, units: int) -> Index:
        """The first code frame of the unit frame that lies `units` after the one which covers code frame `code`."""
        return self.codes(self.unit(code) + units)
