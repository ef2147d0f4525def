"""Independent judges, one interface: each analyses a 16 kHz clip once and then compares analyses.

    speaker   Resemblyzer's voice encoder: similarity to the target, to the source, and the margin
    phonemes  hama's phoneme recogniser: phoneme error rate, the source's phonemes being the reference
    pitch     swift-f0: F0 correlation, register shift, voicing F1
    events    the tagger of this folder: vocal events kept, event F1
    signal    no model: energy correlation, level

A judge loads its package when it is made; an absent package raises JudgeError with the line that installs it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import types
from abc import ABC, abstractmethod
from typing import Any, ClassVar, cast

import numpy as np

from vivavoce.core.errors import CheckpointError, VivavoceError
from vivavoce.eval import metrics

RATE = 16000
VOICED = 0.4  # confidence of swift-f0 from which a frame counts as voiced


class JudgeError(VivavoceError):
    """A judge that is unknown, or whose package is not installed."""


class Judge(ABC):
    """A judge's card and its two verbs.

    Attributes:
        name: how reports and the command line call it.
        package, install: the distribution behind it, and what `pip` needs to hear to get it.
        version, licence: of that package.
        columns: every number that `compare` may return.
        min_seconds: clips shorter than this are not judged.
        wordless: whether clips without words are judged too.
    """

    name: ClassVar[str]
    package: ClassVar[str] = "vivavoce"
    install: ClassVar[str] = ""
    licence: ClassVar[str] = "Apache-2.0"
    columns: ClassVar[tuple[str, ...]]
    min_seconds: ClassVar[float]
    wordless: ClassVar[bool] = True

    @property
    def version(self) -> str:
        return importlib.metadata.version(self.package)

    def require(self, module: str) -> types.ModuleType:
        """Import a module of the judge's package. Raises JudgeError saying how to get it."""
        try:
            return importlib.import_module(module)
        except ImportError as e:
            raise JudgeError(f"judge {self.name!r} is not available ({e}); "
                             f"to have it: pip install {self.install}") from None  # fmt: skip

    @abstractmethod
    def analyse(self, wave: np.ndarray) -> Any:
        """What the judge hears in one 16 kHz mono float32 clip [samples] that is not silent."""

    @abstractmethod
    def compare(self, source: Any, converted: Any, target: Any | None = None) -> dict[str, float | str]:
        """Numbers of one conversion from three analyses; `target` is None where there is no reference."""


class SpeakerJudge(Judge):
    """Resemblyzer's GE2E voice encoder. Embeddings are non-negative: strangers score 0.5 to 0.7, not 0."""

    name = "speaker"
    package, install = "Resemblyzer", "librosa && pip install --no-deps Resemblyzer"
    columns = ("sim_target", "sim_source", "margin")
    min_seconds = 0.6

    def __init__(self) -> None:
        voice, self._audio = self._import()
        self._encoder = voice.VoiceEncoder("cpu", verbose=False)

    def _import(self) -> tuple[Any, Any]:
        """Resemblyzer's encoder without its voice activity detector.

        `resemblyzer.audio` imports webrtcvad, which needs a C compiler and an old setuptools, for a trimming
        function that is not used here: where it is absent an empty module stands in during the import.
        """
        stub = "webrtcvad"
        try:
            importlib.import_module(stub)
            stubbed = False
        except ImportError:
            sys.modules[stub] = types.ModuleType(stub)
            stubbed = True
        try:
            return self.require("resemblyzer.voice_encoder"), self.require("resemblyzer.audio")
        finally:
            if stubbed:
                del sys.modules[stub]

    def analyse(self, wave: np.ndarray) -> np.ndarray:
        """Unit vector [256]; volume is raised to -30 dBFS where it is lower, as Resemblyzer does itself."""
        wave = self._audio.normalize_volume(wave.astype(np.float32), -30, increase_only=True)
        return self._encoder.embed_utterance(wave)

    def compare(self, source: Any, converted: Any, target: Any | None = None) -> dict[str, float | str]:
        own = float(source @ converted)
        if target is None:
            return {"sim_source": own}
        other = float(target @ converted)
        return {"sim_target": other, "sim_source": own, "margin": other - own}


class PhonemeJudge(Judge):
    """hama's phoneme recogniser (English); judges only what has words."""

    name = "phonemes"
    package, install = "hama", "hama"
    columns = ("per", "phonemes")
    min_seconds = 0.3
    wordless = False

    def __init__(self) -> None:
        self._model = self.require("hama").ASRModel()

    def analyse(self, wave: np.ndarray) -> tuple[str, ...]:
        return tuple(self._model.transcribe_waveform(wave.astype(np.float32), RATE).phonemes)

    def compare(self, source: Any, converted: Any, target: Any | None = None) -> dict[str, float | str]:
        return {"per": metrics.error_rate(source, converted), "phonemes": float(len(source))}


