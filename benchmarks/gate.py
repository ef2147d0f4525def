"""What the noise gate takes from laughs, cries, sobs, sighs and breath, and what it leaves of silence.

    python benchmarks/gate.py PACK

Each valid clip stands between 2 s of nothing, in room noise (low-pass filtered) so many dB below its loudest 20 ms.
Printed: share of the clip's energy lost, mean and worst; of the first 200 ms' after its onset; of the energy of
frames 20 to 40 dB below the loudest; share of silence turned down by 34 dB or more.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from vivavoce.gate import Gate
from vivavoce.recipes.corpus import HOP, RATE, Pack

KINDS = {
    **{k: (lambda c, k=k: c["vocalisation"] == k) for k in ("laugh", "cry", "sob", "sigh", "breath")},
    "read speech": lambda c: c["source"] == "librispeech",
    "acted speech": lambda c: c["source"] == "ravdess",
}


def gains(x: torch.Tensor) -> torch.Tensor:
    """What the gate does to each sample of a stream [n], in chunks of 40 ms and with a lag of 100 ms."""
    gate, out, given, lag = Gate(RATE), [], 0, RATE // 10
    for at in range(0, len(x), 2 * HOP):
        gate.hear(x[at : at + 2 * HOP])
        ready = max(given, min(at + 2 * HOP, len(x)) - lag)
        out.append(gate.apply(torch.ones(ready - given)))
        given = ready
    return torch.cat((*out, gate.apply(torch.ones(len(x) - given))))


def lost(gain: torch.Tensor, x: torch.Tensor) -> float:
    """Share of energy in %; of nothing, NaN."""
    if not len(x):
        return float("nan")
    return 100.0 * float(1.0 - (gain * x).square().sum() / x.square().sum().clamp_min(1e-12))


def main() -> None:
    pack, rng = Pack(sys.argv[1]), np.random.default_rng(0)
    torch.manual_seed(0)
    smooth, rest = 0.5 ** torch.arange(9.0)[None, None], torch.zeros(2 * RATE)
    for noise in (-50.0, -40.0, -30.0):
        print(f"noise at {noise:.0f} dB: energy lost in %, mean / worst | onset | quiet frames | silence closed, %")
        for kind, member in KINDS.items():
            clips, rows = [c for c in pack.split("valid") if member(c)], []
            for i in rng.permutation(len(clips))[:25]:
                x = torch.from_numpy(pack.waveform(clips[i]["offset"], clips[i]["frames"]))
                power = x.reshape(-1, HOP).square().mean(1)
                room = torch.conv1d(torch.randn(1, 1, len(x) + 4 * RATE), smooth, padding="same")[0, 0]
                room *= 10.0 ** (noise / 20.0) * power.max().sqrt() / room.std()
                gain = gains(torch.cat((rest, x, rest)) + room)
                own = gain[2 * RATE : -2 * RATE]
                onset = int((x.abs() > 0.1 * x.abs().max()).nonzero()[0])
                first = slice(max(0, onset - 800), onset + 3200)
                quiet = ((power < power.max() * 1e-2) & (power > power.max() * 1e-4)).repeat_interleave(HOP)
                silence = torch.cat((gain[RATE // 2 : 2 * RATE - 1600], gain[-RATE:]))
                rows.append((lost(own, x), lost(own[first], x[first]), lost(own[quiet], x[quiet]),
                             100.0 * float((silence < 0.02).float().mean())))  # fmt: skip
            mean, worst = np.nanmean(rows, axis=0), np.nanmax(rows, axis=0)
            print(f"  {kind:13} n {len(rows):2d}   {mean[0]:.3f} / {worst[0]:.2f} | {mean[1]:.3f} / {worst[1]:.2f} | "
                  f"{mean[2]:.2f} | {mean[3]:.0f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
