"""Whose voice: similarity to the target, to the source, and the margin between them."""

from __future__ import annotations

import numpy as np

from vivavoce.eval.judges.base import Heard, Judge, stand_in


class SpeakerColumns(Judge):
    """What any speaker judge makes of unit-length embeddings."""

    kind = "speaker"
    columns = ("sim_target", "sim_source", "margin")
    min_seconds = 0.6

    def embed(self, wave: np.ndarray) -> np.ndarray:
        """Unit vector [dimensions] of a 16 kHz clip."""
        raise NotImplementedError

    def analyse(self, wave: np.ndarray) -> Heard:
        return {"embedding": self.embed(wave)}

    def compare(self, source: Heard, converted: Heard, target: Heard | None = None) -> dict[str, float | str]:
        own = float(source["embedding"] @ converted["embedding"])
        if target is None:
            return {"sim_source": own}
        other = float(target["embedding"] @ converted["embedding"])
        return {"sim_target": other, "sim_source": own, "margin": other - own}


class SpeakerJudge(SpeakerColumns):
    """Resemblyzer's GE2E voice encoder. Embeddings are non-negative: strangers score 0.5 to 0.7, not 0."""

    package, install = "Resemblyzer", "librosa && pip install --no-deps Resemblyzer"

    def __init__(self) -> None:
        with stand_in("webrtcvad"):  # for trimming; wants a C compiler and an old setuptools
            voice, self._audio = self.require("resemblyzer.voice_encoder"), self.require("resemblyzer.audio")
        self._encoder = voice.VoiceEncoder("cpu", verbose=False)

    def embed(self, wave: np.ndarray) -> np.ndarray:
        """Unit vector [256]; volume is raised to -30 dBFS where it is lower, as Resemblyzer does itself."""
        wave = self._audio.normalize_volume(wave.astype(np.float32), -30, increase_only=True)
        return self._encoder.embed_utterance(wave)
