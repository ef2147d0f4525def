"""What all corpora share: the manifest's fields, the common vocabulary, splits by speaker, files that are no good.

A corpus is a module of this package with a `CORPUS`: facts for the table, the layout it expects, and `read`, which
goes through a folder as its publisher lays it out and yields a `Clip` for each recording. What the names say is
filled in there; what only the file knows (duration, sample rate) is read here, and files that cannot be used are
reported, skipped and counted.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vivavoce.core.audio import SUFFIXES, open_audio
from vivavoce.core.checkpoint import atomic_path
from vivavoce.core.errors import AudioError, CorpusError

FIELDS = ("id", "path", "source", "speaker", "gender", "age", "language", "emotion", "emotion_raw", "vocalisation",
          "text", "script", "licence", "split", "duration_s", "sample_rate")  # fmt: skip
VOCALISATIONS = ("none", "laugh", "cry", "sob", "sigh", "scream", "groan", "moan", "gasp", "breath", "cough", "grunt",
                 "shout", "sneeze", "burst")  # fmt: skip
_EMOTIONS = {  # common name -> what corpora call it
    "neutral": "neutral neutrality default",
    "calm": "calm contentment serenity calmness",
    "happy": "happy happiness joy amused amusement laughing elation ecstasy triumph",
    "sad": "sad sadness distress disappointment",
    "angry": "angry anger",
    "fear": "fear fearful anxiety",
    "disgust": "disgust disgusted contempt",
    "surprise": "surprise surprised pleasant_surprise surprise_negative surprise_positive",
    "bored": "bored boredom",
    "sleepy": "sleepy sleepiness",
    "confusion": "confusion confused",
    "sympathy": "sympathy sympathetic",
}
EMOTIONS = {raw: name for name, raws in _EMOTIONS.items() for raw in raws.split()}
TOLD = 5  # complaints of each kind that are printed; the rest is counted


def emotion(raw: str | None) -> str | None:
    """The common name of a corpus' label; a label without one keeps its own (`awe`, `pain`, `sarcastic`)."""
    return None if raw is None else EMOTIONS.get(raw.lower(), raw.lower())


@dataclass
class Clip:
    """A recording, or a stretch of one, and what its corpus says of it. `key` is unique in the corpus."""

    key: str
    path: Path
    speaker: str | None
    emotion_raw: str | None = "neutral"
    vocalisation: str = "none"
    language: str | None = "en"
    text: str | None = None
    script: str | None = None  # the same for all who say the same, so that parallel recordings can be paired
    gender: str | None = None  # m, f or unknown
    age: int | None = None  # years
    split: str | None = None  # the corpus' own, where it has one
    start_s: float | None = None  # of a stretch; with it, duration_s
    duration_s: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)  # further fields of the manifest, `channel` from 1 among them


