"""How the live pitch register bends a melody, and how soon it knows a speaker. No model: pitch tracks of a pack.

    python benchmarks/register.py PACK

For each group of valid clips, each begun cold: correlation of F0 with F0 relative to the live register, over voiced
frames (1 where the register does not move). For streams of 20 s, clips of one speaker in a row: distance from the
mean over the stream's voiced frames, in semitones, after 1 s, 5 s and at the end. `plain` uses what is believed as it
is.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from vivavoce.recipes.corpus import Pack
from vivavoce.units.prosody import Register

GROUPS = {
    "read speech": lambda c: c["vocalisation"] == "none" and c["source"] in ("librispeech", "speechocean762"),
    "emotional speech": lambda c: c["vocalisation"] == "none" and c["source"] in ("nemo", "ravdess"),
    "laughs": lambda c: c["vocalisation"] == "laugh",
    "cries and sobs": lambda c: c["vocalisation"] in ("cry", "sob"),
}


class Plain(Register):
    """What is believed, used as it is."""

    SPEAKING = RESTING = 1e9


def follow(register: Register, track: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pitch track [T, 2] -> log2 F0, log2 register, voiced, each [T]."""
    f0, voiced = torch.from_numpy(track[None, :, 0].astype(np.float64)), torch.from_numpy(track[None, :, 1] > 0.5)
    own = register(f0, voiced.double())[0]
    return np.log2(np.maximum(track[:, 0], 20.0)), own[0].numpy(), voiced[0].numpy()


def main() -> None:
    pack, rng = Pack(sys.argv[1]), np.random.default_rng(0)
    clips = pack.split("valid")
    track = {c["id"]: np.array(pack.pitch[c["offset"] : c["offset"] + c["frames"]]) for c in clips}
    chosen = {}
    for group, member in GROUPS.items():
        ids = [c["id"] for c in clips if member(c) and (track[c["id"]][:, 1] > 0.5).sum() >= 25]
        chosen[group] = [ids[i] for i in rng.permutation(len(ids))[:60]]
    streams = []
    for speaker in sorted({c["speaker"] for c in clips}):
        own = [track[c["id"]] for c in clips if c["speaker"] == speaker]
        joined = np.concatenate([own[i] for i in rng.permutation(len(own))])[:1000]
        if len(joined) >= 700 and (joined[:, 1] > 0.5).any():
            streams.append(joined)
    print(f"{'':24}", *(f"{g} ({len(ids)})" for g, ids in chosen.items()), f"| {len(streams)} streams: 1 s, 5 s, end")
    ways = {"plain": Plain(), "live": Register()}
    for name, register in ways.items():
        row = []
        for ids in chosen.values():
            r = []
            for i in ids:
                x, own, v = follow(register, track[i])
                if x[v].std() > 1e-3:
                    r.append(np.corrcoef(x[v], (x - own)[v])[0, 1])
            row.append(float(np.mean(r)))
        errors = []
        for joined in streams:
            x, own, v = follow(register, joined)
            errors.append([12 * abs(own[t] - x[v].mean()) for t in (50, 250, -1)])
        print(f"{name:24}", *(f"{r:.3f}" for r in row), "|", *(f"{e:.2f}" for e in np.mean(errors, axis=0)), flush=True)


if __name__ == "__main__":
    main()
