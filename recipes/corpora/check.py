"""Is a recording good enough to train on? Level, clipping, noise, bandwidth, silence at the edges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vivavoce.core.audio import load
from vivavoce.core.errors import AudioError
from vivavoce.recipes.corpus import corpus_root, scan

FRAME_S = 0.02
RULES = {  # what is wrong -> how it is told
    "clipped": "three samples in a row at full scale",
    "loud": "peak above -0.5 dBFS: no headroom",
    "quiet": "voice below -42 dBFS",
    "noisy": "voice less than 25 dB above the noise floor",
    "dull": "nothing above 6 kHz: a telephone, a codec or the wrong microphone",
    "low rate": "below 16 kHz",
    "cut": "voice within 30 ms of the beginning or the end",
    "short": "less than 0.3 s of voice",
    "long": "more than 30 s: cut it",
    "offset": "a constant (DC) above -40 dBFS",
}


@dataclass
class Quality:
    """Numbers of one recording; levels in dBFS, bandwidth in Hz, times in s."""

    duration: float
    rate: int
    peak: float
    voice: float
    floor: float
    bandwidth: float
    clipped: int  # samples in runs at full scale
    offset: float
    voiced_s: float
    edge_s: float  # silence before and after, the shorter of the two

    def faults(self) -> list[str]:
        """The names in RULES that apply."""
        tests = {
            "clipped": self.clipped > 0, "loud": self.peak > -0.5, "quiet": self.voice < -42,
            "noisy": self.voice - self.floor < 25, "dull": self.bandwidth < 6000, "low rate": self.rate < 16000,
            "cut": self.edge_s < 0.03, "short": self.voiced_s < 0.3, "long": self.duration > 30,
            "offset": self.offset > -40,
        }  # fmt: skip
        return [name for name, wrong in tests.items() if wrong]


def measure(x: np.ndarray, rate: int) -> Quality:
    """Samples [n] (full scale 1) at `rate` Hz -> numbers. Voice: frames within 25 dB of the 95th percentile."""
    n = max(1, round(FRAME_S * rate))
    frames = np.pad(x.astype(np.float64), (0, -len(x) % n)).reshape(-1, n)
    levels = 10 * np.log10(np.maximum(np.mean((frames - x.mean()) ** 2, axis=1), 1e-12))
    on = levels > np.percentile(levels, 95) - 25
    at = np.flatnonzero(on)
    full = np.abs(x) >= 0.9999
    runs = full[2:] & full[1:-1] & full[:-2]
    window = np.hanning(1024)
    blocks = np.pad(x, (0, max(0, 1024 - len(x))))
    blocks = blocks[: len(blocks) // 1024 * 1024].reshape(-1, 1024)
    power = np.mean(np.abs(np.fft.rfft(blocks * window, axis=1)) ** 2, axis=0)
    loud = np.flatnonzero(power > power.max() * 1e-6)  # within 60 dB of the strongest band
    return Quality(
        duration=len(x) / rate, rate=rate, peak=_db(np.abs(x).max()), voice=float(_mean_db(levels[on])),
        floor=float(np.percentile(levels, 5)), bandwidth=float(loud[-1] * rate / 1024 if len(loud) else 0.0),
        clipped=int(runs.sum()), offset=_db(abs(x.mean())), voiced_s=float(on.sum() * FRAME_S),
        edge_s=float(min(at[0], len(levels) - 1 - at[-1]) * FRAME_S) if len(at) else 0.0,
    )  # fmt: skip


def _db(amplitude: float) -> float:
    return float(20 * np.log10(max(float(amplitude), 1e-7)))


def _mean_db(levels: np.ndarray) -> float:
    return 10 * np.log10(np.mean(10 ** (levels / 10))) if len(levels) else -120.0


def check(corpus: str | Path) -> Iterator[tuple[dict[str, Any], Quality | str]]:
    """Each clip of a corpus (folder or manifest) with its numbers, or with the reason why it cannot be read.

    Raises:
        CorpusError: no such corpus.
    """
    clips = [c for c in scan(corpus) if not c.get("shard")]
    root = corpus_root(corpus)
    for clip in tqdm(clips, desc="check", unit="clip"):
        try:
            x, rate = load(root / clip["path"])
        except AudioError as e:
            yield clip, str(e)
            continue
        start = round(clip.get("start_s", 0.0) * rate)
        length = round(clip["duration_s"] * rate) if "start_s" in clip else len(x)
        yield clip, measure(x.numpy()[start : start + length], rate)


def report(corpus: str | Path, worst: int = 10) -> str:
    """A table of faults by speaker, the worst clips by name, and the middle of every number."""
    rows = list(check(corpus))
    good = [(c, q) for c, q in rows if isinstance(q, Quality)]
    counts: Counter[str] = Counter()
    speakers: dict[str, Counter[str]] = {}
    for clip, q in good:
        found = q.faults()
        counts.update(found)
        speakers.setdefault(str(clip.get("speaker")), Counter()).update(found or ["fine"])
    lines = [f"{len(rows)} clips, {sum(q.duration for _, q in good) / 3600:.2f} h, "
             f"{len(rows) - len(good)} unreadable, {sum(not q.faults() for _, q in good)} without a fault"]
    if good:
        voice, floor, peak, band = np.median([(q.voice, q.floor, q.peak, q.bandwidth) for _, q in good], axis=0)
        lines.append(f"median: voice {voice:.0f} dBFS, floor {floor:.0f} dBFS, peak {peak:.1f} dBFS, "
                     f"bandwidth {band:.0f} Hz")
    lines += [f"  {counts[k]:6d} {k}: {RULES[k]}" for k in RULES if counts[k]]
    lines += [f"  unreadable: {q}" for _, q in rows if isinstance(q, str)][:worst]
    for name, faults in sorted(speakers.items()):
        lines.append(f"  {name}: " + ", ".join(f"{n} {k}" for k, n in faults.most_common()))
    bad = sorted(((len(q.faults()), c["id"], q) for c, q in good if q.faults()), key=lambda r: (-r[0], r[1]))
    lines += [f"  {name}: {', '.join(q.faults())}" for _, name, q in bad[:worst]]
    return "\n".join(lines)
