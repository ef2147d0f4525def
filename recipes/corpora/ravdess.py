"""RAVDESS (Livingstone & Russo 2018): 24 actors, 2 sentences, 8 emotions in 2 strengths; spoken and sung."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from vivavoce.recipes.corpora.common import Clip, Corpus, Problems, recordings

NAME = re.compile(r"03-(0[12])-(0[1-8])-(0[12])-(0[12])-(0[12])-(\d\d)")
EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
SENTENCES = ("Kids are talking by the door.", "Dogs are sitting by the door.")


def read(root: Path, problems: Problems) -> Iterator[Clip]:
    for path in recordings(root, ".wav"):
        m = NAME.fullmatch(path.stem)
        if not m or not 1 <= int(m[6]) <= 24:
            problems.add("of another name than 03-01-06-01-02-01-12.wav", path)
            continue
        sung = m[1] == "02"
        yield Clip(path.stem, path, m[6], EMOTIONS[int(m[2]) - 1], text=SENTENCES[int(m[4]) - 1],
                   script=f"ravdess-{'song' if sung else 'speech'}-{m[4]}", gender="fm"[int(m[6]) % 2],
                   extra={"strength": ("normal", "strong")[int(m[3]) - 1], "style": "song" if sung else "speech",
                          "take": int(m[5])})  # fmt: skip


CORPUS = Corpus(
    "RAVDESS", 2.8, 24, "CC-BY-NC-SA-4.0", "parallel acted emotion, spoken and sung; a test set",
    "zenodo.org/records/1188976 (Audio_Speech_Actors_01-24.zip, Audio_Song_Actors_01-24.zip)",
    "Actor_01/03-01-06-01-02-01-01.wav ... at any depth", read,
)  # fmt: skip