class Problems:
    """Files and lines that cannot be used: the first of each kind are told, all are counted."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, kind: str, what: object) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= TOLD:
            tqdm.write(f"skipped, {kind}: {what}")
        if self.counts[kind] == TOLD + 1:
            tqdm.write(f"skipped, {kind}: ... (more are counted only)")

    def __str__(self) -> str:
        return ", ".join(f"{n} {kind}" for kind, n in self.counts.items()) or "none"


@dataclass(frozen=True)
class Corpus:
    """A public corpus: the facts of the table in docs/corpora.md, and how to read it."""

    title: str
    hours: float | None
    speakers: int | None
    licence: str
    use: str
    where: str  # the publisher's own name for it, or the site
    layout: str  # what a folder is expected to hold
    read: Callable[[Path, Problems], Iterator[Clip]]
    splits: str = ""  # the official split keeps "speakers" apart, or parts "clips" of the same speakers; "" without


@dataclass
class Summary:
    """What became of a corpus."""

    manifest: Path
    clips: int
    speakers: int
    hours: float
    splits: dict[str, int]
    problems: Problems

    def __str__(self) -> str:
        splits = ", ".join(f"{k} {n}" for k, n in self.splits.items())
        return (f"{self.manifest}: {self.clips} clips ({splits}), {self.speakers} speakers, {self.hours:.2f} h; "
                f"skipped: {self.problems}")  # fmt: skip


def write_manifest(name: str, corpus: Corpus, folder: str | Path, out: str | Path, splits: str = "auto") -> Summary:
    """Go through `folder` and write a manifest (atomically) to the file or folder `out`; audio stays where it is.

    Paths are relative where the recordings lie below the manifest, absolute otherwise.

    Args:
        splits: `official`, `speaker`, or `auto`: the official one if it keeps speakers apart, else by speaker.

    Raises:
        CorpusError: no such folder, another layout than expected, nothing that can be used, no official split.
    """
    root, out = Path(folder), Path(out)
    if not root.is_dir():
        raise CorpusError(f"{root}: no such folder")
    if splits == "official" and not corpus.splits:
        raise CorpusError(f"{name}: has no official split; leave --splits out")
    out = out if out.suffix == ".jsonl" else out / "manifest.jsonl"
    problems = Problems()
    found = list(corpus.read(root, problems))
    if not found:
        raise CorpusError(f"{root}: not laid out as {corpus.title}; expected {corpus.layout}; "
                          f"found {_listing(root)}" + (f" ({problems})" if problems.counts else ""))
    clips = _probe(_once(found, problems), problems)
    if not clips:
        raise CorpusError(f"{root}: none of its {len(found)} recordings can be used ({problems})")
    official = splits == "official" or (splits == "auto" and corpus.splits == "speakers")
    by_speaker = split_speakers(c.speaker or c.key for c, _ in clips)
    out.parent.mkdir(parents=True, exist_ok=True)
    base, lines = out.parent.resolve(), []
    for clip, rate in sorted(clips, key=lambda c: c[0].key):
        path = Path(os.path.abspath(clip.path))
        own = {"official_split": clip.split} if clip.split else {}
        split = clip.split if official and clip.split else by_speaker[clip.speaker or clip.key]
        values = {
            "id": f"{name}-{clip.key}", "path": str(path.relative_to(base) if path.is_relative_to(base) else path),
            "source": name, "speaker": clip.speaker and f"{name}-{clip.speaker}", "gender": clip.gender,
            "age": clip.age, "language": clip.language, "emotion": emotion(clip.emotion_raw),
            "emotion_raw": clip.emotion_raw, "vocalisation": clip.vocalisation, "text": clip.text,
            "script": clip.script, "licence": corpus.licence, "split": split,
            "duration_s": round(clip.duration_s or 0.0, 4), "sample_rate": rate,
        }  # fmt: skip
        stretch = {} if clip.start_s is None else {"start_s": clip.start_s}
        lines.append({**values, **stretch, **own, **clip.extra})
    with atomic_path(out) as temp, open(temp, "w", encoding="utf-8") as f:
        f.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return Summary(out, len(lines), len({x["speaker"] for x in lines if x["speaker"]}),
                   sum(x["duration_s"] for x in lines) / 3600, dict(Counter(x["split"] for x in lines)), problems)


def split_speakers(names: Iterable[str]) -> dict[str, str]:
    """Each speaker to train (90 %), valid or test (5 % each), by a hash of the name alone: a speaker never moves,
    whatever else is on the disk. Of three speakers and more, one at least is held out for valid and for test."""
    rank = {n: int.from_bytes(hashlib.sha256(n.encode()).digest()[:4], "big") / 2**32 for n in sorted(set(names))}
    out = {n: "valid" if r < 0.05 else "test" if r < 0.1 else "train" for n, r in rank.items()}
    for split in ("valid", "test"):
        if len(rank) >= 3 and split not in out.values():
            out[min((n for n in out if out[n] == "train"), key=lambda n: (rank[n], n))] = split
    return out


def text_script(text: str | None) -> str | None:
    """A script id made of the words themselves, for corpora in which the same sentence comes back unnumbered."""
    words = " ".join(re.findall(r"\w+", (text or "").lower()))
    return "text-" + hashlib.sha256(words.encode()).hexdigest()[:12] if words else None


def recordings(root: Path, *suffixes: str) -> list[Path]:
    """Every audio file below `root`, sorted; hidden and macOS' shadow files (`._x.wav`) left out."""
    return sorted(p for p in root.rglob("*") if p.suffix.lower() in (suffixes or SUFFIXES) and p.name[0] != ".")


