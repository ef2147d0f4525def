"""What the judges score on labelled data, before anyone believes them: eval/judges/scores.json.

    python benchmarks/judges.py PACK [--judges speaker,phonemes,pitch,events,quality] [--clips 200] [-o FILE]

PACK is made by `vivavoce prepare`; its `test` split holds speakers that no judge of ours was trained on. Hub judges
are scored by name as well (speaker:MODEL, phonemes:MODEL, events:MODEL, emotion:MODEL). What is asked of each kind:

    speaker   pairs of speech clips of one speaker and of two: equal error rate
    phonemes  transcripts through hama's own letter-to-sound rules: phoneme error rate (English, adult, read)
    pitch     synthetic voices of known F0 at 20 dB over noise: frames within 50 cents
    events    one event of an unseen speaker between two pieces of speech, at a known time: F1 of spans, IoU 0.5
    emotion   UAR against the emotion asked for, on bursts and on acted speech
    quality   a clip with noise 20 and 10 dB below: pairs in the right order

Entries of other judges in FILE stay. Sampling is seeded; intervals are 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vivavoce.core.checkpoint import read_json, write_json
from vivavoce.eval import metrics
from vivavoce.eval.judges import RATE, Judge, kind_of, make
from vivavoce.eval.judges.events import NAMED
from vivavoce.eval.judges.scores import FILE
from vivavoce.eval.tagger import CLASS_OF
from vivavoce.recipes.corpus import Pack

Score = dict[str, Any]


def rounded(what: str, s: dict[str, float | int]) -> Score:
    return {"what": what, **{k: round(s[v], 4) for k, v in (("value", "mean"), ("low", "low"), ("high", "high"))},
            "n": s["n"]}  # fmt: skip


class Clips:
    """Clips of the test split, drawn with a seed."""

    def __init__(self, pack: Pack, most: int) -> None:
        self.pack, self.most = pack, most
        self.rng = np.random.default_rng(0)
        self.all = pack.split("test")

    def draw(self, keep: Callable[[dict], bool], most: int | None = None) -> list[dict]:
        found = [c for c in self.all if keep(c)]
        return [found[i] for i in self.rng.permutation(len(found))[: most or self.most]]

    def wave(self, clip: dict, seconds: float | None = None) -> np.ndarray:
        x = self.pack.waveform(clip["offset"], clip["frames"])
        return x if seconds is None else x[: int(seconds * RATE)]


def spoken(c: dict, seconds: float = 1.0) -> bool:
    return c.get("vocalisation", "none") == "none" and c["frames"] * 0.02 >= seconds


def equal_error(score: np.ndarray, same: np.ndarray) -> float:
    """Rate at which as many strangers are accepted as speakers are refused."""
    order = np.argsort(-score, kind="stable")
    hit = same[order].astype(float)
    refused, accepted = 1 - np.cumsum(hit) / hit.sum(), np.cumsum(1 - hit) / (1 - hit).sum()
    at = int(np.argmin(np.abs(refused - accepted)))
    return float((refused[at] + accepted[at]) / 2)


def speaker(judge: Any, clips: Clips) -> list[Score]:
    chosen = clips.draw(lambda c: spoken(c, 1.5))
    found = np.stack([judge.embed(clips.wave(c)) for c in chosen])
    who = np.array([c["speaker"] for c in chosen])
    a, b = np.triu_indices(len(who), 1)
    same, score = who[a] == who[b], (found[a] * found[b]).sum(1)
    keep = np.r_[np.flatnonzero(same), clips.rng.permutation(np.flatnonzero(~same))[: 3 * int(same.sum())]]
    s = metrics.pooled(equal_error, score[keep], same[keep], draws=200)
    of = f"{len(set(who))} unseen speakers, {int(same.sum())} pairs of one"
    return [rounded(f"equal error rate on pairs of speech clips, {of}", s)]


def phonemes(judge: Judge, clips: Clips) -> list[Score]:
    import hama

    def read_english(c: dict) -> bool:
        adult = int(c.get("age") or 18) >= 18
        return spoken(c) and adult and c["language"] == "en" and bool(c.get("text")) and c["emotion"] == "neutral"

    rules, rates, counts = hama.G2PModel(), [], []
    for c in clips.draw(read_english):
        words = "".join(x if x.isalpha() or x == "'" else " " for x in c["text"].lower()).split()
        truth = [a.phoneme for w in words for a in rules.predict(w).alignments if a.phoneme.strip()]
        rates.append(metrics.error_rate(truth, [str(s) for s in judge.analyse(clips.wave(c))["symbols"]]))
        counts.append(len(truth))
    s = metrics.bootstrap(np.array(rates), np.array(counts))
    return [rounded("phoneme error rate against rules applied to transcripts, adult read English, unseen speakers", s)]


def pitch(judge: Any, clips: Clips) -> list[Score]:
    right, counts = [], []
    for i in range(40):
        rng = np.random.default_rng(i)
        base, n = 70.0 * 2 ** (3 * i / 39), 2 * RATE  # 70 to 560 Hz
        hz = base * 2 ** (np.interp(np.arange(n), np.linspace(0, n, 7), rng.uniform(-0.4, 0.4, 7)))
        phase = 2 * np.pi * np.cumsum(hz) / RATE
        x = sum(np.where(h * hz < 7000, np.sin(h * phase) / h, 0) for h in range(1, 30))
        x = 0.2 * x / x.std() + 0.02 * rng.standard_normal(n)
        times, found, on = judge.track(x.astype(np.float32))
        cents = 1200 * np.abs(np.log2(found / hz[np.minimum((times * RATE).astype(int), n - 1)]))
        right.append(float((on & (cents < 50)).mean()))
        counts.append(len(times))
    s = metrics.bootstrap(np.array(right), np.array(counts))
    return [rounded("frames voiced and within 50 cents, synthetic glides of 53 to 740 Hz, 20 dB over noise", s)]


def events(judge: Judge, clips: Clips) -> list[Score]:
    out = []
    talk = clips.draw(lambda c: spoken(c, 1.2) and c["emotion"] == "neutral")
    for kind in NAMED:
        columns: dict[str, list[float]] = {"f1": [], "n": [], "late": [], "onsets": []}
        chosen = clips.draw(lambda c, k=kind: CLASS_OF.get(c["vocalisation"]) == k and c["frames"] >= 20, 60)  # type: ignore[misc]
        for i, c in enumerate(chosen):
            left, right = (clips.wave(talk[(2 * i + k) % len(talk)], 1.2) for k in (0, 1))
            x = clips.wave(c)
            level = metrics.levels(x)
            loud = np.flatnonzero(level > level.max() - 30) * 0.02
            parts = [p / max(np.sqrt(np.mean(p**2)), 1e-6) * 0.05 for p in (left, x, right)]
            at = len(left) / RATE
            truth = {kind: [(at + float(loud[0]), at + float(loud[-1]) + 0.02)]}
            heard = judge.analyse(np.concatenate(parts).astype(np.float32))
            spans = [(float(a), float(b)) for k, (a, b) in zip(heard["label"], heard["span"]) if k == kind]
            f1, n = metrics.event_f1(truth, {kind: spans})
            late, onsets = metrics.onset_error(truth, {kind: spans})
            for k, v in zip(columns, (f1, n, late, onsets)):
                columns[k].append(v)
        f1, n, late, onsets = (np.array(v) for v in columns.values())
        out.append(rounded(f"F1 of {kind} spans, IoU 0.5, set between two pieces of speech", metrics.bootstrap(f1, n)))
        out.append(rounded(f"onset error of {kind} spans found so, ms", metrics.bootstrap(late, onsets)))
    return out


def emotion(judge: Any, clips: Clips) -> list[Score]:
    out = []
    for name, wordless in (("bursts", True), ("acted speech", False)):
        chosen = clips.draw(lambda c, w=wordless: spoken(c, 0) != w  # type: ignore[misc]
                            and (w or c["source"] not in ("librispeech", "speechocean762")))  # fmt: skip
        known = [(judge.labels_of(c)["emotion_label"], c) for c in chosen]
        known = [(k, c) for k, c in known if k]
        said = [judge.labels[int(judge.analyse(clips.wave(c))["probability"].argmax())] for _, c in known]
        codes = np.unique([[k for k, _ in known], said], return_inverse=True)[1].reshape(2, -1)
        chance = 1 / len(set(codes[0]))
        s = metrics.pooled(metrics.uar, *codes)
        out.append(rounded(f"UAR on {name} of unseen speakers (chance {chance:.2f})", s))
    return out


def quality(judge: Judge, clips: Clips) -> list[Score]:
    right = []
    for c in clips.draw(lambda c: spoken(c, 1.5), min(clips.most, 60)):
        x = clips.wave(c)
        noise = clips.rng.standard_normal(len(x)).astype(np.float32) * np.sqrt(np.mean(x**2))
        mos = [float(judge.analyse(x + noise * 10 ** (-db / 20))["mos"][0]) for db in (20, 10)]
        right.append(float(mos[0] > mos[1]))
    s = metrics.bootstrap(np.array(right))
    return [rounded("pairs with noise 20 and 10 dB below speech in the right order", s)]


KINDS: dict[str, Callable[[Any, Clips], list[Score]]] = {
    "speaker": speaker, "phonemes": phonemes, "pitch": pitch, "events": events, "emotion": emotion, "quality": quality,
}  # fmt: skip


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("pack")
    p.add_argument("--judges", default="speaker,phonemes,pitch,pitch:world,events,quality")
    p.add_argument("--clips", type=int, default=200, help="most clips a judge (default: %(default)s)")
    p.add_argument("-o", "--out", type=Path, default=FILE)
    a = p.parse_args()
    pack = Pack(a.pack)
    found = read_json(a.out) if a.out.is_file() else {}
    for name in a.judges.split(","):
        judge = make(name)
        scores = KINDS[kind_of(name)](judge, Clips(pack, a.clips))
        found[name] = {"version": judge.version, "scores": scores}
        for s in scores:
            interval = f"[{s['low']:.3f}, {s['high']:.3f}]"
            print(f"{name:12} {s['value']:8.3f} {interval} n {s['n']:4}  {s['what']}", flush=True)
    write_json(a.out, dict(sorted(found.items())))


if __name__ == "__main__":
    main()
