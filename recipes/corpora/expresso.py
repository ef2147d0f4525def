"""Expresso (Nguyen et al. 2023): four speakers, read speech in 8 styles and improvised dialogue in 26, 48 kHz.

Dialogues are stereo, a speaker a channel, minutes long: the official voice activity segments cut them, and whatever
else is long, into clips of at most 15 s; nothing is copied, a clip names its file, channel and stretch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from vivavoce.recipes.corpora.common import (
    Clip,
    Corpus,
    Problems,
    find_folder,
    lines_of,
    recordings,
    text_script,
)

READ = re.compile(r"(ex\d\d)_([a-z]+)(?:_(emphasis|essentials|longform))?_(\d{5})")
TALK = re.compile(r"(ex\d\d)-(ex\d\d)_([a-z]+)(?:-([a-z]+))?_(\d{3})")
SPAN = re.compile(r"\(\s*([\d.]*)s?\s*,\s*([\d.]*)s?\s*\)")
GENDERS = {"ex01": "m", "ex02": "f", "ex03": "m", "ex04": "f"}
STYLES = {"animaldir": "animal_directed", "childdir": "child_directed", "nonverbal": "non_verbal"}
MOODS = {"default", "happy", "sad", "confused", "laughing", "angry", "awe", "bored", "calm", "desire", "disgusted",
         "fearful", "sarcastic", "sleepy", "sympathetic"}  # the other styles are ways of speaking  # fmt: skip
LONGEST, SHORTEST = 15.0, 0.5  # s

Spans = list[tuple[float, float]]


def read(root: Path, problems: Problems) -> Iterator[Clip]:
    audio = find_folder(root, "audio_48khz")
    if audio is None:
        return
    home = audio.parent
    texts = dict(line.split("\t", 1) for line in lines_of(home / "read_transcriptions.txt") if "\t" in line)
    active, official = vad(home / "VAD_segments.txt"), splits(home / "splits")
    for path in recordings(audio, ".wav"):
        talk, alone = TALK.fullmatch(path.stem), READ.fullmatch(path.stem)
        if talk:
            styles = (talk[3], talk[4] or talk[3])
            for channel in (1, 2):
                spans = active.get(f"{path.stem}/channel{channel}")
                if spans is None:
                    problems.add("dialogue channels without a line in VAD_segments.txt", f"{path} {channel}")
                    continue
                who, style = talk[channel], styles[channel - 1]
                yield from _cut(path, spans, official, who, style, {"channel": channel})
        elif alone and alone[3] == "longform":
            if path.stem not in active:
                problems.add("longform recordings without a line in VAD_segments.txt", path)
            yield from _cut(path, active.get(path.stem, []), official, alone[1], alone[2], {})
        elif alone:
            text = (texts.get(path.stem) or "").replace("*", "").strip() or None
            split = next((s for s, parts in official.items() if path.stem in parts), None)
            yield _clip(path.stem, path, alone[1], alone[2], split, text=text, script=text_script(text))
        else:
            problems.add("of another name than ex01_happy_00001.wav", path)


def _clip(key: str, path: Path, who: str, style: str, split: str | None, **more) -> Clip:
    style = STYLES.get(style, style)
    wordless = style == "non_verbal"
    extra = {"style": style, **more.pop("extra", {})}
    return Clip(key, path, who, style if style in MOODS else None if wordless else "neutral",
                "burst" if wordless else "none", language="none" if wordless else "en", gender=GENDERS.get(who),
                split=split, extra=extra, **more)  # fmt: skip


def _cut(path: Path, spans: Spans, official: dict[str, dict[str, tuple[float, float]]], who: str, style: str,
         extra: dict[str, int]) -> Iterator[Clip]:  # fmt: skip
    """Clips of at most LONGEST seconds; a span that crosses an official boundary is cut there."""
    parts = sorted((*official[s][path.stem], s) for s in official if path.stem in official[s])
    edges = {e for a, b, _ in parts for e in (a, b)}
    for start, end in spans:
        inner = sorted({start, end, *(e for e in edges if start < e < end)})
        for a, b in pairwise(inner):
            pieces = max(1, -(-int((b - a) * 1000) // int(LONGEST * 1000)))
            for k in range(pieces):
                at, length = a + k * (b - a) / pieces, (b - a) / pieces
                if length < SHORTEST:
                    continue
                middle = at + length / 2
                split = next((s for x, y, s in parts if x <= middle < y), None)
                channel = f"-{extra['channel']}" if extra else ""
                yield _clip(f"{path.stem}{channel}-{round(at * 1000):07d}", path, who, style, split,
                            start_s=round(at, 3), duration_s=round(length, 3), extra=extra)  # fmt: skip


def vad(path: Path) -> dict[str, Spans]:
    """`name[/channelN]<tab>(start, end) (start, end) ...`, in seconds."""
    rows = (line.split("\t", 1) for line in lines_of(path) if "\t" in line and line[0] != "#")
    return {name: [(float(a), float(b)) for a, b in SPAN.findall(spans) if a and b] for name, spans in rows}


def splits(folder: Path) -> dict[str, dict[str, tuple[float, float]]]:
    """Official split -> file name -> the stretch of it (s) that belongs to the split."""
    out: dict[str, dict[str, tuple[float, float]]] = {}
    for name, ours in (("train", "train"), ("dev", "valid"), ("test", "test")):
        rows = (line.split("\t") for line in lines_of(folder / f"{name}.txt") if line and line[0] != "#")
        out[ours] = {}
        for stem, *span in rows:
            m = SPAN.fullmatch(span[0].strip()) if span else None
            out[ours][stem] = (float(m[1] or 0) if m else 0.0, float(m[2] or "inf") if m else float("inf"))
    return out


CORPUS = Corpus(
    "Expresso", 40.0, 4, "CC-BY-NC-4.0", "expressive styles with laughter, whisper, non-verbal dialogue; 48 kHz",
    "speechbot.github.io/expresso (Meta)",
    "audio_48khz/{read,conversational}/..., VAD_segments.txt, splits/, read_transcriptions.txt", read, splits="clips",
)  # fmt: skip
