"""How the live pitch register bends a melody, how soon it knows a speaker, and what it takes a cry's speaker for.

    python benchmarks/register.py PACK [MODEL]

Pitch tracks of a pack's valid clips, and what MODEL (default: the embedded one) says is speech of them. For each group,
each clip begun cold: correlation of F0 with F0 relative to the live register, over voiced frames (1 where the register
does not move), and the median of the registers it ends with, Hz. For streams of 20 s, clips of one speaker's speech in
a row: distance from the mean over the stream's voiced frames, in semitones, after 1 s, 5 s and at the end. `all speech`
listens to no model; `plain` uses what is believed as it is; what nobody said stays where it is (so ends with the
register of the voice that it is to be, one of `HOMES`).
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from vivavoce.changer import load
from vivavoce.recipes.corpus import Pack
from vivavoce.units.prosody import Register

HOMES = 110.0, 200.0  # Hz
GROUPS = {
    "read speech": lambda c: c["vocalisation"] == "none" and c["source"] in ("librispeech", "speechocean762"),
    "emotional speech": lambda c: c["vocalisation"] == "none" and c["source"] in ("nemo", "ravdess"),
    "laughs": lambda c: c["vocalisation"] == "laugh",
    "cries and sobs": lambda c: c["vocalisation"] in ("cry", "sob"),
}


class Plain(Register):
    """What is believed, used as it is."""

    SPEAKING = RESTING = 1e9


def follow(register: Register, track: np.ndarray, speaking: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pitch track [T, 2] and whether it is speech [T] -> log2 F0, log2 register, voiced, each [T]."""
    f0, voiced = torch.from_numpy(track[None, :, 0].astype(np.float64)), torch.from_numpy(track[None, :, 1] > 0.5)
    own = register(f0, voiced.double(), torch.from_numpy(speaking)[None])[0]
    return np.log2(np.maximum(track[:, 0], 20.0)), own[0].numpy(), voiced[0].numpy()


def main() -> None:
    torch.set_num_threads(1)
    pack, rng, changer = Pack(sys.argv[1]), np.random.default_rng(0), load((*sys.argv[2:], None)[0])
    if changer.speaking is None:
        raise SystemExit("this model cannot tell speech from other sounds: fit it with vivavoce.recipes.speaking")
    clips = {c["id"]: c for c in pack.split("valid")}
    track = {i: np.array(pack.pitch[c["offset"] : c["offset"] + c["frames"]]) for i, c in clips.items()}

    def said(ids: list[str]) -> np.ndarray:
        """Whether each frame is speech, of clips in a row."""
        x = np.concatenate([pack.waveform(clips[i]["offset"], clips[i]["frames"]) for i in ids])
        content, _, units, _ = changer.tokenise(torch.from_numpy(x))
        return (changer.speaking(content[None], units[None, :, 1] / 15.0)[0][0] > 0).numpy()  # type: ignore[misc]

    chosen = {}
    for group, member in GROUPS.items():
        ids = [i for i, c in clips.items() if member(c) and (track[i][:, 1] > 0.5).sum() >= 25]
        chosen[group] = [ids[i] for i in rng.permutation(len(ids))[:60]]
    heard = {i: said([i]) for ids in chosen.values() for i in ids}
    streams = []
    for speaker in sorted({c["speaker"] for c in clips.values()}):
        own = [i for i, c in clips.items() if c["speaker"] == speaker and c["vocalisation"] == "none"]
        ids, frames = [], 0
        for n in rng.permutation(len(own)):
            ids, frames = (ids, frames) if frames >= 1000 else ([*ids, own[n]], frames + len(track[own[n]]))
        if frames >= 700:
            joined = np.concatenate([track[i] for i in ids])[:1000]
            streams.append((joined, said(ids)[: len(joined)]))
    print(f"{'':24}", *(f"{g} ({len(ids)})" for g, ids in chosen.items()), f"| {len(streams)} streams: 1 s, 5 s, end")
    ways = [("all speech", Register(), False)]
    ways += [(f"{name}, to {home:.0f} Hz", kind(home=home), True) for home in HOMES
             for name, kind in (("plain", Plain), ("live", Register))]  # fmt: skip
    for name, register, listens in ways:
        row, ends = [], []
        for ids in chosen.values():
            r, last = [], []
            for i in ids:
                x, own, v = follow(register, track[i], heard[i] | (not listens))
                last.append(2 ** own[-1])
                if x[v].std() > 1e-3:
                    r.append(np.corrcoef(x[v], (x - own)[v])[0, 1])
            row.append(float(np.mean(r)))
            ends.append(float(np.median(last)))
        errors = []
        for joined, speaking in streams:
            x, own, v = follow(register, joined, speaking | (not listens))
            errors.append([12 * abs(own[t] - x[v].mean()) for t in (50, 250, -1)])
        print(f"{name:24}", *(f"{r:.3f} {hz:.0f} Hz" for r, hz in zip(row, ends)), "|",
              *(f"{e:.2f}" for e in np.mean(errors, axis=0)), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
