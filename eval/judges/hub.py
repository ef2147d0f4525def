"""Judges made of models of a hub, or of a local folder, loaded through transformers by name.

    speaker:microsoft/wavlm-base-plus-sv     x-vectors (WavLM, wav2vec 2.0, UniSpeech ...)
    phonemes:facebook/wav2vec2-lv-60-espeak-cv-ft    CTC over phonemes
    words:openai/whisper-base                Whisper, or CTC over letters
    emotion:MODEL                            audio classification into emotions
    events:MIT/ast-finetuned-audioset-10-10-0.4593   audio classification into AudioSet's classes

Only safetensors and JSON are read; no code of a model's repository is run.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from vivavoce.eval.judges.base import RATE, Heard, Judge, JudgeError
from vivavoce.eval.judges.emotion import EmotionColumns, canonical
from vivavoce.eval.judges.events import EventColumns, heard_events
from vivavoce.eval.judges.phonemes import PhonemeColumns, WordColumns
from vivavoce.eval.judges.speaker import SpeakerColumns

EVENT_WORDS = {"laugh": ("laugh", "giggle", "chuckle", "snicker"), "cry": ("crying", "sobbing", "whimper", "wail"),
               "sigh": ("sigh", "breathing", "gasp", "pant"), "scream": ("scream", "shriek")}  # fmt: skip
FIRES = 0.2  # probability from which an event counts; a hub's models come without a threshold of ours
WINDOW, STEP = 0.96, 0.24  # s


class HubJudge(Judge):
    """A model and its feature extractor, on the CPU.

    Args:
        model: hub id, or a folder written by `save_pretrained` (model and feature extractor).

    Raises:
        JudgeError: transformers is not installed; the model cannot be had, or is of another kind.
    """

    package, install = "transformers", "transformers"
    auto: str  # transformers' class for it

    def __init__(self, model: str) -> None:
        self.model_name = model
        transformers = self.require("transformers")
        self._torch = self.require("torch")
        try:
            self._features = transformers.AutoFeatureExtractor.from_pretrained(model)
            self._model = self._load(transformers).eval()
        except (OSError, ValueError, KeyError) as e:
            why = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
            raise JudgeError(f"judge {self.name!r} is not available ({why}); name a model of the hub that this machine "
                             f"can reach, or a folder with a model of transformers' {self.auto}") from None  # fmt: skip
        rate = getattr(self._features, "sampling_rate", RATE)
        if rate != RATE:
            raise JudgeError(f"judge {self.name!r} hears {rate} Hz, judges here hear {RATE} Hz; choose another model")
        self.licence = self._licence()

    def _load(self, transformers: Any) -> Any:
        return getattr(transformers, self.auto).from_pretrained(self.model_name, use_safetensors=True)

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.model_name}"

    @functools.cached_property
    def version(self) -> str:  # type: ignore[override]
        """The hub's commit; of a folder, a digest of its weights."""
        commit = getattr(self._model.config, "_commit_hash", None)
        if commit:
            return str(commit)[:12]
        digest = hashlib.sha256()
        for path in sorted(Path(self.model_name).glob("*.safetensors")):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:12]

    def _file(self, name: str) -> Path | None:
        """A file of the model's repository, where it has one."""
        from transformers.utils import cached_file

        try:
            found = cached_file(self.model_name, name, _raise_exceptions_for_missing_entries=False,
                                _raise_exceptions_for_connection_errors=False)  # fmt: skip
        except OSError:
            return None
        return Path(found) if found else None

    def _licence(self) -> str:
        """By the model card's header."""
        path = self._file("README.md")
        for line in path.read_text(encoding="utf-8").splitlines() if path else ():
            if line.startswith("license:"):
                return line.partition(":")[2].strip()
        return "not stated by the model"

    def run(self, *waves: np.ndarray) -> Any:
        """The model's output for 16 kHz clips of one length."""
        features = self._features(list(waves), sampling_rate=RATE, return_tensors="pt")
        with self._torch.inference_mode():
            return self._model(**features)


class HubSpeaker(HubJudge, SpeakerColumns):
    auto = "AutoModelForAudioXVector"

    def embed(self, wave: np.ndarray) -> np.ndarray:
        x = self.run(wave).embeddings[0].double().numpy()
        return x / np.linalg.norm(x)


class HubCTC(HubJudge):
    """Greedy CTC by the model's own `vocab.json`: its tokenizer is not needed (some want a phonemiser)."""

    auto = "AutoModelForCTC"

    def __init__(self, model: str) -> None:
        super().__init__(model)
        from vivavoce.core.checkpoint import read_json

        path = self._file("vocab.json")
        if path is None:
            raise JudgeError(f"judge {self.name!r}: the model has no vocab.json, which names its symbols")
        self._symbols = {int(i): s for s, i in read_json(path).items()}
        self._blank = self._model.config.pad_token_id

    def symbols(self, wave: np.ndarray) -> list[str]:
        best = self.run(wave).logits[0].argmax(-1).tolist()
        kept = [i for i, before in zip(best, [None, *best]) if i != before and i != self._blank]
        return [s for s in (self._symbols.get(i, "") for i in kept) if s and not s.startswith(("<", "["))]


