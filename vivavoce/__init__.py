"""Vivavoce: the same speech in another voice, at once; laughter, crying and every shade of emotion kept.

    import vivavoce
    changer = vivavoce.load()
    voice = changer.enroll("someone.wav")
    vivavoce.save("out.wav", *changer.convert("laughing.wav", voice))
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Changer", "Stream", "VivavoceError", "Voice", "load", "save"]

if TYPE_CHECKING:
    from vivavoce.changer import Changer, load
    from vivavoce.core.audio import save
    from vivavoce.core.errors import VivavoceError
    from vivavoce.stream import Stream
    from vivavoce.voice import Voice

_HOMES = {
    "Changer": "vivavoce.changer",
    "load": "vivavoce.changer",
    "save": "vivavoce.core.audio",
    "VivavoceError": "vivavoce.core.errors",
    "Stream": "vivavoce.stream",
    "Voice": "vivavoce.voice",
}

# In a checkout's own folder, `python -m vivavoce` finds this file before the installed package, and the rooms lie
# beside it, not in it.
_checkout = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if os.path.isfile(os.path.join(_checkout, "pyproject.toml")):
    __path__.append(_checkout)


def __getattr__(name: str) -> Any:
    """Names resolve on first use, so that `import vivavoce` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vivavoce' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