def find_folder(root: Path, name: str) -> Path | None:
    """The folder called `name` in, or one or two levels below, `root`; any case."""
    for pattern in ("*", "*/*", "*/*/*"):
        for path in sorted(root.glob(pattern)):
            if path.name.lower() == name.lower() and path.is_dir():
                return path
    return root if root.name.lower() == name.lower() else None


def table(path: Path | None, delimiter: str = ",") -> list[dict[str, str]]:
    """The rows of a CSV file with a heading, or none when it is not there. Raises CorpusError: not UTF-8."""
    if path is None or not path.is_file():
        return []
    try:
        with open(path, encoding="utf-8-sig", newline="") as f:
            if delimiter == "\t":  # a quotation mark in a TSV is a quotation mark
                return list(csv.DictReader(f, delimiter=delimiter, quoting=csv.QUOTE_NONE))
            return list(csv.DictReader(f, delimiter=delimiter))
    except (UnicodeDecodeError, csv.Error) as e:
        raise CorpusError(f"{path}: cannot be read as a table ({e})") from None


def lines_of(path: Path) -> list[str]:
    """The lines of a text file, or none when it is not there; what is not UTF-8 is replaced."""
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []


def gender(word: str | None) -> str | None:
    """m or f, of what corpora write."""
    return {"m": "m", "f": "f"}.get((word or "").strip().lower()[:1])


def probe(path: Path) -> tuple[float, int]:
    """Duration in seconds and sample rate, from the header; the end of WAV and FLAC is read too.

    Raises:
        AudioError: missing, empty, not audio, cut short, or a git-lfs pointer in place of audio.
    """
    if path.is_file() and path.stat().st_size < 300 and path.read_bytes().startswith(b"version https://git-lfs"):
        raise AudioError(f"{path}: a git-lfs pointer, not audio; run `git lfs pull`")
    with open_audio(path) as f:
        if f.frames <= 0:
            raise AudioError(f"{path}: holds no samples")
        if f.format in ("WAV", "WAVEX", "FLAC"):
            try:
                f.seek(max(0, f.frames - 64))
                short = len(f.read(64)) < min(64, f.frames)
            except (RuntimeError, OSError):
                short = True
            if short:
                raise AudioError(f"{path}: cut short")
        return f.frames / f.samplerate, f.samplerate


def _once(clips: list[Clip], problems: Problems) -> list[Clip]:
    seen: set[str] = set()
    out = []
    for clip in clips:
        if clip.key in seen:
            problems.add("second copies", clip.path)
        else:
            seen.add(clip.key)
            out.append(clip)
    return out


def _probe(clips: list[Clip], problems: Problems) -> list[tuple[Clip, int]]:
    """Fill in durations; (clip, sample rate) of those that can be used."""

    def one(path: Path) -> tuple[float, int] | str:
        try:
            return probe(path)
        except (AudioError, OSError) as e:
            return str(e)

    out = []
    paths = list(dict.fromkeys(c.path for c in clips))
    with ThreadPoolExecutor(8) as pool:
        read = dict(zip(paths, tqdm(pool.map(one, paths), total=len(paths), desc="read headers", unit="file")))
    for clip in clips:
        got = read[clip.path]
        if isinstance(got, str):
            problems.add("unreadable" if clip.path.exists() else "missing", got)
            continue
        whole, rate = got
        if clip.start_s is None:
            clip.duration_s = whole
        elif clip.start_s + (clip.duration_s or 0.0) > whole + 0.05:
            problems.add("beyond the end of their recording", f"{clip.path} at {clip.start_s} s")
            continue
        out.append((clip, rate))
    return out


def _listing(root: Path) -> str:
    names = sorted(p.name + "/" * p.is_dir() for p in root.iterdir() if p.name[0] != ".")
    return ", ".join(names[:6]) + f", ... ({len(names)} entries)" * (len(names) > 6) if names else "nothing"
