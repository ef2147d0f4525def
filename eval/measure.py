"""Measure conversions: pairs of files in, a row a clip and a summary with intervals out."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vivavoce.core import audio
from vivavoce.core.checkpoint import atomic_path, write_json
from vivavoce.core.errors import AudioError, CorpusError
from vivavoce.core.resample import resample
from vivavoce.eval.judges import RATE, Judge, JudgeError, find
from vivavoce.eval.metrics import NAN, bootstrap, grouped

DEFAULT_JUDGES = ("speaker", "phonemes", "pitch", "events")
SILENCE = 1e-4  # a clip whose peak lies below (-80 dBFS) is silent
FIELDS = ("speaker", "language", "emotion", "vocalisation")  # taken from a manifest
GROUPS = ("vocalisation", "emotion")
# what the summary averages -> the column that weights it (pooled rates), if any
METRICS: dict[str, str | None] = {
    "sim_target": None, "sim_source": None, "margin": None, "per": "phonemes", "f0_corr": None,
    "f0_shift": None, "voicing_f1": None, "energy_corr": None, "level_shift": None, "event_kept": None,
    "event_f1": "events", "length_equal": None, "peak": None,
}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """One conversion: what went in, what came out, a recording of the target, labels of the source."""

    id: str
    source: Path
    converted: Path
    target: Path | None = None
    fields: dict[str, str] = field(default_factory=dict, hash=False)


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
        names: judges by name; one whose package is absent is listed in `absent` and left out.

    Raises:
        JudgeError: a name that no judge has.
    """

    def __init__(self, names: Iterable[str] = DEFAULT_JUDGES) -> None:
        self.judges: list[Judge] = []
        self.absent: dict[str, str] = {}
        for name in dict.fromkeys((*names, "signal")):
            judge = find(name)
            try:
                self.judges.append(judge())
            except JudgeError as e:
                self.absent[name] = str(e)
        self.clip = lru_cache(maxsize=4)(_read)
        self._heard = lru_cache(maxsize=4096)(lambda judge, path: judge.analyse(self.clip(path).wave))

    @property
    def columns(self) -> list[str]:
        return [c for j in self.judges for c in j.columns]

    def measure(self, pair: Pair) -> dict[str, Any]:
        """One row. What could not be measured is NaN and named in `notes`."""
        row: dict[str, Any] = {
            "id": pair.id, "source": str(pair.source), "converted": str(pair.converted),
            "target": str(pair.target or ""), **{k: pair.fields.get(k, "") for k in FIELDS},
            **dict.fromkeys(("seconds", "length_off", "length_equal", "peak", *self.columns), NAN),
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
                    paths = (pair.source, pair.converted, target)
                    row |= judge.compare(*(None if p is None else self._heard(judge, p) for p in paths))
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
            baselines: bool = False, progress: bool = True) -> Measured:  # fmt: skip
    """Judge every pair.

    Args:
        judges: of `vivavoce.eval.judges.JUDGES`; level and energy are always measured.
        out: folder for `clips.csv` and `summary.json` (written whole or not at all).
        baselines: measure the ends of the scale too: identity (each source against itself) and shuffled
            (each source against another source).

    Raises:
        CorpusError: no pair.
        JudgeError: an unknown judge.
    """
    if not pairs:
        raise CorpusError("nothing to measure: no pair of a source and a converted file")
    panel = Panel(judges)
    rows: list[dict[str, Any]] = []
    ends: dict[str, list[dict[str, Any]]] = {"identity": [], "shuffled": []} if baselines else {}
    for i, pair in enumerate(tqdm(pairs, desc="measure", unit="clip", disable=not progress)):
        rows.append(panel.measure(pair))
        if baselines:
            ends["identity"].append(panel.measure(replace(pair, converted=pair.source)))
            other = pairs[(i + len(pairs) // 2) % len(pairs)]
            if other.source != pair.source:
                ends["shuffled"].append(panel.measure(replace(pair, converted=other.source)))
    cards = {j.name: {"package": j.package, "version": j.version, "licence": j.licence} for j in panel.judges}
    summary: dict[str, Any] = {
        "clips": len(rows),
        "judges": cards | {k: {"absent": v} for k, v in panel.absent.items()},
        "not_measured": _reasons(rows),
        "overall": summarise(rows),
        **{k: summarise(v) for k, v in ends.items() if v},
    }
    for key in GROUPS:
        if any(r[key] for r in rows):
            names = [r[key] or "unknown" for r in rows]
            summary[key] = grouped(names, lambda index: summarise([rows[i] for i in index]))
    summary = _finite(summary)
    if out is not None:
        write(Path(out), rows, summary)
    return Measured(rows, summary)


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | int]]:
    """Mean, n and 95 % bootstrap interval of every metric that the rows hold."""
    out = {}
    for name, weight in METRICS.items():
        if name in rows[0]:
            values = np.array([r[name] for r in rows], np.float64)
            weights = np.nan_to_num([r[weight] for r in rows]) if weight else None
            out[name] = bootstrap(values, weights)
    return out


