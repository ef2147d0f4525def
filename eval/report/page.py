"""One self-contained page: no other file, no request, no script but twenty lines of our own."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vivavoce.core.checkpoint import atomic_path
from vivavoce.core.errors import AudioError, CorpusError
from vivavoce.eval.catalogue import METRICS, Metric
from vivavoce.eval.judges import JudgeError
from vivavoce.eval.report import charts, pick, story, words
from vivavoce.eval.report.compare import DRAWS, Comparison
from vivavoce.eval.report.gate import Limit
from vivavoce.eval.report.media import EXCERPT, sound
from vivavoce.eval.report.picture import Listener
from vivavoce.eval.report.study import ABOUT, TITLES, Study
from vivavoce.eval.report.svg import Axis, axis_for, document, mark

MAX_BYTES = 10_000_000
TEMPLATES = Path(__file__).with_name("templates")
Verdicts = Sequence[tuple[Limit, float | None, str | None]]


def write_page(study: Study, out: Path, comparison: Comparison | None = None, gate: Verdicts = (),
               date: str = "") -> Path:  # fmt: skip
    """Write `out`/report.html, atomically; under MAX_BYTES, if need be with Opus in place of FLAC.

    Args:
        date: printed in the head; "" leaves it out.

    Raises:
        JudgeError: jinja2 is not installed.
        CorpusError: the folder cannot be written into.
    """
    choice, listener = pick.choose(study), Listener()
    for small in (False, True):
        clips = {name: [_clip(study, row, score, listener, small) for row, score in rows]
                 for name, rows in (("best", choice.best), ("worst", choice.worst))}  # fmt: skip
        html = render(study, clips, choice.rule, listener.absent, comparison, gate, date)
        if len(html.encode()) < MAX_BYTES:
            break
    return write_text(out / "report.html", html)


def write_text(path: Path, text: str) -> Path:
    """Write it atomically. Raises CorpusError."""
    try:
        with atomic_path(path) as temp:
            temp.write_text(text, encoding="utf-8")
    except OSError as e:
        raise CorpusError(f"{path}: cannot be written ({e.strerror})") from None
    return path


def render(study: Study, clips: dict[str, list[dict[str, Any]]], rule: str, absent: Sequence[str] = (),
           comparison: Comparison | None = None, gate: Verdicts = (), date: str = "") -> str:  # fmt: skip
    """The page as text."""
    try:
        from jinja2 import Environment, FileSystemLoader
    except ImportError as e:
        raise JudgeError(f"the page is not available ({e}); to have it: pip install jinja2") from None
    env = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True,
                      lstrip_blocks=True)  # fmt: skip
    env.filters |= {"figure": words.figure, "interval": words.interval}
    env.globals |= {"count": words.count, "sign": _sign, "draws": DRAWS}
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    metrics = pick.leading(study.summary)
    s = study.summary
    rungs = [k for k in TITLES if k == "converted" or k in s["rungs"]]
    overall = {k: (s if k == "converted" else s["rungs"][k])["overall"] for k in rungs}
    measured = [m for m in METRICS.values() if any(v.get(m.key, {}).get("n") for v in overall.values())]
    titles = {**TITLES, "converted": study.name}
    return env.get_template("page.html").render(
        study=study, s=s, date=date, style=style, script=script, policy=_policy(script), metrics=metrics,
        rungs=rungs, titles=titles, about=ABOUT, overall=overall, measured=measured, clips=clips, rule=rule,
        headline=story.headline(study, metrics), tiles=_tiles(study, metrics, overall), excerpt=int(EXCERPT),
        profile=_profile(study, metrics, comparison), ladder=_ladder(study, metrics, rungs, overall),
        died=story.losses(study, metrics), spreads=_spreads(study, metrics), tables=_tables(s, metrics),
        comparison=comparison, differences=_differences(comparison), gate=gate, absent=absent,
        failed=any(why for _, _, why in gate), groups_from=story.grouping(study)[1],
        better={"higher": "higher is better", "lower": "lower is better", "zero": "nearer to 0 is better", "none": ""},
        all_metrics=METRICS,
    )  # fmt: skip


def _policy(script: str) -> str:
    """Nothing is fetched, and of scripts only our own runs: names in a report are a stranger's."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (f"default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
            f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'")  # fmt: skip


def _sign(rung: str) -> str:
    return document(16, 16, [mark(rung, 8, 8)], TITLES.get(rung, "other system"), "sign")


def _axis(study: Study, metric: Metric, stats: Mapping[str, Sequence[dict[str, Any]]]) -> Axis:
    """Wide enough for the means of all rungs; an interval of a handful of clips may run out at the edge."""
    bounded = _bounded(study, metric)
    names = ("mean",) if bounded else ("mean", "low", "high")
    known = [s[k] for found in stats.values() for s in found if s.get("n") for k in names]
    return axis_for(known, metric.better == "lower", bounded)


def _bounded(study: Study, metric: Metric) -> bool:
    """Whether a metric lives on 0..1: doing nothing scores one of the two."""
    mean = study.summary["rungs"].get("identity", {}).get("overall", {}).get(metric.key, {}).get("mean")
    return metric.unit == "" and (mean is None or min(abs(mean), abs(mean - 1)) < 0.02)


