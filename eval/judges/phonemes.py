"""What was said: phonemes or words heard in source and converted clip, the source's being the reference."""

from __future__ import annotations

import numpy as np

from vivavoce.eval import metrics
from vivavoce.eval.judges.base import RATE, Heard, Judge


class PhonemeColumns(Judge):
    """What any phoneme judge makes of two strings of symbols."""

    kind = "phonemes"
    columns = ("per", "phonemes")
    min_seconds = 0.3
    wordless = False

    def compare(self, source: Heard, converted: Heard, target: Heard | None = None) -> dict[str, float | str]:
        a, b = (list(x["symbols"]) for x in (source, converted))
        return {"per": metrics.error_rate(a, b), "phonemes": float(len(a))}


class PhonemeJudge(PhonemeColumns):
    """hama's phoneme recogniser."""

    package, install = "hama", "hama"
    languages = ("en",)

    def __init__(self) -> None:
        self._model = self.require("hama").ASRModel()

    def analyse(self, wave: np.ndarray) -> Heard:
        return {"symbols": np.array(self._model.transcribe_waveform(wave.astype(np.float32), RATE).phonemes, str)}


class WordColumns(Judge):
    """What any word judge makes of two lists of words."""

    kind = "words"
    columns = ("wer", "words")
    min_seconds = 0.5
    wordless = False

    def compare(self, source: Heard, converted: Heard, target: Heard | None = None) -> dict[str, float | str]:
        a, b = (list(x["symbols"]) for x in (source, converted))
        return {"wer": metrics.error_rate(a, b, least=1), "words": float(len(a))}
