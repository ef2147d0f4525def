"""Measure conversions: pairs of files in, a row a clip and a summary with intervals out."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vivavoce.core import audio
from vivavoce.core.checkpoint import atomic_path, finite, write_json
from vivavoce.core.errors import AudioError, CorpusError
from vivavoce.core.resample import resample
from vivavoce.eval.baselines import derangement
from vivavoce.eval.cache import Cache
from vivavoce.eval.catalogue import CATALOGUE, Metric, cards
from vivavoce.eval.judges import RATE, Heard, Judge, JudgeError, SignalJudge, find, kind_of
from vivavoce.eval.metrics import NAN, bootstrap, grouped, pooled
from vivavoce.eval.pairs import FIELDS, Pair, Paired, pair_files, recordings

__all__ = [
    "DEFAULT_JUDGES",
    "FIELDS",
    "GROUPS",
    "Measured",
    "Pair",
    "Paired",
    "Panel",
    "finite",
    "measure",
    "pair_files",
    "reasons",
    "recordings",
    "summarise",
    "write",
]  # fmt: skip

DEFAULT_JUDGES = ("speaker", "phonemes", "pitch", "events", "emotion", "quality")
SILENCE = 1e-4  # a clip whose peak lies below (-80 dBFS) is silent
GROUPS = ("vocalisation", "emotion")


@dataclass(frozen=True)
class Measured:
    """`rows`: a flat dict a pair. `summary`: means with n and intervals, overall and by group; JSON data."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]


@dataclass(frozen=True)
class Clip:
    """A file as the judges get it."""

    wave: np.ndarray  # 16 kHz mono float32 [samples]
    frames: int  # in the file, at `rate`
    rate: int
    peak: float

    @property
    def seconds(self) -> float:
        return self.frames / self.rate


