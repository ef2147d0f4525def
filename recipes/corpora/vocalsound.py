"""VocalSound (Gong et al. 2022): laughs, sighs, coughs, throat clearing, sneezes and sniffs of 3,365 people."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from vivavoce.recipes.corpora.common import Clip, Corpus, Problems, find_folder, recordings

NAME = re.compile(r"([mf]\d{4})_(\d+)_(cough|laughter|sigh|sneeze|sniff|throatclearing)")
KINDS = {"laughter": "laugh", "sigh": "sigh", "cough": "cough", "sneeze": "sneeze", "sniff": "breath",
         "throatclearing": "cough"}  # fmt: skip


def read(root: Path, problems: Problems) -> Iterator[Clip]:
    folder = find_folder(root, "audio_44k") or find_folder(root, "audio_16k")
    if folder is None:
        return
    people: dict[str, tuple[str, list[str]]] = {}
    for file, split in (("tr_meta.csv", "train"), ("val_meta.csv", "valid"), ("te_meta.csv", "test")):
        path = folder.parent / "meta" / file
        if path.is_file():
            with open(path, encoding="utf-8", errors="replace", newline="") as f:
                people |= {row[0]: (split, row) for row in csv.reader(f) if row}
    for path in recordings(folder, ".wav"):
        m = NAME.fullmatch(path.stem)
        if not m:
            problems.add("of another name than f0003_0_laughter.wav", path)
            continue
        split, row = people.get(m[1], ("", []))
        age = row[2].strip() if len(row) > 2 else ""
        yield Clip(path.stem, path, m[1], "happy" if m[3] == "laughter" else None, KINDS[m[3]], language="none",
                   gender=m[1][0], age=int(age) if age.isdecimal() else None, split=split or None,
                   extra={"vocalisation_raw": m[3]})  # fmt: skip


CORPUS = Corpus(
    "VocalSound", 24.0, 3365, "CC-BY-SA-4.0", "laughs and sighs of very many people: codec, units, tagger",
    "github.com/YuanGongND/vocalsound (VocalSound 44.1 kHz or 16 kHz version)",
    "audio_44k/f0003_0_laughter.wav ... (or audio_16k/) and meta/{tr,val,te}_meta.csv", read, splits="speakers",
)  # fmt: skip
