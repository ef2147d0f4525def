"""What is left of laughs, cries, sighs and screams, of all that a split has; and how far the judge can be asked.

    python benchmarks/events.py CORPUS [--split valid] [--clips N] [--model DIR] [--tagger STEM] [--json OUT]
        [--rungs late,noise,tilt,world,codec,files,live]

A split of our corpus has 180 such clips, two minutes of work; fewer than thirty of them are cries to the tagger. To
choose among settings of the engine, `--split train --clips 150` has four times as many: heard in training, but alike
for all. Each is converted into one of the embedded voices. Beside the conversions stands what should cost nothing or
little, which says where the judge's own doubt begins: the clip 5 ms later; with white noise 25 dB below; tilted by 4 dB
at 1 kHz; analysed and said again by WORLD (Morise et al. 2016), a vocoder without codes; through the codec alone. Of
each kind:

    F1      of events, same kind, IoU 0.5, with a 95 % interval over clips
    kept    share of the clips that fire the kind which still do
    odds    mean change of its log-odds in them, and its standard error: no threshold, so less chance in it
    margin  of clips of a second or more: similarity to the target minus that to the source
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vivavoce.changer import load, model_folder
from vivavoce.core.checkpoint import write_json
from vivavoce.engine import Settings
from vivavoce.eval import metrics
from vivavoce.eval.judges import make
from vivavoce.eval.tagger import STEM, load_tagger
from vivavoce.recipes.corpus import RATE, read_clip, scan
from vivavoce.rungs import LIVE_CHUNK, codec_only
from vivavoce.voice import Voice

KINDS = {"laugh": ("laugh",), "cry": ("cry", "sob"), "sigh": ("sigh", "breath"), "scream": ("scream",)}
Say = Callable[[np.ndarray, Voice], np.ndarray]


def late(x: np.ndarray, voice: Voice) -> np.ndarray:
    return np.concatenate((np.zeros(RATE // 200, np.float32), x))[: len(x)]


def noise(x: np.ndarray, voice: Voice) -> np.ndarray:
    power = 10 ** (-25 / 20) * np.sqrt(np.mean(x**2))
    return x + power * np.random.default_rng(len(x)).standard_normal(len(x)).astype(np.float32)


def tilt(x: np.ndarray, voice: Voice) -> np.ndarray:
    """2 dB more far below 1 kHz, 2 dB less far above."""
    from scipy.signal import butter, lfilter

    low = lfilter(*butter(1, 1000 / (RATE / 2)), x)
    return (low * 10 ** (2 / 20) + (x - low) * 10 ** (-2 / 20)).astype(np.float32)


def rungs(changer: Any) -> dict[str, Say]:
    """What becomes of a clip at 16 kHz, by name."""
    alone, vocoder = codec_only(changer), None

    def codec(x: np.ndarray, voice: Voice) -> np.ndarray:
        return alone(torch.from_numpy(x), RATE, None).numpy()  # type: ignore[arg-type]

    def files(x: np.ndarray, voice: Voice) -> np.ndarray:
        return changer.convert(torch.from_numpy(x), voice, RATE, Settings())[0].numpy()

    def live(x: np.ndarray, voice: Voice) -> np.ndarray:
        stream = changer.stream(voice, RATE, Settings(), chunk=LIVE_CHUNK)
        return torch.cat((stream.push(torch.from_numpy(x)), stream.flush())).numpy()

    def world(x: np.ndarray, voice: Voice) -> np.ndarray:
        nonlocal vocoder
        w = vocoder = vocoder or make("pitch:world").world  # type: ignore[attr-defined]
        y = x.astype(np.float64)
        hz, at = w.harvest(y, RATE, 60.0, 1000.0)
        parts = w.cheaptrick(y, hz, at, RATE), w.d4c(y, hz, at, RATE)
        return w.synthesize(hz, *parts, RATE)[: len(x)].astype(np.float32)

    return {f.__name__: f for f in (late, noise, tilt, world, codec, files, live)}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("corpus", type=Path)
    p.add_argument("--split", default="valid")
    p.add_argument("--clips", type=int, help="clips of a kind, at most, drawn once and for all (default: all)")
    p.add_argument("--model", help="folder (default: the embedded one)")
    p.add_argument("--tagger", default=str(STEM), help="another tagger than the report's, without its suffix")
    p.add_argument("--rungs", default="late,noise,tilt,codec,files,live", help="comma-separated; world needs pyworld")
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    changer, tagger, speaker = load(a.model), load_tagger(a.tagger), make("speaker")
    said = rungs(changer)
    if unknown := sorted(set(a.rungs.split(",")) - set(said)):
        p.error(f"--rungs: {', '.join(unknown)}; there are {', '.join(said)}")
    voices = [changer.voice(f) for f in sorted((model_folder(a.model) / "voices").glob("*.voice"))]
    targets = [speaker.analyse(changer.preview(v)[0].numpy()) for v in voices]
    kind_of = {v: k for k, named in KINDS.items() for v in named}
    clips = [c for c in scan(a.corpus) if c.get("split") == a.split and c.get("vocalisation") in kind_of]
    if a.clips:
        order = np.random.default_rng(0).permutation(len(clips))
        by_kind = ([i for i in order if kind_of[clips[i]["vocalisation"]] == kind][: a.clips] for kind in KINDS)
        clips = [clips[i] for i in sorted(i for some in by_kind for i in some)]
    rows: dict[str, list[dict[str, Any]]] = {}
    if not clips or not voices:
        p.error(f"{a.corpus}: no laughs, cries, sighs or screams in its split {a.split!r}" if voices else
                f"{a.model}: a model without voices")  # fmt: skip
    for clip in tqdm(clips, unit="clip"):
        x = read_clip(a.corpus, clip)
        if len(x) < 0.25 * RATE:
            continue
        which = zlib.crc32(clip["id"].encode()) % len(voices)
        own, me = tagger.tag(x), speaker.analyse(x)
        for name in a.rungs.split(","):
            y = said[name](x, voices[which])
            row = {"kind": kind_of[clip["vocalisation"]], "tags": (own, tagger.tag(y))}
            if len(x) >= RATE:
                row["margin"] = speaker.compare(me, speaker.analyse(y), targets[which])["margin"]
            rows.setdefault(name, []).append(row)
    found = {name: judged(r) for name, r in rows.items()}
    for name, kinds in found.items():
        print("\n".join(f"{name:6s} {kind:15s} {told(x)}" for kind, x in kinds.items()))
    if a.json:
        write_json(a.json, {"model": a.model, "split": a.split, "tagger": a.tagger, "rungs": found})


def judged(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows of a rung -> what is left, by kind, and of laughs and cries together."""
    out: dict[str, dict[str, Any]] = {}
    every: dict[str, np.ndarray] = {}
    for kind in KINDS:
        pairs = [(own.spans(kind), got.spans(kind)) for own, got in (r["tags"] for r in rows)]
        f1 = np.array([metrics.event_f1({kind: s}, {kind: t}) for s, t in pairs], np.float64)
        every[kind] = f1[f1[:, 1] > 0]
        fired = [(own, got) for own, got in (r["tags"] for r in rows) if kind in own.fired]
        odds = np.array([got.margin(kind) - own.margin(kind) for own, got in fired])
        margins = np.array([r["margin"] for r in rows if r["kind"] == kind and "margin" in r])
        out[kind] = {"f1": metrics.bootstrap(*every[kind].T), "fired": len(fired),
                     "kept": float(np.mean([kind in got.fired for _, got in fired])) if fired else None,
                     "odds": mean(odds), "margin": mean(margins)}  # fmt: skip
    both = np.concatenate((every["laugh"], every["cry"]))
    return {**out, "laugh and cry": {"f1": metrics.bootstrap(*both.T)}}


def mean(x: np.ndarray) -> dict[str, float] | None:
    """And its standard error."""
    return {"mean": float(x.mean()), "error": float(x.std() / max(1, len(x) - 1) ** 0.5)} if len(x) else None


def told(x: dict[str, Any]) -> str:
    """The same, to read."""
    parts = ["F1 {mean:.2f} [{low:.2f}, {high:.2f}] n {n}".format(**x["f1"])]
    if x.get("kept") is not None:
        parts.append(f"kept {x['kept']:.2f} of {x['fired']}")
    parts += [f"{k} {x[k]['mean']:+.2f} ({x[k]['error']:.2f})" for k in ("odds", "margin") if x.get(k)]
    return ", ".join(parts)


if __name__ == "__main__":
    main()
