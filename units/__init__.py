"""Source side: content units, expression units and pitch, with a chosen look-ahead."""

from pathlib import Path

from vivavoce.core.checkpoint import read_json, resolve_folder
from vivavoce.units.hubert.model import HubertUnits
from vivavoce.units.model import UnitEncoder, UnitsConfig

__all__ = ["HubertUnits", "UnitEncoder", "UnitsConfig", "load_units"]


def load_units(folder: str | Path) -> UnitEncoder | HubertUnits:
    """A source encoder from a folder or hub id, of whichever kind its config.json says.

    Raises:
        CheckpointError: a file that is missing, foreign or does not fit.
    """
    head = read_json(resolve_folder(folder) / "config.json")
    kind = head.get("model_type") if isinstance(head, dict) else None
    return (HubertUnits if kind == HubertUnits.model_type else UnitEncoder).from_pretrained(folder)