class Panel:
    """The judges that could be had, with what each heard in the latest clips kept.

    Args:
        names: judges by name; one whose package is absent is listed in `absent` and left out. What needs no
            judge, levels and seams, is always measured.
        cache: file that keeps what judges heard, or None.
        chunk_ms: the period at which the converter joins chunks, in ms, if its seams are to be looked for.

    Raises:
        JudgeError: a name that no judge has; two judges of one kind.
    """

    def __init__(self, names: Iterable[str] = DEFAULT_JUDGES, cache: str | Path | None = None,
                 chunk_ms: float | None = None) -> None:  # fmt: skip
        self.judges: list[Judge] = []
        self.absent: dict[str, str] = {}
        kinds: dict[str, str] = {}
        for name in dict.fromkeys(k for k in names if k != "signal"):
            make = find(name)
            twin = kinds.setdefault(kind_of(name), name)
            if twin != name:
                raise JudgeError(f"judges {twin!r} and {name!r} are of one kind and would fill the same columns; "
                                 "make a report with each")  # fmt: skip
            try:
                self.judges.append(make())
            except JudgeError as e:
                self.absent[name] = str(e)
        self.judges.append(SignalJudge(chunk_ms))
        self.cache = Cache(cache)
        self.clip = lru_cache(maxsize=4)(_read)
        self._heard = lru_cache(maxsize=4096)(self._hear)

    def _hear(self, judge: Judge, path: Path) -> Heard:
        heard = self.cache.get(path, judge.key)
        if heard is None:
            heard = judge.analyse(self.clip(path).wave)
            self.cache.put(path, judge.key, heard)
        return heard

    @property
    def columns(self) -> list[str]:
        return [c for j in self.judges for c in j.columns]

    def cards(self) -> dict[str, dict[str, Any]]:
        """Judge -> its card, or why it is absent and how to get it."""
        absent = {k: {"kind": kind_of(k), "absent": why} for k, why in self.absent.items()}
        return {j.name: j.card() for j in self.judges} | absent

    def measure(self, pair: Pair) -> dict[str, Any]:
        """One row. What could not be measured is NaN and named in `notes`."""
        row: dict[str, Any] = {
            "id": pair.id, "source": str(pair.source), "converted": str(pair.converted),
            "target": str(pair.target or ""), **{k: pair.fields.get(k, "") for k in FIELDS},
            **dict.fromkeys(("seconds", "length_off", "length_equal", "peak", *self.columns), NAN),
            **{k: v for j in self.judges for k, v in j.labels_of(pair.fields).items()},
        }  # fmt: skip
        notes: list[str] = []
        try:
            a, b = self.clip(pair.source), self.clip(pair.converted)
        except AudioError as e:
            return {**row, "notes": [f"all: unreadable ({e})"]}
        off = b.seconds - a.seconds
        row |= {"seconds": a.seconds, "length_off": off, "peak": b.peak,
                "length_equal": float(abs(off) < 1.0 / min(a.rate, b.rate))}  # fmt: skip
        for judge in self.judges:
            why = self._cannot(judge, pair, a, b)
            if why is None:
                target = self._target(judge, pair, notes)
                try:
                    heard = None if target is None else self._heard(judge, target)
                    source, converted = (self._heard(judge, p) for p in (pair.source, pair.converted))
                    row |= judge.compare(source, converted, heard)
                except Exception as e:  # another project's code: one clip must not end the report
                    why = f"failed ({type(e).__name__}: {e})"
            if why is not None:
                notes.append(f"{judge.name}: {why}")
        return {**row, "notes": notes}

    def _cannot(self, judge: Judge, pair: Pair, a: Clip, b: Clip) -> str | None:
        for side, clip in (("source", a), ("converted", b)):
            if clip.peak < SILENCE:
                return f"{side} silent"
            if clip.seconds < judge.min_seconds:
                return f"{side} too short ({clip.seconds:.2f} s, needs {judge.min_seconds} s)"
        if not judge.wordless and pair.fields.get("vocalisation", "none") not in ("", "none"):
            return "no words"
        language = pair.fields.get("language", "")
        if judge.languages is not None and language not in ("", "none", *judge.languages):
            return f"does not know the language {language!r}"
        return None

    def _target(self, judge: Judge, pair: Pair, notes: list[str]) -> Path | None:
        """The target's path when this judge can use it; what stands in the way goes to the notes."""
        if "sim_target" not in judge.columns:
            return None
        if pair.target is None:
            notes.append(f"{judge.name}: no target")
            return None
        try:
            clip = self.clip(pair.target)
        except AudioError as e:
            notes.append(f"{judge.name}: target unreadable ({e})")
            return None
        if clip.peak < SILENCE or clip.seconds < judge.min_seconds:
            notes.append(f"{judge.name}: target {'silent' if clip.peak < SILENCE else 'too short'}")
            return None
        return pair.target


def _read(path: Path) -> Clip:
    x, rate = audio.load(path)
    wave = resample(x[None], rate, RATE)[0] if rate != RATE else x
    return Clip(wave.numpy().astype(np.float32), len(x), rate, float(x.abs().max()))