class HubPhonemes(HubCTC, PhonemeColumns):
    def analyse(self, wave: np.ndarray) -> Heard:
        return {"symbols": np.array([s for s in self.symbols(wave) if s != "|"], str)}


class HubLetters(HubCTC, WordColumns):
    def analyse(self, wave: np.ndarray) -> Heard:
        return {"symbols": np.array("".join(self.symbols(wave)).replace("|", " ").lower().split(), str)}


class HubWhisper(HubJudge, WordColumns):
    """Whisper, greedy; the language is the model's own guess, clips beyond 30 s are cut there."""

    auto = "AutoModelForSpeechSeq2Seq"

    def _load(self, transformers: Any) -> Any:
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(self.model_name)
        return super()._load(transformers)

    def analyse(self, wave: np.ndarray) -> Heard:
        features = self._features(wave, sampling_rate=RATE, return_tensors="pt")
        with self._torch.inference_mode():
            ids = self._model.generate(**features, do_sample=False)
        text = self._tokenizer.batch_decode(ids, skip_special_tokens=True)[0]
        words = "".join(c if c.isalnum() or c in "'’" else " " for c in text.lower())
        return {"symbols": np.array(words.split(), str)}


class HubEmotion(HubJudge, EmotionColumns):
    auto = "AutoModelForAudioClassification"

    def __init__(self, model: str) -> None:
        super().__init__(model)
        names = self._model.config.id2label
        self._own = [canonical(names[i]) for i in range(len(names))]
        self.labels = tuple(dict.fromkeys(self._own))

    def probabilities(self, wave: np.ndarray) -> np.ndarray:
        p = self.run(wave).logits[0].softmax(-1).double().numpy()
        return np.array([sum(v for v, k in zip(p, self._own) if k == label) for label in self.labels])


class HubEvents(HubJudge, EventColumns):
    """Windows of 0.96 s every 0.24 s; a kind fires in a window at probability 0.2 of its likeliest class."""

    auto = "AutoModelForAudioClassification"
    own_version = "1"

    def __init__(self, model: str) -> None:
        super().__init__(model)
        names = {i: str(n).lower() for i, n in self._model.config.id2label.items()}
        self._classes = {k: [i for i, n in names.items() if any(w in n for w in words)]
                         for k, words in EVENT_WORDS.items()}  # fmt: skip
        if not any(self._classes.values()):
            raise JudgeError(f"judge {self.name!r}: none of the model's classes is a laugh, cry, sigh or scream")

    def analyse(self, wave: np.ndarray) -> Heard:
        size, step = round(WINDOW * RATE), round(STEP * RATE)
        count = 1 + max(0, -(-(len(wave) - size) // step))
        x = np.pad(wave, (0, (count - 1) * step + size - len(wave)))
        windows = [x[i * step : i * step + size] for i in range(count)]
        p = np.concatenate([self.run(*windows[i : i + 8]).logits.sigmoid().numpy() for i in range(0, count, 8)])
        top = {k: p[:, ids].max(1) for k, ids in self._classes.items() if ids}
        fired = sorted((k for k in top if top[k].max() >= FIRES), key=lambda k: -top[k].max())
        return heard_events(fired, {k: _merge(top[k] >= FIRES, len(wave) / RATE) for k in fired})


def _merge(on: np.ndarray, seconds: float) -> list[tuple[float, float]]:
    """Windows that fire -> spans: from the middle third of the first to that of the last."""
    inner = WINDOW / 3
    spans: list[tuple[float, float]] = []
    for i in np.flatnonzero(on):
        start, end = i * STEP + inner, min(i * STEP + 2 * inner, seconds)
        start = 0.0 if i == 0 else min(start, seconds)
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], end)
        elif end > start:
            spans.append((float(start), float(end)))
    return spans


def _words(model: str) -> Judge:
    """Whisper or CTC, as the model's config says."""
    try:
        from transformers import AutoConfig

        sequence = bool(AutoConfig.from_pretrained(model).is_encoder_decoder)
    except (ImportError, OSError, ValueError):
        sequence = True  # whose constructor tells what is wrong
    return HubWhisper(model) if sequence else HubLetters(model)


HUB: dict[str, Any] = {"speaker": HubSpeaker, "phonemes": HubPhonemes, "words": _words, "emotion": HubEmotion,
                       "events": HubEvents}  # fmt: skip
