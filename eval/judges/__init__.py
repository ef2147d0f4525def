"""Independent judges, one interface: each analyses a 16 kHz clip once and then compares analyses.

    speaker   Resemblyzer's voice encoder: similarity to the target, to the source, and the margin
    phonemes  hama's phoneme recogniser: phoneme error rate, the source's phonemes being the reference
    pitch     swift-f0 (or pitch:world, WORLD's Harvest): F0 correlation, shift and range, voicing
    events    the event tagger of this package: laughs, cries, sighs, screams kept, event F1, onsets
    emotion   the emotion tagger of this package: agreement of source and converted, recall of labels
    quality   DNSMOS
    signal    no model: energy, pauses, rate, clicks and seams, noise in silence

Models of a hub, or of a local folder, by name: `speaker:MODEL`, `phonemes:MODEL`, `words:MODEL`, `emotion:MODEL`,
`events:MODEL` (see `hub`). No judge shares weights with the converter. A judge loads its package when it is made; an
absent package raises JudgeError with the line that installs it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from vivavoce.eval.judges.base import RATE, Heard, Judge, JudgeError
from vivavoce.eval.judges.emotion import EmotionJudge
from vivavoce.eval.judges.events import EventJudge
from vivavoce.eval.judges.hub import HUB
from vivavoce.eval.judges.phonemes import PhonemeJudge
from vivavoce.eval.judges.pitch import VOICED, PitchJudge, WorldPitchJudge
from vivavoce.eval.judges.quality import QualityJudge
from vivavoce.eval.judges.signal import SignalJudge
from vivavoce.eval.judges.speaker import SpeakerJudge

__all__ = ["JUDGES", "RATE", "VOICED", "EventJudge", "Heard", "Judge", "JudgeError", "PitchJudge", "SignalJudge",
           "SpeakerJudge", "find", "kind_of", "make"]  # fmt: skip

JUDGES: dict[str, type[Judge]] = {
    j.kind: cast("type[Judge]", j)
    for j in (SpeakerJudge, PhonemeJudge, PitchJudge, EventJudge, EmotionJudge, QualityJudge, SignalJudge)
}


def kind_of(name: str) -> str:
    """`speaker:some/model` -> `speaker`."""
    return name.partition(":")[0]


def find(name: str) -> Callable[[], Judge]:
    """The judge of this name; call it to load it. Raises JudgeError when there is none."""
    kind, _, model = name.partition(":")
    if name == "pitch:world":
        return WorldPitchJudge
    if model and kind in HUB:
        return lambda: HUB[kind](model)
    if name not in JUDGES:
        raise JudgeError(f"unknown judge {name!r}; there are: {', '.join(JUDGES)}, pitch:world, "
                         f"and {', '.join(f'{k}:MODEL' for k in HUB)}")  # fmt: skip
    return cast("Callable[[], Judge]", JUDGES[name])


def make(name: str) -> Judge:
    """The judge of this name, loaded. Raises JudgeError when it is unknown or its package is absent."""
    return find(name)()
