"""The pictures of the page: the profile (also the ladder's shape), distributions, differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from vivavoce.eval.report.svg import Axis, axis_for, document, mark, number, tag
from vivavoce.eval.report.words import spoken

ROW, HEAD, FOOT, GAP = 23.0, 50.0, 8.0, 26.0
FEW = 3  # numbers of fewer clips are drawn pale
Stat = Mapping[str, float | int | None]  # mean, low, high, n


@dataclass(frozen=True)
class Panel:
    """A column of the profile: one measure on its own axis."""

    key: str
    title: str
    axis: Axis
    unit: str = ""


@dataclass(frozen=True)
class Line:
    """A row of the profile.

    Attributes:
        stats: panel key -> rung -> mean, interval and n.
        section: heading above the first row that has it.
        strong: set in bold.
    """

    label: str
    stats: Mapping[str, Mapping[str, Stat]]
    note: str = ""
    section: str = ""
    strong: bool = False


@dataclass
class Canvas:
    """Where the next thing goes."""

    body: list[str] = field(default_factory=list)
    y: float = HEAD


def profile(panels: Sequence[Panel], lines: Sequence[Line], title: str, width: float = 1080.0,
            label: float = 178.0, connect: str = "", class_: str = "profile") -> str:  # fmt: skip
    """Rows of groups, a panel a measure, a mark a rung; the interval of the converter (and of a second
    system) as a bar. Right is good in every panel.

    Args:
        label: width of the row labels.
        connect: the rung whose marks are joined from row to row, for a ladder.
    """
    if not panels or not lines:
        return ""
    each = (width - label - GAP * (len(panels) - 1) - 14) / len(panels)
    placed = [replace(p, axis=p.axis.moved(label + i * (each + GAP), each)) for i, p in enumerate(panels)]
    c, spots, section = Canvas(), [], None
    for line in lines:
        if line.section != section:
            section = line.section
            if section:
                c.y += 9 if c.body else 0
                c.body.append(tag("text", section, x=0, y=c.y + 13, class_="t-section"))
                c.y += ROW
        spots.append(c.y + ROW / 2)
        c.body += _line(placed, line, c.y, width)
        c.y += ROW
    height = c.y + FOOT
    back = [x for p in placed for x in _frame(p, height - FOOT, each)]
    joins = [j for p in placed for j in _joins(p, lines, spots, connect)] if connect else []
    return document(width, height, [*back, *joins, *c.body], title, class_)


def _frame(p: Panel, bottom: float, width: float) -> list[str]:
    """Title, direction, ticks and grid lines of a panel."""
    ticks = p.axis.ticks(5 if width > 150 else 3)
    out = [tag("text", p.title, x=p.axis.x, y=13, class_="t-panel")]
    if p.unit:
        out.append(tag("text", p.unit, x=p.axis.x, y=26, class_="t-unit"))
    for t in ticks:
        x = p.axis.at(t)
        out.append(tag("path", d=f"M{x:.1f} {HEAD - 6}V{bottom:.1f}", class_="zero" if t == 0 else "grid"))
        out.append(tag("text", number(t), x=x, y=HEAD - 11, class_="t-tick", text_anchor="middle"))
    return out


def _line(panels: Sequence[Panel], line: Line, y: float, width: float) -> list[str]:
    middle = y + ROW / 2
    out = [tag("path", d=f"M0 {y + ROW:.1f}H{width:.0f}", class_="rule"),
           tag("text", line.label, x=0, y=middle + 4, class_="t-strong" if line.strong else "t-row")]  # fmt: skip
    if line.note:
        x = panels[0].axis.x - 16
        out.append(tag("text", line.note, x=x, y=middle + 4, class_="t-note", text_anchor="end"))
    for p in panels:
        stats = {k: s for k, s in line.stats.get(p.key, {}).items() if s.get("n")}
        if not stats:
            out.append(tag("text", "·", x=p.axis.x + p.axis.width / 2, y=middle + 4, class_="t-none"))
        pair = "converted" in stats and "other" in stats
        for rung in sorted(stats, key=_depth):
            shift = {"converted": -4.0, "other": 4.0}.get(rung, 0.0) if pair else 0.0
            out += _stat(p, line.label, rung, stats[rung], middle + shift)
    return out


def _depth(rung: str) -> int:
    """The converter is drawn last, on top."""
    return {"other": 1, "converted": 2}.get(rung, 0)


def _stat(p: Panel, label: str, rung: str, s: Stat, y: float) -> list[str]:
    mean, low, high = (float(s[k]) for k in ("mean", "low", "high"))  # type: ignore[arg-type]
    out = []
    if rung in ("converted", "other") or label == rung:
        a, b = sorted((p.axis.at(low), p.axis.at(high)))
        out.append(tag("path", d=f"M{a:.1f} {y:.1f}H{b:.1f}", class_=f"bar bar-{rung}"))
    out.append(mark(rung, p.axis.at(mean), y, title=f"{label}, {p.title}, {rung}: {spoken(s)}"))
    return [f'<g class="few">{"".join(out)}</g>'] if int(s["n"] or 0) < FEW else out


def _joins(p: Panel, lines: Sequence[Line], spots: Sequence[float], connect: str) -> list[str]:
    points = []
    for line, y in zip(lines, spots):
        found = next((s for s in line.stats.get(p.key, {}).values() if s.get("n")), None)
        if found and found["mean"] is not None:
            points.append(f"{p.axis.at(float(found['mean'])):.1f} {y:.1f}")
    return [tag("path", d="M" + "L".join(points), class_=connect)] if len(points) > 1 else []


def distribution(values: Sequence[float], chance: Sequence[float], title: str, falling: bool,
                 bounded: bool) -> str:  # fmt: skip
    """How the clips spread: bars for the converter, a stepped outline for shuffled clips, a line at the mean."""
    width, top, base = 320.0, 8.0, 96.0
    ours = np.asarray([v for v in values if math.isfinite(v)])
    theirs = np.asarray([v for v in chance if math.isfinite(v)])
    if not len(ours):
        return ""
    axis = axis_for([*ours, *theirs], falling, bounded).moved(10, width - 20)
    low, high = sorted((axis.left, axis.right))
    edges = np.linspace(low, high, 25)
    shares = [np.histogram(np.clip(v, low, high), edges)[0] / max(len(v), 1) for v in (ours, theirs)]
    tall = max(float(s.max(initial=0)) for s in shares) or 1.0
    out = []
    for i, share in enumerate(shares[0]):
        if share:
            a, b = sorted((axis.at(edges[i]), axis.at(edges[i + 1])))
            h = (base - top) * share / tall
            out.append(tag("rect", x=a + 0.6, y=base - h, width=b - a - 1.2, height=h, class_="column"))
    if len(theirs):
        path = f"M{axis.at(edges[0]):.1f} {base}"
        for i, share in enumerate(shares[1]):
            path += f"V{base - (base - top) * share / tall:.1f}H{axis.at(edges[i + 1]):.1f}"
        out.append(tag("path", d=f"{path}V{base}", class_="outline"))
    x = axis.at(float(ours.mean()))
    out += [tag("path", d=f"M10 {base}H{width - 10}", class_="base"),
            tag("path", d=f"M{x:.1f} {top - 6}V{base}", class_="mean")]  # fmt: skip
    for t in axis.ticks():
        out.append(tag("text", number(t), x=axis.at(t), y=base + 14, class_="t-tick", text_anchor="middle"))
    return document(width, base + 20, out, title, "distribution")


def difference(low: float, mean: float, high: float, reach: float, better: bool | None, title: str) -> str:
    """An interval on a line whose middle is zero; `reach` is the value at either end."""
    axis = Axis(-reach, reach, 6, 188)
    kind = {True: "gain", False: "loss", None: "even"}[better]
    y = 12.0
    out = [tag("path", d=f"M6 {y}H194", class_="grid"), tag("path", d=f"M100 {y - 8}V{y + 8}", class_="zero"),
           tag("path", d=f"M{axis.at(low):.1f} {y}H{axis.at(high):.1f}", class_=f"bar {kind}"),
           tag("circle", cx=axis.at(mean), cy=y, r=4, class_=f"point {kind}")]  # fmt: skip
    return document(200, 24, out, title, "difference")


def gauge(stats: Mapping[str, Stat], axis: Axis, title: str) -> str:
    """One measure on its scale: where shuffled, identity and the other rungs lie, and the converter's interval."""
    width, y = 240.0, 13.0
    panel = Panel("", title, axis.moved(9, width - 18))
    out = [tag("path", d=f"M9 {y}H{width - 9:.0f}", class_="base")]
    for rung in sorted(stats, key=_depth):
        if stats[rung].get("n"):
            out += _stat(panel, title, rung, stats[rung], y)
    return document(width, 26, out, title, "gauge")
