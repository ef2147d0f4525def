"""Source side: content units, expression units and pitch, with a chosen look-ahead."""

from vivavoce.units.model import UnitEncoder, UnitsConfig

__all__ = ["UnitEncoder", "UnitsConfig"]
