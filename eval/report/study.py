"""Rungs of pairs in; judged rows and summaries out."""

from __future__ import annotations

import csv
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vivavoce.core.checkpoint import finite, read_json
from vivavoce.core.errors import CheckpointError, CorpusError
from vivavoce.eval.baselines import derangement
from vivavoce.eval.cache import Cache
from vivavoce.eval.catalogue import METRICS
from vivavoce.eval.measure import DEFAULT_JUDGES, Pair, Panel, reasons, summarise, write
from vivavoce.eval.metrics import NAN

FORMAT = 1
KEPT = "judgements.sqlite"  # what judges heard, beside the report
Row = dict[str, Any]
TITLES = {  # rung -> how pages call it, in the order of the ladder
    "identity": "identity", "codec": "codec only", "converted": "converter", "live": "live stream",
    "cascade": "cascade (text)", "shuffled": "shuffled",
}  # fmt: skip
ABOUT = {
    "identity": "each source against itself: the upper end of every scale",
    "codec": "the source through the codec alone, own voice: what is lost here, no language model brings back",
    "live": "converted as a live stream, whose register is learnt on the way",
    "converted": "the system under test",
    "cascade": "speech to text to speech: what is left when a performance passes through words",
    "shuffled": "each source against another source: chance",
}
SPEECH = ("", "none")
KINDS = {
    "laugh": "laughs", "cry": "cries and sobs", "sob": "cries and sobs", "sigh": "sighs and breaths",
    "breath": "sighs and breaths", "gasp": "sighs and breaths", "scream": "screams and shouts",
    "shout": "screams and shouts",
}  # fmt: skip


def kind(labels: dict[str, Any]) -> str:
    """What sort of clip a manifest says it is: speech (neutral or emotional), laughs, cries and sobs, ..."""
    voice, mood = (str(labels.get(k) or "") for k in ("vocalisation", "emotion"))
    if voice not in SPEECH:
        return KINDS.get(voice, "other sounds")
    if mood in ("neutral", "calm"):
        return "neutral speech"
    return "emotional speech" if mood not in ("", "unknown") else ""


@dataclass(frozen=True)
class Study:
    """Everything that the page, the tables and the gate are made of.

    Attributes:
        name: of the system under test.
        rungs: rung -> its rows; `converted` is the system under test.
        summary: JSON data, see `summary.json`.
        pairs: of the system under test, in the order of its rows.
        notes: what a reader must know: strays, rungs that could not be had.
    """

    name: str
    rungs: dict[str, list[Row]]
    summary: dict[str, Any]
    pairs: list[Pair]
    notes: list[str] = field(default_factory=list)


def ends(pairs: Sequence[Pair], seed: int = 0) -> dict[str, list[Pair]]:
    """The two ends of every scale: each source against itself, and against another source."""
    out = {"identity": [replace(p, converted=p.source) for p in pairs]}
    if len(pairs) > 1:
        others = [pairs[i].source for i in derangement(len(pairs), seed)]
        out["shuffled"] = [replace(p, converted=q) for p, q in zip(pairs, others) if q != p.source]
    return out


