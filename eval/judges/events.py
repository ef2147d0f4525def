"""Laughs, cries, sighs and screams: whether they stayed, where, and how late they begin."""

from __future__ import annotations

from typing import Any

import numpy as np

from vivavoce.core.errors import CheckpointError
from vivavoce.eval import metrics
from vivavoce.eval.judges.base import NAN, Heard, Judge, JudgeError

NAMED = ("laugh", "cry", "sigh", "scream")  # kinds with an F1 of their own; sigh includes breaths


class EventColumns(Judge):
    """What any event judge makes of clip labels, surest first (`fired`), and of spans in seconds (`label`, `span`)."""

    kind = "events"
    columns = ("event", "event_converted", "event_kept", "event_f1", "events", "onset_ms", "onsets",
               *(f"{k}_{x}" for k in NAMED for x in ("f1", "events")))  # fmt: skip
    min_seconds = 0.2

    def compare(self, source: Heard, converted: Heard, target: Heard | None = None) -> dict[str, float | str]:
        """`event_kept`: the surest vocal event of the source fires on the converted clip as well (1 or 0; NaN
        where the source fires none). `event_f1`: spans of all vocal events, matched at IoU 0.5."""
        own, got = ([str(k) for k in x["fired"]] for x in (source, converted))
        a, b = spans_of(source), spans_of(converted)
        f1, n = metrics.event_f1(a, b)
        late, onsets = metrics.onset_error(a, b)
        row: dict[str, float | str] = {
            "event": own[0] if own else "", "event_converted": got[0] if got else "",
            "event_kept": float(own[0] in got) if own else NAN, "event_f1": f1, "events": float(n),
            "onset_ms": late, "onsets": float(onsets),
        }  # fmt: skip
        for k in NAMED:
            f1, n = metrics.event_f1({k: a.get(k, [])}, {k: b.get(k, [])})
            row |= {f"{k}_f1": f1, f"{k}_events": float(n)}
        return row


def spans_of(heard: Heard) -> dict[str, list[tuple[float, float]]]:
    """Label -> (start, end) in seconds of every event of an analysis."""
    out: dict[str, list[tuple[float, float]]] = {}
    for label, (start, end) in zip(heard["label"], heard["span"].reshape(-1, 2)):
        out.setdefault(str(label), []).append((float(start), float(end)))
    return out


def heard_events(fired: list[str], spans: dict[str, list[tuple[float, float]]]) -> Heard:
    """The analysis that `EventColumns` compares."""
    flat = [(k, *s) for k, v in spans.items() for s in v]
    return {"fired": np.array(fired, str), "label": np.array([k for k, *_ in flat], str),
            "span": np.array([s for _, *s in flat], np.float64).reshape(-1, 2)}  # fmt: skip


class EventJudge(EventColumns):
    """The vocal event tagger of this package; it hears the clips, labels of a manifest play no part."""

    def __init__(self) -> None:
        from vivavoce.eval import tagger

        try:
            self._tagger = tagger.shipped()
        except CheckpointError as e:
            raise JudgeError(f"judge 'events' is not available ({e}); install vivavoce again") from None

    @property
    def version(self) -> str:
        return str(self._tagger.card["version"])

    def scores(self) -> list[dict[str, Any]]:
        test = self._tagger.card["scores"]["test"]
        return [{"what": f"F1 of {k} in whole clips of unseen speakers (weak labels)", "value": v["f1"],
                 **{x: v[x] for x in ("low", "high", "n") if x in v}}
                for k, v in test.items() if k in self._tagger.thresholds] + super().scores()  # fmt: skip

    def analyse(self, wave: np.ndarray) -> Heard:
        from vivavoce.eval.tagger import EVENTS

        tags = self._tagger.tag(wave)
        return heard_events([k for k in tags.fired if k in EVENTS], {k: tags.spans(k) for k in EVENTS})