def measure(pairs: Sequence[Pair], judges: Iterable[str] = DEFAULT_JUDGES, out: str | Path | None = None,
            baselines: bool = False, progress: bool = True, cache: str | Path | None = None,
            chunk_ms: float | None = None) -> Measured:  # fmt: skip
    """Judge every pair.

    Nothing is trimmed, padded or aligned: pairs of unequal length are measured frame t against frame t as far as both
    go, and in F1s of frames the missing end counts as unvoiced and without pause. Time that was not kept shows.

    Args:
        judges: by name, see `vivavoce.eval.judges`; levels, pauses and seams are always measured.
        out: folder for `clips.csv` and `summary.json` (written whole or not at all).
        baselines: measure the ends of the scale too: identity (each source against itself) and shuffled
            (each source against another source, by a seeded derangement).
        cache: file that keeps what judges heard by content; an interrupted report goes on from it.
        chunk_ms: the period at which the converter joins chunks, in ms, if its seams are to be looked for.

    Raises:
        CorpusError: no pair; a cache that cannot be used.
        JudgeError: an unknown judge, two of one kind.
    """
    if not pairs:
        raise CorpusError("nothing to measure: no pair of a source and a converted file")
    panel = Panel(judges, cache, chunk_ms)
    rows: list[dict[str, Any]] = []
    ends: dict[str, list[dict[str, Any]]] = {"identity": [], "shuffled": []} if baselines else {}
    others = derangement(len(pairs)) if baselines and len(pairs) > 1 else np.arange(len(pairs))
    for i, pair in enumerate(tqdm(pairs, desc="measure", unit="clip", disable=not progress)):
        rows.append(panel.measure(pair))
        if baselines:
            ends["identity"].append(panel.measure(replace(pair, converted=pair.source)))
            other = pairs[others[i]]
            if other.source != pair.source:
                ends["shuffled"].append(panel.measure(replace(pair, converted=other.source)))
    overall = summarise(rows)
    summary: dict[str, Any] = {
        "clips": len(rows),
        "judges": panel.cards(),
        "metrics": cards(overall),
        "not_measured": reasons(rows),
        "overall": overall,
        **{k: summarise(v) for k, v in ends.items() if v},
    }
    for key in GROUPS:
        if any(r[key] for r in rows):
            names = [r[key] or "unknown" for r in rows]
            summary[key] = grouped(names, lambda index: summarise([rows[i] for i in index]))
    summary = finite(summary)
    if out is not None:
        write(Path(out), rows, summary)
    return Measured(rows, summary)


def summarise(rows: Sequence[dict[str, Any]], metrics: Iterable[Metric] = CATALOGUE) -> dict[
        str, dict[str, float | int]]:  # fmt: skip
    """Mean, n and 95 % bootstrap interval over clips of every metric that the rows hold."""
    out = {}
    for m in metrics:
        if all(c in rows[0] for c in m.columns):
            out[m.key] = _pooled(m, rows) if m.pool is not None else _mean(m, rows)
    return out


def _mean(m: Metric, rows: Sequence[dict[str, Any]]) -> dict[str, float | int]:
    values = np.array([r[m.key] for r in rows], np.float64)
    return bootstrap(values, np.nan_to_num([r[m.weight] for r in rows]) if m.weight else None)


def _pooled(m: Metric, rows: Sequence[dict[str, Any]]) -> dict[str, float | int]:
    """A number of all clips together, from those that have all of its columns; labels become integers."""
    assert m.pool is not None
    known = [[r[c] for c in m.columns] for r in rows if all(isinstance(r[c], str) and r[c] for c in m.columns)]
    if not known:
        return bootstrap(np.empty(0))
    table = np.array(known, str)
    codes = np.unique(table, return_inverse=True)[1].reshape(table.shape)
    return pooled(m.pool, *codes.T)


def reasons(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Judge -> reason (without its details) -> clips."""
    counts: dict[str, Counter] = {}
    for row in rows:
        for note in row["notes"]:
            judge, _, why = note.partition(": ")
            counts.setdefault(judge, Counter())[why.partition(" (")[0]] += 1
    return {k: dict(v) for k, v in counts.items()}


def write(out: Path, rows: Sequence[dict[str, Any]], summary: dict[str, Any]) -> None:
    """`clips.csv` (empty cell: not measured) and `summary.json`, atomically. Raises CorpusError."""
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, list(rows[0]), restval="")
    table.writeheader()
    table.writerows({k: _cell(v) for k, v in r.items()} for r in rows)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with atomic_path(out / "clips.csv") as temp:
            temp.write_text(text.getvalue(), encoding="utf-8", newline="")
        write_json(out / "summary.json", summary)
    except OSError as e:
        raise CorpusError(f"{out}: the report cannot be written ({e})") from None


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.10g}"
    return "; ".join(value) if isinstance(value, list) else value
