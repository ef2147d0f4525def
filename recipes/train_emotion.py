"""Train the emotion tagger of `eval/`: which of eight emotions a clip sounds like.

Corpora of acted emotional speech are mostly non-commercial, and published weights may not rest on them: by default the
emotions are learnt from wordless bursts whose licence allows it, and from read speech as `neutral`. The card states
the recall on bursts and on acted speech apart. For private use, prepare a pack with `exclude_licences='[]'` and train
with `exclude_licences='[]'`: then all of the corpus counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vivavoce.eval.metrics import pooled, uar
from vivavoce.eval.tagger import EMOTIONS, TaggerConfig
from vivavoce.recipes.train_tagger import Clip, TaggerRecipe, TaggerTask
from vivavoce.recipes.trainer import fit

EMOTION_OF = {k: k for k in EMOTIONS} | {"calm": "neutral"}  # manifest's emotion -> label


@dataclass
class EmotionRecipe(TaggerRecipe):
    """`vivavoce train emotion` reads this."""

    model: TaggerConfig = field(default_factory=lambda: TaggerConfig(exclusive=True, dropout=0.2))
    label_smoothing: float = 0.1
    confidence: float = 0.0  # how sure the kind of sound is says nothing of the emotion
    read_speech: bool = True  # speech of sources with less than three emotions is learnt as neutral
    version: str = "1"


class EmotionTask(TaggerTask):
    """See recipes.trainer.Task."""

    labels = EMOTIONS
    stem = "emotion"
    about = (
        "Emotions that actors and contributors were asked for (manifest field `emotion`), unseen speakers. recall: "
        "share of the clips of an emotion that are named right; uar: their mean over the emotions that occur, low "
        "and high its 95 % bootstrap interval over clips, chance: 1 / emotions that occur. confusion: rows are the "
        "emotions asked for, columns those heard. bursts: wordless clips; speech:SOURCE: spoken clips of a source "
        "with three emotions or more."
    )

    @staticmethod
    def label(clip: Clip) -> str | None:
        return EMOTION_OF.get(str(clip.get("emotion")))

    def permitted(self, split: str) -> list[Clip]:
        clips = super().permitted(split)
        assert isinstance(self.config, EmotionRecipe)
        if self.config.read_speech:
            return clips
        rich = self.rich(clips)
        return [c for c in clips if domain(c) in rich]

    def rich(self, clips: list[Clip]) -> list[str]:
        """Domains with three emotions or more."""
        found: dict[str, set[str | None]] = {}
        for c in clips:
            found.setdefault(domain(c), set()).add(self.label(c))
        return sorted(d for d, labels in found.items() if len(labels - {None}) >= 3)

    def join(self, label: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Calm talk before or after leaves the emotion what it is."""
        half = self.config.crop_frames // 2
        (x, target), (calm, _) = self.crop(label, half, rng), self.crop(self.labels.index("neutral"), half, rng)
        return np.concatenate((x, calm) if rng.random() < 0.5 else (calm, x)), target

    def validate(self) -> dict[str, float]:
        labels, scores = self.judge("valid", self.config.valid_clips)
        return {"uar": uar(labels, scores.argmax(1))}

    def scores(self) -> dict[str, Any]:
        """Nothing is tuned: classes are drawn evenly in training, so the most probable one is the answer."""
        return {split: self.domains(split) for split in ("valid", "test") if self.pack.split(split)}

    def domains(self, split: str) -> dict[str, Any]:
        out = {}
        for name in self.rich(self.pack.split(split)):
            labels, scores = self.judge(split, keep=lambda c, name=name: domain(c) == name)  # type: ignore[misc]
            out[name] = emotion_report(labels, scores.argmax(1))
        return out


def domain(clip: Clip) -> str:
    """`bursts`, or `speech:SOURCE`."""
    wordless = clip.get("vocalisation", "none") != "none"
    return "bursts" if wordless else f"speech:{clip.get('source', 'unknown')}"


def emotion_report(labels: np.ndarray, said: np.ndarray) -> dict[str, Any]:
    """UAR with interval, chance, n, recall of each emotion that occurs and the confusion matrix."""
    s = pooled(uar, labels, said)
    confusion = np.zeros((len(EMOTIONS), len(EMOTIONS)), int)
    np.add.at(confusion, (labels, said), 1)
    known = [k for k in range(len(EMOTIONS)) if confusion[k].any()]
    return {
        "uar": round(s["mean"], 4), "low": round(s["low"], 4), "high": round(s["high"], 4), "n": len(labels),
        "chance": round(1 / len(known), 4),
        "recall": {EMOTIONS[k]: round(float(confusion[k, k] / confusion[k].sum()), 4) for k in known},
        "clips": {EMOTIONS[k]: int(confusion[k].sum()) for k in known},
        "confusion": confusion.tolist(),
    }  # fmt: skip


def run(config: EmotionRecipe) -> dict[str, float]:
    """Train, validate, export."""
    return fit(EmotionTask(config), config.train)
