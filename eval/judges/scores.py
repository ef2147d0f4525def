"""What judges of other projects score on labelled data: `scores.json`, made by `python benchmarks/judges.py`."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

from vivavoce.core.checkpoint import read_json

FILE = Path(__file__).with_name("scores.json")


@lru_cache(maxsize=1)
def _all() -> dict[str, Any]:
    return read_json(FILE) if FILE.is_file() else {}


def known(name: str, version: str) -> list[dict[str, Any]]:
    """Scores of this judge; where they were taken with another version, `what` says so."""
    found = _all().get(name)
    if found is None:
        return []
    note = "" if found["version"] == version else f" (taken with version {found['version']})"
    return [{**{k: math.nan if v is None else v for k, v in s.items()}, "what": s["what"] + note}
            for s in found["scores"]]  # fmt: skip
