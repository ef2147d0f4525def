"""The sentences and groupings that the numbers allow; every word follows from a rule."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from vivavoce.core.checkpoint import finite
from vivavoce.eval.catalogue import Metric
from vivavoce.eval.measure import summarise
from vivavoce.eval.report.charts import Line
from vivavoce.eval.report.compare import Comparison
from vivavoce.eval.report.pick import ends, share_kept
from vivavoce.eval.report.study import SPEECH, TITLES, Row, Study
from vivavoce.eval.report.words import figure

MOST = 10  # groups of one section of the profile; smaller ones are pooled
DRAWN = ("identity", "shuffled", "codec", "cascade", "converted")  # rungs of the profile
Groups = list[tuple[str, str, set[str]]]  # section, label, ids


def headline(study: Study, metrics: Sequence[Metric]) -> str:
    """What came through best and worst, on the scale from shuffled (0 %) to identity (100 %)."""
    shares = []
    for m in metrics:
        mean = study.summary["overall"][m.key]["mean"]
        if m.judge != "speaker" and (s := share_kept(study, m.key, mean)) is not None:
            shares.append((min(max(s, 0.0), 1.0), m, mean))
    if not shares:
        return "Too little could be measured for a verdict; what stood in the way is listed below."
    shares.sort(key=lambda x: -x[0])
    first, last = shares[0], shares[-1]
    text = f"Between chance and the untouched source, most came through by {_share(first)}"
    return f"{text}, least by {_share(last)}." if len(shares) > 1 else f"{text}."


def _share(item: tuple[float, Metric, float]) -> str:
    share, metric, mean = item
    return f"{metric.title}: {100 * share:.0f}\u00a0% of the way ({figure(mean, metric.unit)})"


def losses(study: Study, metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    """For each measure, what each step of the ladder costs, in % of the way from identity to shuffled."""
    path = [k for k in ("identity", "codec", "converted") if k == "converted" or k in study.summary["rungs"]]
    out = []
    for m in metrics:
        scale, means = ends(study, m.key), [_mean(study, k, m.key) for k in path]
        if m.judge == "speaker" or scale is None or any(v is None for v in means) or len(path) < 2:
            continue
        shares = [(v - scale[0]) / (scale[1] - scale[0]) for v in means if v is not None]
        steps = [a - b for a, b in pairwise(shares)]
        worst = max(range(len(steps)), key=lambda i: steps[i])
        names = [study.name if k == "converted" else TITLES[k] for k in path]
        out.append({"metric": m, "steps": [(f"{names[i]} → {names[i + 1]}", 100 * v) for i, v in enumerate(steps)],
                    "worst": worst, "cascade": _cascade(study, m.key, scale)})  # fmt: skip
    return out


def _cascade(study: Study, key: str, scale: tuple[float, float]) -> float | None:
    mean = _mean(study, "cascade", key)
    return None if mean is None else 100 * (scale[1] - mean) / (scale[1] - scale[0])


def _mean(study: Study, rung: str, key: str) -> float | None:
    s = study.summary if rung == "converted" else study.summary["rungs"].get(rung, {})
    return s.get("overall", {}).get(key, {}).get("mean")


def grouping(study: Study) -> tuple[Groups, str]:
    """The rows of the profile, and where they come from: a manifest's labels, else what the tagger hears."""
    rows = study.rungs["converted"]
    if any(r.get("emotion") or r.get("vocalisation") for r in rows):
        spoken = [r for r in rows if (r.get("vocalisation") or "") in SPEECH]
        sounds = [r for r in rows if (r.get("vocalisation") or "") not in SPEECH]
        return [*_groups("Speech, by emotion", spoken, "emotion"),
                *_groups("Vocal sounds", sounds, "vocalisation")], "labels of the manifest"  # fmt: skip
    heard = [{**r, "event": r.get("event") or "none heard"} for r in rows]
    if any(r.get("event") for r in rows):
        return _groups("Heard in the source", heard, "event"), "no labels given: what the tagger hears in each source"
    return [], "no labels given, and no tagger heard the clips"


def _groups(section: str, rows: Sequence[Row], key: str) -> Groups:
    members: dict[str, set[str]] = {}
    for r in rows:
        members.setdefault(r.get(key) or "unlabelled", set()).add(r["id"])
    ordered = sorted(members.items(), key=lambda kv: (-len(kv[1]), kv[0]))
    if len(ordered) > MOST:
        rest = set().union(*(ids for _, ids in ordered[MOST - 1 :]))
        ordered = [*ordered[: MOST - 1], (f"{len(ordered) - MOST + 1} rarer kinds", rest)]
    return [(section, label, ids) for label, ids in ordered]


def profile_lines(study: Study, metrics: Sequence[Metric], comparison: Comparison | None) -> tuple[
        list[Line], dict[str, dict[str, list[dict[str, Any]]]]]:  # fmt: skip
    """Rows of the profile; and, by measure and rung, the numbers that an axis must show: all of the systems', of
    the other rungs those of all clips."""
    rungs = {k: study.rungs[k] for k in DRAWN if k in study.rungs}
    if comparison is not None:
        rungs = {k: rungs[k] for k in ("identity", "shuffled", "converted") if k in rungs} | {"other": comparison.rows}
    everyone = {r["id"] for r in study.rungs["converted"]}
    lines, seen = [], {m.key: dict[str, list[dict[str, Any]]]() for m in metrics}
    for section, label, ids in [("", "All clips", everyone), *grouping(study)[0]]:
        stats: dict[str, dict[str, Any]] = {m.key: {} for m in metrics}
        for rung, rows in rungs.items():
            mine = [r for r in rows if r["id"] in ids]
            found = finite(summarise(mine, metrics)) if mine else {}
            for m in metrics:
                if found.get(m.key, {}).get("n"):
                    stats[m.key][rung] = found[m.key]
                    if rung in ("converted", "other") or not section:
                        seen[m.key].setdefault(rung, []).append(found[m.key])
        lines.append(Line(label, stats, str(len(ids)), section, strong=not section))
    return lines, seen