def _reasons(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Judge -> reason (without its details) -> clips."""
    counts: dict[str, Counter] = {}
    for row in rows:
        for note in row["notes"]:
            judge, _, why = note.partition(": ")
            counts.setdefault(judge, Counter())[why.partition(" (")[0]] += 1
    return {k: dict(v) for k, v in counts.items()}


def _finite(data: Any) -> Any:
    """NaN -> None, all the way down: JSON has no NaN."""
    if isinstance(data, dict):
        return {k: _finite(v) for k, v in data.items()}
    return None if isinstance(data, float) and not math.isfinite(data) else data


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
        return "" if math.isnan(value) else f"{value:.6g}"
    return "; ".join(value) if isinstance(value, list) else value


def table(summary: dict[str, Any]) -> str:
    """The summary as lines of text: a line a group, a column a metric; what was not measured below."""
    names = [k for k, v in summary["overall"].items() if v["n"]]
    lines: list[tuple[str, Any]] = [(k, summary[k]) for k in ("overall", "identity", "shuffled") if k in summary]
    lines += [(f"{key} {k}", v) for key in GROUPS for k, v in summary.get(key, {}).items()]
    width = max(len(k) for k, _ in lines) + 2
    sizes = {m: max(len(m), 13) + 2 for m in names}

    def cell(v: dict[str, Any], full: bool) -> str:
        if v["mean"] is None:
            return "-"
        return f"{v['low']:.2f}..{v['high']:.2f}" if full else f"{v['mean']:.3f} n{v['n']}"

    text = ["".ljust(width) + "".join(m.rjust(sizes[m]) for m in names)]
    for k, values in lines:
        text.append(k.ljust(width) + "".join(cell(values[m], False).rjust(sizes[m]) for m in names))
        if k == "overall":
            text.append("  95 %".ljust(width) + "".join(cell(values[m], True).rjust(sizes[m]) for m in names))
    for judge, reasons in summary["not_measured"].items():
        text.append(f"{judge}: not measured: " + ", ".join(f"{n} x {why}" for why, n in reasons.items()))
    text += [v["absent"] for v in summary["judges"].values() if "absent" in v]
    return "\n".join(text)


@dataclass(frozen=True)
class Paired:
    """Pairs found, and the names that stand on one side only."""

    pairs: list[Pair]
    only_source: list[str]
    only_converted: list[str]


def pair_files(sources: str | Path, converted: str | Path, target: str | Path | None = None,
               targets: str | Path | None = None, manifest: str | Path | None = None) -> Paired:  # fmt: skip
    """Pair two folders by relative path without suffix, or one file with another.

    Args:
        target: one recording of the target voice for all pairs.
        targets: folder with one for each, by the same names; a pair without one is measured without.
        manifest: JSONL; lines are found by `id`, or by `path` without suffix.

    Raises:
        CorpusError: a folder or file that is missing or empty, a name twice, no pair at all.
        AudioError: `target` is not readable.
    """
    left, right = recordings(sources), recordings(converted)
    if Path(sources).is_file() and Path(converted).is_file():
        right = dict(zip(left, right.values()))
    shared = [k for k in left if k in right]
    if not shared:
        raise CorpusError(f"{converted}: holds no file named as one in {sources} (for example "
                          f"{next(iter(left))}); a converted file must keep its source's name")  # fmt: skip
    if target is not None:
        audio.open_audio(target).close()
    voices = recordings(targets) if targets is not None else {}
    labels = _labels(manifest) if manifest is not None else {}
    pairs = [Pair(k, left[k], right[k], Path(target) if target is not None else voices.get(k),
                  labels.get(k) or labels.get(Path(k).name) or {}) for k in shared]  # fmt: skip
    return Paired(pairs, [k for k in left if k not in right], [k for k in right if k not in left])


def recordings(root: str | Path) -> dict[str, Path]:
    """Relative path without suffix -> recording, in order of name. Raises CorpusError."""
    root = Path(root)
    if root.is_file():
        return {root.stem: root}
    if not root.is_dir():
        raise CorpusError(f"{root}: no such file or folder")
    found: dict[str, Path] = {}
    for path in sorted(p for p in root.rglob("*") if p.suffix.lower() in audio.SUFFIXES and p.is_file()):
        key = path.relative_to(root).with_suffix("").as_posix()
        if key in found:
            raise CorpusError(f"{path}: a file of the same name but suffix stands beside it; remove one")
        found[key] = path
    if not found:
        raise CorpusError(f"{root}: no recordings in it ({', '.join(audio.SUFFIXES)})")
    return found


def _labels(manifest: str | Path) -> dict[str, dict[str, str]]:
    try:
        lines = Path(manifest).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise CorpusError(f"{manifest}: cannot be read ({e})") from None
    out: dict[str, dict[str, str]] = {}
    for n, line in enumerate(lines, 1):
        try:
            clip = json.loads(line)
            fields = {k: str(clip[k]) for k in FIELDS if clip.get(k) is not None}
            out[str(clip["id"])] = fields
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as e:
            raise CorpusError(f"{manifest}:{n}: {e!r}; each line is a JSON object with at least id") from None
        if clip.get("path"):
            out.setdefault(Path(clip["path"]).with_suffix("").as_posix(), fields)
            out.setdefault(Path(clip["path"]).stem, fields)
    return out
