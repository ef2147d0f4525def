"""Which emotion is heard: agreement of source and converted clip, and recall against labels."""

from __future__ import annotations

from typing import Any

import numpy as np

from vivavoce.core.errors import CheckpointError
from vivavoce.eval.judges.base import Heard, Judge, JudgeError

WORDS = {  # what corpora and models call an emotion -> its name here
    "neutral": "neu neutral calm serenity contentment", "happy": "hap happy happiness joy joyful amusement elation",
    "sad": "sad sadness", "angry": "ang angry anger mad", "fear": "fea fear fearful afraid scared",
    "disgust": "dis disgust disgusted", "surprise": "sur surprise surprised", "pain": "pain",
}  # fmt: skip
CANONICAL = {word: name for name, words in WORDS.items() for word in words.split()}


def canonical(label: str) -> str:
    """`Happiness`, `hap`, `joy` -> `happy`; an unknown label stays what it is, in small letters."""
    word = label.strip().lower().split("/")[-1]
    return CANONICAL.get(word, word)


class EmotionColumns(Judge):
    """What any emotion classifier's probabilities tell."""

    kind = "emotion"
    columns = ("emotion_source", "emotion_converted", "emotion_same", "emotion_shared")
    min_seconds = 0.3
    labels: tuple[str, ...]

    def probabilities(self, wave: np.ndarray) -> np.ndarray:
        """[labels], summing to 1."""
        raise NotImplementedError

    def analyse(self, wave: np.ndarray) -> Heard:
        return {"probability": self.probabilities(wave).astype(np.float32)}

    def labels_of(self, fields: dict[str, str]) -> dict[str, str]:
        """The emotion that was asked for, where the classifier knows it."""
        label = canonical(fields.get("emotion", ""))
        return {"emotion_label": label if label in self.labels else ""}

    def compare(self, source: Heard, converted: Heard, target: Heard | None = None) -> dict[str, float | str]:
        """`emotion_same`: both clips are given the same label. `emotion_shared`: the overlap of the two
        distributions, sum of min(p, q): 1 when equal."""
        p, q = source["probability"], converted["probability"]
        a, b = self.labels[int(p.argmax())], self.labels[int(q.argmax())]
        return {"emotion_source": a, "emotion_converted": b, "emotion_same": float(a == b),
                "emotion_shared": float(np.minimum(p, q).sum())}  # fmt: skip


class EmotionJudge(EmotionColumns):
    """The emotion tagger of this package."""

    def __init__(self) -> None:
        from vivavoce.eval import tagger

        try:
            self._tagger = tagger.shipped_emotion()
        except CheckpointError as e:
            raise JudgeError(f"judge 'emotion' is not available ({e}); install vivavoce again") from None
        self.labels = self._tagger.labels

    @property
    def version(self) -> str:
        return str(self._tagger.card["version"])

    def scores(self) -> list[dict[str, Any]]:
        return [{"what": f"UAR on {domain} of unseen speakers (chance {v['chance']:.2f})", "value": v["uar"],
                 "low": v["low"], "high": v["high"], "n": v["n"]}
                for domain, v in self._tagger.card["scores"]["test"].items()]  # fmt: skip

    def probabilities(self, wave: np.ndarray) -> np.ndarray:
        return np.array(list(self._tagger.tag(wave).scores.values()))
