"""Which measures lead, and which clips are shown: by rules that the page states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vivavoce.eval.catalogue import METRICS, Metric
from vivavoce.eval.report.study import Row, Study

# the first of each line that was measured leads: melody, dynamics, emotion, vocal events, words, voice
LEAD = (("f0_corr",), ("energy_corr",), ("emotion_same",), ("event_f1", "event_kept"), ("per",),
        ("margin", "sim_source"))  # fmt: skip
SHOWN, SAME_KIND = 3, 2
RULE = (
    "Each clip gets the mean, over the leading measures that it has (two at least), of where it stands between the "
    "shuffled mean (0) and the identity mean (1), held to 0 to 1; likeness to the target plays no part. Shown are the "
    "{n} highest and the {n} lowest, at most {same} of one kind."
)


def leading(summary: dict[str, Any]) -> list[Metric]:
    """The measures of the first screen: those of LEAD that the converter has, in its order."""
    found = summary["overall"]
    return [METRICS[next(k for k in line if found.get(k, {}).get("n"))] for line in LEAD
            if any(found.get(k, {}).get("n") for k in line)]  # fmt: skip


def ends(study: Study, key: str) -> tuple[float, float] | None:
    """(shuffled, identity) mean of a metric: the ends of its scale; None where they are not apart."""
    rungs = study.summary["rungs"]
    low, high = (rungs.get(k, {}).get("overall", {}).get(key, {}).get("mean") for k in ("shuffled", "identity"))
    if low is None or high is None or abs(high - low) < 0.02:
        return None
    return float(low), float(high)


def share_kept(study: Study, key: str, value: float) -> float | None:
    """Where a value stands between chance (0) and the untouched source (1)."""
    scale = ends(study, key)
    return None if scale is None else (value - scale[0]) / (scale[1] - scale[0])


def score(study: Study, row: Row, metrics: Sequence[Metric]) -> float | None:
    """The rule's number for one clip; None where fewer than two measures speak of it."""
    shares = [share_kept(study, m.key, row[m.key]) for m in metrics if math.isfinite(row.get(m.key, math.nan))]
    held = [min(max(s, 0.0), 1.0) for s in shares if s is not None]
    return sum(held) / len(held) if len(held) >= 2 else None


@dataclass(frozen=True)
class Choice:
    """Rows of the converter with their scores, best first."""

    best: list[tuple[Row, float]]
    worst: list[tuple[Row, float]]
    rule: str


def choose(study: Study) -> Choice:
    """The best and the worst clips; no clip is in both."""
    # the margin says how far the voice moved, not what of the performance survived
    metrics = [m for m in leading(study.summary) if m.judge != "speaker"]
    scored = [(r, s) for r in study.rungs["converted"] if (s := score(study, r, metrics)) is not None]
    scored.sort(key=lambda rs: (-rs[1], rs[0]["id"]))
    most = min(SHOWN, len(scored) // 2 or len(scored))
    best = _some(scored, most)
    taken = {r["id"] for r, _ in best}
    worst = _some([rs for rs in reversed(scored) if rs[0]["id"] not in taken], most)
    return Choice(best, worst, RULE.format(n=SHOWN, same=SAME_KIND))


def _some(scored: Sequence[tuple[Row, float]], most: int) -> list[tuple[Row, float]]:
    out: list[tuple[Row, float]] = []
    for row, s in scored:
        same = sum(r.get("kind") == row.get("kind") for r, _ in out)
        if len(out) < most and (same < SAME_KIND or not row.get("kind")):
            out.append((row, s))
    return out
