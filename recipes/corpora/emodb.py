"""EmoDB (Burkhardt et al. 2005): ten German actors, ten sentences, seven emotions; anechoic, 16 kHz."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from vivavoce.recipes.corpora.common import Clip, Corpus, Problems, recordings

NAME = re.compile(r"(\d\d)([ab]\d\d)([WLEAFTN])([a-z]?)")
EMOTIONS = {"W": "anger", "L": "boredom", "E": "disgust", "A": "anxiety", "F": "happiness", "T": "sadness",
            "N": "neutral"}  # fmt: skip
SPEAKERS = {"03": ("m", 31), "08": ("f", 34), "09": ("f", 21), "10": ("m", 32), "11": ("m", 26), "12": ("m", 30),
            "13": ("f", 32), "14": ("f", 35), "15": ("m", 25), "16": ("f", 31)}  # fmt: skip
SENTENCES = {
    "a01": "Der Lappen liegt auf dem Eisschrank.", "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}  # fmt: skip


def read(root: Path, problems: Problems) -> Iterator[Clip]:
    for path in recordings(root, ".wav"):
        m = NAME.fullmatch(path.stem)
        if not m or m[1] not in SPEAKERS:
            problems.add("of another name than 03a01Fa.wav", path)
            continue
        sex, age = SPEAKERS[m[1]]
        yield Clip(path.stem, path, m[1], EMOTIONS[m[3]], language="de", text=SENTENCES.get(m[2]),
                   script=f"emodb-{m[2]}", gender=sex, age=age)  # fmt: skip


CORPUS = Corpus(
    "EmoDB", 0.4, 10, "unknown", "parallel acted emotion in German; a test set", "emodb.bilderbar.info (Berlin)",
    "wav/03a01Fa.wav ...", read,
)  # fmt: skip
