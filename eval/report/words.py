"""Numbers as words: the same rounding wherever the page, the markdown and a picture's title name one."""

from __future__ import annotations

import math
from collections.abc import Mapping

NONE = "–"


def figure(value: float | int | None, unit: str = "") -> str:
    """A mean as it is printed: three digits, two decimals at most; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return NONE
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2
    text = f"{value:.{digits}f}"
    text = text.removeprefix("-") if float(text) == 0 else text
    return text.replace("-", "−") + (f" {unit}" if unit else "")


def interval(stat: Mapping[str, float | int | None], unit: str = "") -> str:
    """`0.91 to 0.95`, or a dash."""
    if not stat.get("n"):
        return NONE
    return f"{figure(stat['low'])} to {figure(stat['high'], unit)}"


def spoken(stat: Mapping[str, float | int | None], unit: str = "") -> str:
    """`0.93 (95 % interval 0.91 to 0.95, n 24)`."""
    if not stat.get("n"):
        return "not measured"
    return f"{figure(stat['mean'], unit)} (95 % interval {interval(stat)}, n {stat['n']})"


def count(n: int, noun: str, plural: str = "") -> str:
    """`1 clip`, `24 clips`."""
    return f"{n} {noun if n == 1 else plural or noun + 's'}"
