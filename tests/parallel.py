"""A miniature of parallel recordings: three actors say the same scripts at their own pace, and two laugh.

A script is a row of phones; an actor's tempo and a jitter a phone say how long each lasts. So the true alignment of
any two clips of a script is known: frame by frame, which phone of the row it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import tiny

from vivavoce.recipes import tokenise
from vivavoce.recipes.corpus import HOP, RATE
from vivavoce.recipes.derive import derive
from vivavoce.recipes.idea import IdeaRecipe, Swap
from vivavoce.recipes.tokenise import TokeniseConfig, Tokens

SCRIPTS = ("0312034", "2143021", "4013240", "3420143")  # phones, of FORMANTS
FORMANTS = ((750, 1200), (300, 2300), (350, 800), (550, 1800), None)  # Hz; the last is a hiss
SPEAKERS = {"ann": (210.0, 1.1, 0.8, "train"), "bob": (115.0, 0.9, 1.2, "train"), "cy": (150.0, 1.0, 1.0, "valid"),
            "dee": (190.0, 1.05, 1.1, "valid")}  # fmt: skip  # F0 in Hz, formant scale, tempo, split


def say(rng: np.random.Generator, speaker: str, script: str) -> tuple[np.ndarray, np.ndarray]:
    """Samples [T * hop], and the place in the script of each frame [T]."""
    f0, scale, tempo, _ = SPEAKERS[speaker]
    place = np.repeat(np.arange(len(script)), np.maximum(3, (rng.uniform(4, 11, len(script)) * tempo).astype(int)))
    n = np.arange(len(place) * HOP)
    wave = np.zeros(len(n))
    for k, formants in enumerate(FORMANTS):
        on = np.convolve(np.repeat([int(script[p]) == k for p in place], HOP), np.hanning(200) / 100, "same")
        if formants is None:
            wave += on * np.diff(rng.normal(0, 0.1, len(n) + 1))
            continue
        for h in range(1, 25):
            gain = sum(np.exp(-0.5 * ((h * f0 - scale * f) / 150) ** 2) for f in formants) + 0.01
            wave += on * gain * np.cos(2 * np.pi * h * f0 * n / RATE)
    return (0.3 * wave / np.abs(wave).max()).astype(np.float32), place


def build(root: Path) -> SimpleNamespace:
    """Write a pack with true phones as its teacher labels, phoneme spans, a tiny model, and tokens: by the model's
    units (`tokens`) and with the phones for units (`phones`)."""
    rng, offset = np.random.default_rng(0), 0
    clips, audio, labels, spans, places = [], [], [], [], {}
    for speaker, (*_, split) in SPEAKERS.items():
        for k, script in enumerate([*SCRIPTS, "laugh", "laugh"]):
            for emotion in ("calm", "glad"):
                spoken = script != "laugh"
                x, place = say(rng, speaker, script if spoken else "000000000")
                name = f"{speaker}-{k}-{emotion}"
                clips.append({"id": name, "speaker": speaker, "emotion": emotion, "split": split, "language": "en",
                              "vocalisation": "none" if spoken else "laugh", "text": f"Script {k}!" if spoken else None,
                              "offset": offset, "frames": len(place)})  # fmt: skip
                offset += len(place)
                places[name] = place
                audio.append((x * 32767).astype(np.int16))
                phones = np.array([int(script[p]) for p in place]) if spoken else np.full(len(place), 5)
                labels.append(phones.astype(np.uint16))
                if spoken:
                    ends = [np.flatnonzero(place == p)[[0, -1]] + (0, 1) for p in range(len(script))]
                    spans.append({"id": name, "phonemes": list(script),
                                  "spans": [[round(0.02 * a, 2), round(0.02 * b, 2)] for a, b in ends]})  # fmt: skip
    pack = root / "pack"
    pack.mkdir(parents=True)
    np.concatenate(audio).tofile(pack / "audio.i16")
    np.concatenate(labels).tofile(pack / "teacher.u16")
    np.tile(np.array([[150.0, 0.9]], np.float32), (offset, 1)).tofile(pack / "pitch.f32")
    (pack / "manifest.jsonl").write_text("".join(json.dumps(c) + "\n" for c in clips))
    (pack / "pack.json").write_text(json.dumps({"format": 1, "sample_rate": RATE, "hop": HOP, "frames": offset}))
    (root / "phonemes.jsonl").write_text("".join(json.dumps(s) + "\n" for s in spans))
    model = tiny.build(root / "model")
    tokenise.run(TokeniseConfig(str(pack), str(model / "codec"), str(model / "units"), str(root / "tokens"),
                                splits=["train", "valid"], views=1, shard_clips=20))  # fmt: skip
    idea = IdeaRecipe(str(root / "tokens"), str(pack), str(root / "phonemes.jsonl"), str(model / "codec"),
                      str(root / "x"), content="teacher")  # fmt: skip
    tokens = Tokens(root / "tokens")
    swap = Swap(idea, tokens)
    derive(tokens, root / "phones", ["train", "valid"], swap, {"views": 0, "content_units": tiny.UNITS.content_units})
    return SimpleNamespace(pack=pack, model=model, tokens=root / "tokens", phones=root / "phones", places=places,
                           phonemes=root / "phonemes.jsonl", labels=dict(zip(places, labels)))  # fmt: skip


def babble(units: int, clips: int = 60, seed: int = 0) -> list[np.ndarray]:
    """Clips of frames in which five motifs recur."""
    rng = np.random.default_rng(seed)
    motifs = rng.integers(0, units, (5, 4))
    rows = [np.concatenate([motifs[i] for i in rng.integers(0, 5, 12)]) for _ in range(clips)]
    return [np.repeat(r, rng.integers(1, 6, len(r))) for r in rows]
