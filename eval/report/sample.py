"""Which clips of a corpus are converted, and into whose voice: seeded, even over kinds and speakers."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

from vivavoce.eval.report.study import kind

Clip = dict[str, Any]
REFERENCE_SECONDS = 3.0


def rank(seed: int, name: str) -> int:
    """A number that orders names at random, the same on every machine."""
    return zlib.crc32(f"{seed}:{name}".encode())


def draw(clips: Sequence[Clip], most: int | None, seed: int = 0) -> list[Clip]:
    """At most `most` clips of each kind (see `study.kind`), in rounds over speakers; None: all, as they stand."""
    if most is None:
        return list(clips)
    kinds: dict[str, list[Clip]] = {}
    for c in sorted(clips, key=lambda c: (rank(seed, str(c["id"])), str(c["id"]))):
        kinds.setdefault(kind(c), []).append(c)
    chosen: list[Clip] = []
    for name in sorted(kinds):
        turns: dict[str, int] = {}
        order: list[tuple[int, int, Clip]] = []
        for c in kinds[name]:
            turn = turns[c.get("speaker") or ""] = turns.get(c.get("speaker") or "", 0) + 1
            order.append((turn, len(order), c))
        chosen += [c for _, _, c in sorted(order, key=lambda x: x[:2])[:most]]
    return chosen


def references(clips: Sequence[Clip], seed: int = 0) -> dict[str, Clip]:
    """Speaker -> a clip to enrol: calm speech of an adult, 3 s or longer."""
    out: dict[str, Clip] = {}
    for c in sorted(clips, key=lambda c: (rank(seed, str(c["id"])), str(c["id"]))):
        spoken = (c.get("vocalisation") or "none") == "none"
        calm = (c.get("emotion") or "neutral") in ("neutral", "calm", "unknown")
        adult = float(c.get("age") or 18) >= 18
        long = float(c.get("duration_s") or 0) >= REFERENCE_SECONDS
        if spoken and calm and adult and long and c.get("speaker"):
            out.setdefault(str(c["speaker"]), c)
    return dict(sorted(out.items()))


def assign(ids: Sequence[tuple[str, str]], targets: Sequence[str], seed: int = 0) -> dict[str, str]:
    """Clip id -> target, never its own speaker; `ids` are (id, speaker). A clip for which nobody is left is
    missing from the answer."""
    out = {}
    for name, speaker in ids:
        others = [t for t in targets if t != speaker]
        if others:
            out[name] = others[rank(seed, name) % len(others)]
    return out