def _tiles(study: Study, metrics: Sequence[Metric], overall: dict[str, Any]) -> list[dict[str, Any]]:
    tiles = []
    for m in metrics:
        stats = {k: v[m.key] for k, v in overall.items() if v.get(m.key, {}).get("n")}
        own = study.summary["overall"][m.key]
        axis = _axis(study, m, {k: [v] for k, v in stats.items()})
        said = "; ".join(f"{TITLES[k]} {words.figure(v['mean'])}" for k, v in stats.items())
        tiles.append({"metric": m, "stat": own, "gauge": charts.gauge(stats, axis, f"{m.title}: {said}")})
    return tiles


def _profile(study: Study, metrics: Sequence[Metric], comparison: Comparison | None) -> dict[str, str]:
    """Wide: one picture with a panel a measure. Narrow: a picture a measure, one below the other."""
    lines, stats = story.profile_lines(study, metrics, comparison)
    panels = [charts.Panel(m.key, m.title, _axis(study, m, stats[m.key]), m.unit) for m in metrics]
    title = "What survived, by group and measure; the tables below hold the same numbers"
    return {"wide": charts.profile(panels, lines, title, class_="profile wide"),
            "narrow": "".join(charts.profile([p], lines, f"{p.title}, by group", 400.0, 186.0, class_="profile narrow")
                              for p in panels)}  # fmt: skip


def _ladder(study: Study, metrics: Sequence[Metric], rungs: Sequence[str], overall: dict[str, Any]) -> dict[str, str]:
    cells = {m.key: {k: overall[k].get(m.key, {}) for k in rungs} for m in metrics}
    names = {**TITLES, "converted": study.name}
    lines = [charts.Line(names[k], {m: {k: v[k]} for m, v in cells.items()}, strong=k == "converted") for k in rungs]
    panels = [charts.Panel(m.key, m.title, _axis(study, m, {k: [v] for k, v in cells[m.key].items()}), m.unit)
              for m in metrics]  # fmt: skip
    title = "The ladder: each measure at every rung; the table below holds the same numbers"
    wide = charts.profile(panels, lines, title, connect="join", class_="profile wide")
    small = [charts.profile([p], lines, f"The ladder: {p.title}", 400.0, 140.0, "join", "profile narrow")
             for p in panels]  # fmt: skip
    return {"wide": wide, "narrow": "".join(small)}


def _spreads(study: Study, metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    out = []
    for m in metrics:
        ours, chance = ([r[m.key] for r in study.rungs.get(k, ()) if math.isfinite(r.get(m.key, math.nan))]
                        for k in ("converted", "shuffled"))  # fmt: skip
        if len(ours) >= 3:
            title = f"{m.title} of {len(ours)} clips, against {len(chance)} shuffled ones"
            picture = charts.distribution(ours, chance, title, m.better == "lower", _bounded(study, m))
            out.append({"metric": m, "picture": picture, "n": len(ours)})
    return out


def _tables(summary: dict[str, Any], metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    names = {"kind": "Kind of clip", "emotion": "Emotion, all clips", "vocalisation": "Vocalisation"}
    out = []
    for key, title in names.items():
        found = summary.get(key, {})
        rows = [(k, v["clips"], [v.get(m.key, {}) for m in metrics]) for k, v in found.items()]
        out += [{"title": title, "rows": rows}] if rows else []
    return out


def _differences(comparison: Comparison | None) -> list[dict[str, Any]]:
    if comparison is None:
        return []
    out = []
    for d in comparison.differences:
        reach = max(abs(d.low), abs(d.high), 1e-3) * 1.1
        title = f"{d.metric.title}: difference {words.figure(d.mean)}, {words.figure(d.low)} to {words.figure(d.high)}"
        out.append({"d": d, "picture": charts.difference(d.low, d.mean, d.high, reach, d.better, title)})
    return out


def _clip(study: Study, row: dict[str, Any], score: float, listener: Listener, small: bool) -> dict[str, Any]:
    """A card: labels, numbers, players and the picture; what cannot be read is left out and said."""
    sounds, picture, trouble = [], "", ""
    try:
        picture = listener.draw(row["source"], row["converted"], row["id"])
        for name in ("source", "converted", "target"):
            if row[name]:
                sounds.append((name, sound(row[name], small)))
    except AudioError as e:
        trouble = str(e)
    numbers = [(m, row[m.key]) for m in pick.leading(study.summary) if math.isfinite(row.get(m.key, math.nan))]
    return {"id": row["id"], "score": score, "labels": _labels(row),
            "numbers": numbers, "sounds": sounds, "picture": picture, "trouble": trouble,
            "notes": row.get("notes") or [], "seconds": row.get("seconds", math.nan)}  # fmt: skip


def _labels(row: dict[str, Any]) -> list[str]:
    """What a manifest says of a clip, nothing twice (`laughs` says `laugh`)."""
    out: list[str] = []
    for key in ("kind", "vocalisation", "emotion", "language"):
        word = str(row.get(key) or "none")
        if word != "none" and not any(word in said for said in out):
            out.append(word)
    return out
