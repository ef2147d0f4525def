"""CREMA-D (Cao et al. 2014): 91 actors, 12 sentences, 6 emotions; the largest parallel set of acted emotion."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from vivavoce.recipes.corpora.common import Clip, Corpus, Problems, find_folder, gender, recordings, table

NAME = re.compile(r"(1\d{3})_([A-Z]{3})_([A-Z]{3})_([A-Z]{1,2})")
EMOTIONS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
STRENGTH = {"LO": "low", "MD": "medium", "HI": "high"}
SENTENCES = {
    "IEO": "It's eleven o'clock.", "TIE": "That is exactly what happened.", "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.", "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.", "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.", "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.", "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}  # fmt: skip


def read(root: Path, problems: Problems) -> Iterator[Clip]:
    folder = find_folder(root, "AudioWAV") or root
    actors = {r.get("ActorID"): r for r in table(next(folder.parent.glob("VideoDemographics.csv"), None))}
    for path in recordings(folder, ".wav"):
        m = NAME.fullmatch(path.stem)
        if not m or m[2] not in SENTENCES or m[3] not in EMOTIONS:
            problems.add("of another name than 1001_DFA_ANG_XX.wav", path)
            continue
        who = actors.get(m[1], {})
        age = who.get("Age", "")
        yield Clip(path.stem, path, m[1], EMOTIONS[m[3]], text=SENTENCES[m[2]], script=f"crema_d-{m[2]}",
                   gender=gender(who.get("Sex")), age=int(age) if age.isdecimal() else None,
                   extra={"strength": STRENGTH[m[4]]} if m[4] in STRENGTH else {})  # fmt: skip


CORPUS = Corpus(
    "CREMA-D", 5.3, 91, "ODbL-1.0", "parallel acted emotion across many actors",
    "github.com/CheyneyComputerScience/CREMA-D (git lfs)",
    "AudioWAV/1001_DFA_ANG_XX.wav ... and, for age and sex, VideoDemographics.csv", read,
)  # fmt: skip
