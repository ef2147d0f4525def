"""Which run-time settings serve a model best: phoneme error against likeness, on speakers unseen in training.

    python benchmarks/settings.py CORPUS [--model DIR] [--split valid] [--clips 30] [--guidance 0,0.8,1.5]
        [--fit 0,1] [--keep 0,0.3] [--delay 0,1,2] [--temperature 0.2,0.4] [--acted] [--live] [--json OUT]

Clips of read and acted English speech, evenly over speakers; each gets a target from the other speakers. Every
combination of the settings converts the same pairs, so that rows differ by the settings alone. Neutral and emotional
speech have rows of their own; the codec alone stands beside them, whose phonemes are the mark to be reached.

`--acted` takes its clips elsewhere: acted speech of the train split whose licence kept it out of training, so that its
speakers are as unseen as any, and many: 16 actors in our corpus, where valid and test have two each. Targets are the
split's speakers as ever.
"""

from __future__ import annotations

import argparse
import itertools
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vivavoce.changer import load
from vivavoce.core.checkpoint import write_json
from vivavoce.engine import Settings
from vivavoce.eval.judges import make
from vivavoce.eval.metrics import bootstrap
from vivavoce.recipes.corpus import RATE, read_clip, scan
from vivavoce.rungs import LIVE_CHUNK, codec_only

SETTINGS = ("guidance", "fit", "keep", "delay", "temperature")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("corpus", type=Path)
    p.add_argument("--model", help="folder (default: the embedded one)")
    p.add_argument("--split", default="valid")
    p.add_argument("--clips", type=int, default=30)
    for name in SETTINGS:
        p.add_argument(f"--{name}", default=str(getattr(Settings(), name)).lower(), help="comma-separated")
    p.add_argument("--acted", action="store_true", help="acted speech that its licence kept out of training")
    p.add_argument("--live", action="store_true", help="as streams, which learn the source's register on the way")
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    changer, speaker, phonemes = load(a.model), make("speaker"), make("phonemes")
    speech = [c for c in scan(a.corpus) if c.get("vocalisation", "none") == "none" and c.get("language") == "en"
              and 2.0 <= c["duration_s"] <= 8.0]  # fmt: skip
    speech.sort(key=lambda c: zlib.crc32(c["id"].encode()))
    clips = [c for c in speech if c.get("split") == a.split]
    first = list({c["speaker"]: c for c in reversed(clips)}.values())
    chosen = sorted({c["id"]: c for c in (*first, *clips)}.values(), key=lambda c: c not in first)[: a.clips]
    if a.acted:
        chosen = evenly([c for c in speech if c.get("split") == "train" and "-NC-" in c["licence"] and not calm(c)])
        chosen = chosen[: a.clips]
    voices: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for c in first:
        x = torch.from_numpy(read_clip(a.corpus, c))
        voices[c["speaker"]] = changer.enroll(x, RATE, c["speaker"]), speaker.analyse(x.numpy())
    sources = []
    for c in chosen:
        x = torch.from_numpy(read_clip(a.corpus, c))
        others = [s for s in sorted(voices) if s != c["speaker"]]
        target = others[zlib.crc32(c["id"].encode()) % len(others)]
        sources.append((x, target, speaker.analyse(x.numpy()), phonemes.analyse(x.numpy())))
    kinds = [calm(c) for c in chosen]
    alone = codec_only(changer)
    coded = [phonemes.compare(said, phonemes.analyse(alone(x, RATE, None).numpy()))  # type: ignore[arg-type]
             for x, _, _, said in tqdm(sources, leave=False, unit="clip")]  # fmt: skip
    rows.append({"codec": judged(coded, [], kinds)})
    tqdm.write(f"codec alone: {told(rows[-1]['codec'])}")
    grid = itertools.product(*([number(v) for v in getattr(a, n).split(",")] for n in SETTINGS))
    for values in tqdm(list(grid), unit="setting"):
        setting = dict(zip(SETTINGS, values))
        settings = replace(Settings(), **setting)  # type: ignore[arg-type]
        heard, margins = [], []
        for x, target, own, said in tqdm(sources, leave=False, unit="clip"):
            if a.live:
                stream = changer.stream(voices[target][0], RATE, settings, chunk=LIVE_CHUNK)
                y = torch.cat((stream.push(x), stream.flush())).numpy()
            else:
                y = changer.convert(x, voices[target][0], RATE, settings)[0].numpy()
            heard.append(phonemes.compare(said, phonemes.analyse(y)))
            margins.append(float(speaker.compare(own, speaker.analyse(y), voices[target][1])["margin"]))
        found = judged(heard, margins, kinds)
        rows.append({**setting, **found})
        tqdm.write(f"{', '.join(f'{k} {v}' for k, v in setting.items())}: {told(found)}")
    if a.json:
        write_json(a.json, {"model": a.model, "split": a.split, "acted": a.acted, "live": a.live, "rows": rows})


def number(text: str) -> int | float | None:
    return None if text == "none" else int(text) if text.isdecimal() else float(text)


def calm(clip: dict[str, Any]) -> bool:
    return clip.get("emotion") in (None, "none", "neutral")


def evenly(clips: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """First one of each speaker, then a second, and so on."""
    turn: Counter[str] = Counter()
    placed = []
    for c in clips:
        placed.append((turn[c["speaker"]], c))
        turn[c["speaker"]] += 1
    return [c for _, c in sorted(placed, key=lambda p: p[0])]


def judged(heard: list[dict[str, Any]], margins: list[float], neutral: list[bool]) -> dict[str, Any]:
    """Phonemes wrong and, where there are any, margins: of all clips, of neutral and of emotional speech."""
    out: dict[str, Any] = {}
    for kind, wanted in (("all", None), ("neutral", True), ("emotional", False)):
        at = [i for i, n in enumerate(neutral) if wanted is None or n is wanted]
        if at:
            per, weight = (np.array([float(heard[i][k]) for i in at]) for k in ("per", "phonemes"))
            out[kind] = {"per": bootstrap(per, weight)}
            if margins:
                out[kind]["margin"] = bootstrap(np.array([margins[i] for i in at]))
    return out


def told(found: dict[str, Any]) -> str:
    """The same, to read."""
    def one(name: str, x: dict[str, Any], sign: str) -> str:
        return f"{name} {x['mean']:{sign}.3f} [{x['low']:{sign}.3f}, {x['high']:{sign}.3f}]"

    return "; ".join(f"{kind}: " + ", ".join([one("phonemes wrong", x["per"], "")]
                     + ([one("margin", x["margin"], "+")] if "margin" in x else []) + [f"n {x['per']['n']}"])
                     for kind, x in found.items())  # fmt: skip


if __name__ == "__main__":
    main()
