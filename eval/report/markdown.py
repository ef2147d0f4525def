"""The report as a markdown table, for a model card or a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vivavoce.eval.catalogue import METRICS
from vivavoce.eval.report.pick import leading
from vivavoce.eval.report.study import TITLES, Study
from vivavoce.eval.report.words import figure, interval

ALSO = ("emotion_uar_kept", "event_kept", "laugh_f1", "cry_f1", "sim_target", "sim_source", "dnsmos")


def markdown(study: Study) -> str:
    """A line a measure and rung, a column a kind of clip; each cell with its interval and n."""
    s = study.summary
    kinds = [k for k in s.get("kind", {}) if k != "unlabelled"]
    rungs = [k for k in TITLES if k == "converted" or k in s["rungs"]]
    keys = [m.key for m in leading(s)]
    keys += [k for k in ALSO if k not in keys and s["overall"].get(k, {}).get("n")]
    lines = ["| measure | rung | all clips | " + "".join(f"{_cell(k)} | " for k in kinds),
             "|---|---|---|" + "---|" * len(kinds)]  # fmt: skip
    for key in keys:
        for rung in rungs:
            found = s if rung == "converted" else s["rungs"][rung]
            title = study.name if rung == "converted" else TITLES[rung]
            stats = [found["overall"], *(found.get("kind", {}).get(k, {}) for k in kinds)]
            cells = "".join(f"{_stat(v.get(key, {}), METRICS[key].unit)} | " for v in stats)
            lines.append(f"| {METRICS[key].title} | {_cell(title)} | {cells}".rstrip())
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _stat(v: Mapping[str, Any], unit: str) -> str:
    return f"{figure(v['mean'], unit)} [{interval(v)}] n {v['n']}" if v.get("n") else "–"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