def study(name: str, rungs: dict[str, list[Pair]], out: Path, judges: Iterable[str] = DEFAULT_JUDGES,
          notes: Sequence[str] = (), run: dict[str, Any] | None = None, chunk_ms: float | None = None,
          progress: bool = True) -> Study:  # fmt: skip
    """Judge every pair of every rung; write `clips.csv` and `summary.json` into `out`.

    What a judge heard in a file is kept beside the report by content, so an interrupted report goes on.

    Args:
        rungs: rung -> pairs; `converted` must be among them.
        run: what made the recordings (command, seed, model), for the summary.
        chunk_ms: see `Panel`.

    Raises:
        CorpusError: no pair, or a folder that cannot be written into.
        JudgeError: an unknown judge.
    """
    if not rungs.get("converted"):
        raise CorpusError("nothing to measure: no pair of a source and a converted file")
    panel, digests = Panel(judges, out / KEPT, chunk_ms), Cache(None)
    rows: dict[str, list[Row]] = {}
    jobs = [(k, p) for k in TITLES if k in rungs for p in rungs[k]]
    for rung, pair in tqdm(jobs, desc="judge", unit="clip", disable=None if progress else True):
        row = {"rung": rung, **panel.measure(pair), "kind": kind(pair.fields), "content": _content(digests, pair)}
        rows.setdefault(rung, []).append(row)
    panel.cache.close()
    own = rows["converted"]
    summary: dict[str, Any] = {
        "format": FORMAT, "name": name, "clips": len(own), "speakers": _speakers(rungs["converted"]),
        "rows": "clips.csv", "judges": panel.cards(), "not_measured": reasons(own), "notes": list(notes),
        "run": {**machine(), **(run or {})}, **groups(own, ("kind", "vocalisation", "emotion")),
        "rungs": {k: groups(v, ("kind",)) for k, v in rows.items() if k != "converted"},
    }  # fmt: skip
    summary["metrics"] = {k: METRICS[k].card() for k in summary["overall"]}
    summary = finite(summary)
    write(out, [r for v in rows.values() for r in v], summary)
    return Study(name, rows, summary, rungs["converted"], list(notes))


def _content(digests: Cache, pair: Pair) -> str:
    """The source's digest, 12 digits of it; "" where it cannot be read."""
    try:
        return digests.digest(pair.source).hex()[:12]
    except OSError:
        return ""


def groups(rows: Sequence[Row], keys: Sequence[str]) -> dict[str, Any]:
    """Means with n and intervals: overall, and by each of these labels that the rows have."""
    out: dict[str, Any] = {"overall": summarise(rows)}
    for key in keys:
        if any(r.get(key) for r in rows):
            members: dict[str, list[Row]] = {}
            for r in rows:
                members.setdefault(r.get(key) or "unlabelled", []).append(r)
            ordered = sorted(members.items(), key=lambda kv: (-len(kv[1]), kv[0]))
            out[key] = {k: {"clips": len(v), **summarise(v)} for k, v in ordered}
    return out


def machine() -> dict[str, str]:
    """What it ran on, as far as numbers could depend on it."""
    return {"python": platform.python_version(), "numpy": np.__version__, "platform": platform.platform()}


def _speakers(pairs: Sequence[Pair]) -> int:
    """How many speakers the manifest names; 0 without one."""
    return len({s for p in pairs if (s := p.fields.get("speaker"))})


@dataclass(frozen=True)
class Other:
    """Another system's report: its name, rows and judges."""

    name: str
    rows: list[Row]
    judges: dict[str, Any]


def read(path: str | Path) -> Other:
    """Read another report's `summary.json` and the rows that it points to.

    Raises:
        CorpusError: no such report, one of another format, or one whose rows are gone.
    """
    path = Path(path)
    path = path / "summary.json" if path.is_dir() else path
    try:
        summary = read_json(path)
    except CheckpointError as e:
        raise CorpusError(f"{e}; --compare takes the summary.json of another report") from None
    if not isinstance(summary, dict) or summary.get("format") != FORMAT or "rows" not in summary:
        raise CorpusError(f"{path}: not the summary of a report of format {FORMAT}; make that report anew")
    table = path.parent / str(summary["rows"])
    try:
        with open(table, encoding="utf-8", newline="") as f:
            rows = [_typed(r) for r in csv.DictReader(f) if r.get("rung") == "converted"]
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise CorpusError(f"{table}: the rows of {path} cannot be read ({e}); keep the file beside it") from None
    if not rows:
        raise CorpusError(f"{table}: holds no row of a converter; make that report anew")
    return Other(str(summary.get("name", path.parent.name)), rows, summary.get("judges", {}))


def _typed(row: dict[str, str]) -> Row:
    """Cells as they were: numbers where the column is a metric's or a weight's."""
    numeric = {c for m in METRICS.values() if m.pool is None for c in m.columns}
    try:
        return {k: (float(v) if v else NAN) if k in numeric else v for k, v in row.items()}
    except ValueError as e:
        raise CorpusError(f"clips.csv: {e}; make that report anew") from None

