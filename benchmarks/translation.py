"""Translation against frame-by-frame conversion, on parallel recordings of speakers that no training saw.

    python benchmarks/translation.py PACK OUT --translator DIR [--model DIR] [--split test] [--pairs 24]

PACK (vivavoce prepare) holds scripts said by two speakers of the split or more. A source clip of one is converted to
the other's voice, enrolled from clips of other scripts, and compared with the source's words, the target's voice,
and the length at which the target said the same script. Rungs:

    follow      vivavoce convert
    translate   vivavoce convert --mode translate --translator DIR
    reference   the target's own recording of the script: what a perfect translation would score
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from vivavoce.changer import load
from vivavoce.core.audio import save
from vivavoce.core.errors import CorpusError
from vivavoce.engine import Settings
from vivavoce.eval.measure import Pair, measure
from vivavoce.recipes.corpus import RATE, Pack
from vivavoce.recipes.pairs import partners, script_of
from vivavoce.translate import TranslationMode

METRICS = ("per", "sim_target", "sim_source", "margin")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("pack", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--translator", type=Path, required=True)
    p.add_argument("--model")
    p.add_argument("--split", default="test")
    p.add_argument("--pairs", type=int, default=24)
    a = p.parse_args()
    pack, changer = Pack(a.pack), load(a.model)
    mode, settings = TranslationMode(changer, a.translator, a.model), Settings()
    clips = pack.split(a.split)
    rng, voices = np.random.default_rng(0), {}
    both = [(s, t) for t, sources in enumerate(partners(clips)) for s in sources
            if clips[s]["speaker"] != clips[t]["speaker"]]  # fmt: skip
    if not both:
        raise CorpusError(f"{a.pack}: no script said by two speakers of split {a.split!r}")
    pairs: dict[str, list[Pair]] = {"follow": [], "translate": [], "reference": []}
    lengths: dict[str, list[float]] = {"follow": [], "translate": []}
    a.out.mkdir(parents=True, exist_ok=True)
    for n in rng.permutation(len(both))[: a.pairs]:
        source, target = (clips[i] for i in both[n])
        name = f"{source['id']}-to-{target['id']}"
        x, wanted = (torch.from_numpy(pack.waveform(c["offset"], c["frames"])) for c in (source, target))
        key = (target["speaker"], script_of(target))
        if key not in voices:
            others = [c for c in clips if c["speaker"] == key[0] and script_of(c) != key[1]][:4]
            reference = torch.cat([torch.from_numpy(pack.waveform(c["offset"], c["frames"])) for c in others])
            path = a.out / f"{target['id']}.voice.wav"
            save(path, reference, RATE)
            voices[key] = changer.enroll(path), path
        voice, path = voices[key]
        heard = {"reference": wanted, "follow": changer.convert(x, voice, RATE, settings)[0],
                 "translate": torch.cat(list(mode.convert(x, voice, settings)))}  # fmt: skip
        save(a.out / f"{name}.source.wav", x, RATE)
        for rung, y in heard.items():
            save(a.out / f"{name}.{rung}.wav", y, RATE)
            fields = {k: str(source.get(k)) for k in ("language", "emotion", "vocalisation")}
            pairs[rung].append(Pair(name, a.out / f"{name}.source.wav", a.out / f"{name}.{rung}.wav", path, fields))
            if rung in lengths:
                lengths[rung].append(abs(float(np.log(len(y) / len(wanted)))))
    report: dict[str, dict] = {}
    for rung, some in pairs.items():
        overall = measure(some, ("speaker", "phonemes"), a.out / rung, progress=False).summary["overall"]
        report[rung] = {m: overall[m] for m in METRICS if m in overall}
    for rung, values in lengths.items():
        report[rung]["length_error"] = {"mean": float(np.mean(values)), "n": len(values)}
    (a.out / "translation.json").write_text(json.dumps(report, indent=2))
    for rung, row in report.items():
        print(rung, "  ".join(f"{k} {v['mean']:.3f} (n {v['n']})" for k, v in row.items() if v["n"]))


if __name__ == "__main__":
    main()
