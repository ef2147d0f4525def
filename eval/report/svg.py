"""Inline SVG by hand: escaped text, marks with one shape a rung, axes. Colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

MARKS = {  # rung -> shape; the style sheet knows them as .mark-RUNG
    "identity": "tick", "shuffled": "cross", "codec": "ring", "live": "square", "cascade": "diamond",
    "converted": "dot", "other": "box",
}  # fmt: skip


def tag(name: str, text: str | None = None, **attributes: object) -> str:
    """One element; attributes are escaped, numbers rounded to 0.1, `text` is escaped too. `class_` is class."""
    parts = [name]
    for k, v in attributes.items():
        value = f"{v:.1f}".rstrip("0").rstrip(".") if isinstance(v, float) else str(v)
        parts.append(f'{k.rstrip("_").replace("_", "-")}="{escape(value)}"')
    head = " ".join(parts)
    return f"<{head}/>" if text is None else f"<{head}>{escape(text)}</{name}>"


def document(width: float, height: float, body: Sequence[str], title: str, class_: str = "") -> str:
    """A whole picture that scales with the page; `title` is what a screen reader says of it."""
    return (f'<svg class="{escape(class_)}" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
            f'aria-label="{escape(title)}" preserveAspectRatio="xMinYMin meet">{"".join(body)}</svg>')  # fmt: skip


def mark(rung: str, x: float, y: float, r: float = 4.0, title: str = "") -> str:
    """The sign of a rung, centred; `title` shows when a pointer rests on it."""
    shape, kind = MARKS.get(rung, "box"), f"mark mark-{rung}"
    if shape == "tick":
        body = tag("path", d=f"M{x:.1f} {y - 1.7 * r:.1f}V{y + 1.7 * r:.1f}")
    elif shape == "cross":
        a = 0.8 * r
        left, top, side = f"{x - a:.1f}", f"{y - a:.1f}", f"{2 * a:.1f}"
        body = tag("path", d=f"M{left} {top}l{side} {side}m0 -{side}l-{side} {side}")
    elif shape == "diamond":
        a = 1.25 * r
        body = tag("path", d=f"M{x:.1f} {y - a:.1f}l{a:.1f} {a:.1f}l{-a:.1f} {a:.1f}l{-a:.1f} {-a:.1f}z")
    elif shape in ("square", "box"):
        a = 0.9 * r
        body = tag("rect", x=x - a, y=y - a, width=2 * a, height=2 * a)
    else:
        body = tag("circle", cx=x, cy=y, r=float(r if shape == "ring" else 1.15 * r))
    name = f"<title>{escape(title)}</title>" if title else ""
    return f'<g class="{escape(kind)}">{name}{body}</g>'


@dataclass(frozen=True)
class Axis:
    """Values from `left` to `right` (which may be the smaller one) along `width` units from `x`."""

    left: float
    right: float
    x: float = 0.0
    width: float = 100.0

    def at(self, value: float) -> float:
        """Position of a value, held inside the axis."""
        share = (value - self.left) / (self.right - self.left)
        return self.x + self.width * min(max(share, 0.0), 1.0)

    def moved(self, x: float, width: float) -> Axis:
        return Axis(self.left, self.right, x, width)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values inside the axis, at most `most`."""
        low, high = sorted((self.left, self.right))
        step = nice((high - low) / max(most - 1, 1))
        first = math.ceil(low / step - 1e-9)
        return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def nice(step: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    base = 10.0 ** math.floor(math.log10(step))
    return next(m * base for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * base >= step * 0.999)


def axis_for(values: Sequence[float], falling: bool = False, bounded: bool = False) -> Axis:
    """An axis that shows all finite values, in round numbers.

    Args:
        falling: less is better, so that the right side is the good one on every axis.
        bounded: the values belong to 0..1 (a share, a correlation): all of that is shown, and more only if need be.
    """
    known = [v for v in values if v is not None and math.isfinite(v)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    if bounded:
        low, high = min(0.0, math.floor(5 * low + 1e-9) / 5), max(1.0, math.ceil(5 * high - 1e-9) / 5)
    else:
        span = (high - low) or abs(high) or 1.0
        step = nice(span / 4)
        low, high = math.floor((low - 0.02 * span) / step) * step, math.ceil((high + 0.02 * span) / step) * step
    return Axis(high, low) if falling else Axis(low, high)


def number(value: float) -> str:
    """A tick's label: no trailing zeros, a true minus."""
    return f"{value:.3g}".replace("-", "−")
