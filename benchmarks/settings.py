"""Which run-time settings serve a model best: phoneme error against likeness, on speakers unseen in training.

    python benchmarks/settings.py CORPUS [--model DIR] [--split valid] [--clips 30] [--guidance 0,0.8,1.5]
        [--delay 0,1,2] [--temperature 0.2,0.4] [--json OUT]

Clips of read and acted English speech, evenly over speakers; each gets a target from the other speakers. Every
combination of the settings converts the same pairs, so that rows differ by the settings alone.
"""

from __future__ import annotations

import argparse
import itertools
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vivavoce.changer import load
from vivavoce.core.checkpoint import write_json
from vivavoce.engine import Settings
from vivavoce.eval.judges import make
from vivavoce.eval.metrics import bootstrap
from vivavoce.recipes.corpus import RATE, read_clip, scan


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("corpus", type=Path)
    p.add_argument("--model", help="folder (default: the embedded one)")
    p.add_argument("--split", default="valid")
    p.add_argument("--clips", type=int, default=30)
    for name in ("guidance", "delay", "temperature"):
        p.add_argument(f"--{name}", default=str(getattr(Settings(), name)), help="comma-separated")
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    changer, speaker, phonemes = load(a.model), make("speaker"), make("phonemes")
    clips = [c for c in scan(a.corpus) if c.get("split") == a.split and c.get("vocalisation", "none") == "none"
             and c.get("language") == "en" and 2.0 <= c["duration_s"] <= 8.0]  # fmt: skip
    clips.sort(key=lambda c: zlib.crc32(c["id"].encode()))
    first = list({c["speaker"]: c for c in reversed(clips)}.values())
    chosen = sorted({c["id"]: c for c in (*first, *clips)}.values(), key=lambda c: c not in first)[: a.clips]
    voices, rows = {}, []
    for c in first:
        x = torch.from_numpy(read_clip(a.corpus, c))
        voices[c["speaker"]] = changer.enroll(x, RATE, c["speaker"]), speaker.analyse(x.numpy())
    sources = []
    for c in chosen:
        x = torch.from_numpy(read_clip(a.corpus, c))
        others = [s for s in sorted(voices) if s != c["speaker"]]
        target = others[zlib.crc32(c["id"].encode()) % len(others)]
        sources.append((x, target, speaker.analyse(x.numpy()), phonemes.analyse(x.numpy())))
    grid = itertools.product(*([float(v) for v in getattr(a, n).split(",")]
                               for n in ("guidance", "delay", "temperature")))  # fmt: skip
    for guidance, delay, temperature in tqdm(list(grid), unit="setting"):
        settings = replace(Settings(), guidance=guidance, delay=int(delay), temperature=temperature)
        per, weights, margin = [], [], []
        for x, target, own, said in tqdm(sources, leave=False, unit="clip"):
            y = changer.convert(x, voices[target][0], RATE, settings)[0].numpy()
            heard = phonemes.compare(said, phonemes.analyse(y))
            per.append(float(heard["per"]))
            weights.append(float(heard["phonemes"]))
            margin.append(float(speaker.compare(own, speaker.analyse(y), voices[target][1])["margin"]))
        e, m = bootstrap(np.array(per), np.array(weights)), bootstrap(np.array(margin))
        rows.append({"guidance": guidance, "delay": delay, "temperature": temperature, "per": e, "margin": m})
        tqdm.write(f"guidance {guidance:g} delay {delay:g} temperature {temperature:g}: phonemes wrong "
                   f"{e['mean']:.3f} [{e['low']:.3f}, {e['high']:.3f}], margin {m['mean']:+.3f} "
                   f"[{m['low']:+.3f}, {m['high']:+.3f}], n {m['n']}")  # fmt: skip
    if a.json:
        write_json(a.json, {"model": a.model, "split": a.split, "rows": rows})


if __name__ == "__main__":
    main()