class PitchJudge(Judge):
    """swift-f0 on its own grid of 16 ms."""

    name = "pitch"
    package, install, licence = "swift-f0", "swift-f0", "MIT"
    columns = ("f0_corr", "f0_frames", "f0_shift", "voicing_f1")
    min_seconds = 0.1

    def __init__(self) -> None:
        self._tracker = self.require("swift_f0").SwiftF0(threads=1, spin=False)

    def track(self, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Times in s, F0 in Hz and confidence in 0..1, each [frames], of a 16 kHz clip of any length."""
        padded = np.pad(wave.astype(np.float32), (0, max(0, 4096 - len(wave))))
        r = self._tracker.detect(padded, RATE)
        n = int(np.searchsorted(r.timestamps, len(wave) / RATE, side="right"))
        return r.timestamps[:n], r.pitch_hz[:n], r.confidence[:n]

    def analyse(self, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """F0 in Hz and whether it is voiced, each [frames]."""
        _, hz, confidence = self.track(wave)
        return hz, confidence >= VOICED

    def compare(self, source: Any, converted: Any, target: Any | None = None) -> dict[str, float | str]:
        corr, n = metrics.f0_correlation(*source, *converted)
        return {"f0_corr": corr, "f0_frames": float(n), "f0_shift": metrics.f0_shift(*source, *converted),
                "voicing_f1": metrics.voicing_f1(source[1], converted[1])}  # fmt: skip


class EventJudge(Judge):
    """The vocal event tagger of this folder; it hears the clips, labels of a manifest play no part."""

    name = "events"
    columns = ("event", "event_converted", "event_kept", "event_f1", "events")
    min_seconds = 0.2

    def __init__(self) -> None:
        from vivavoce.eval import tagger

        try:
            self._tagger = tagger.shipped()
        except CheckpointError as e:
            raise JudgeError(f"judge 'events' is not available ({e}); install vivavoce again") from None

    @property
    def version(self) -> str:
        return str(self._tagger.card.get("version", super().version))

    def analyse(self, wave: np.ndarray) -> Any:
        return self._tagger.tag(wave)

    def compare(self, source: Any, converted: Any, target: Any | None = None) -> dict[str, float | str]:
        """`event_kept`: the surest vocal event of the source fires on the converted clip as well (1 or 0; NaN
        where the source fires none). `event_f1`: spans of all vocal events, matched at IoU 0.5."""
        from vivavoce.eval.tagger import EVENTS

        own, got = ([k for k in tags.fired if k in EVENTS] for tags in (source, converted))
        heard = [{k: tags.spans(k) for k in EVENTS} for tags in (source, converted)]
        f1, n = metrics.event_f1(heard[0], heard[1])
        kept = float(own[0] in got) if own else float("nan")
        return {"event": own[0] if own else "", "event_converted": got[0] if got else "", "event_kept": kept,
                "event_f1": f1, "events": float(n)}  # fmt: skip


class SignalJudge(Judge):
    """What needs no model: how the level moves."""

    name = "signal"
    columns = ("energy_corr", "energy_frames", "level_shift")
    min_seconds = 0.2

    def analyse(self, wave: np.ndarray) -> np.ndarray:
        """Frame level in dB [frames], 20 ms hop."""
        return metrics.levels(wave)

    def compare(self, source: Any, converted: Any, target: Any | None = None) -> dict[str, float | str]:
        corr, n = metrics.energy_correlation(source, converted)
        shift = metrics.level_shift(source, converted)
        return {"energy_corr": corr, "energy_frames": float(n), "level_shift": shift}


JUDGES: dict[str, type[Judge]] = {
    j.name: cast("type[Judge]", j) for j in (SpeakerJudge, PhonemeJudge, PitchJudge, EventJudge, SignalJudge)
}


def find(name: str) -> type[Judge]:
    """The judge of this name; call it to load it. Raises JudgeError when there is none."""
    if name not in JUDGES:
        raise JudgeError(f"unknown judge {name!r}; there are: {', '.join(JUDGES)}")
    return JUDGES[name]


def make(name: str) -> Judge:
    """The judge of this name, loaded. Raises JudgeError when it is unknown or its package is absent."""
    return find(name)()
