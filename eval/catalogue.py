"""What every number of a report means: one entry a metric, used to compute the summary and to explain it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from vivavoce.eval.metrics import NAN, uar

Better = Literal["higher", "lower", "zero", "none"]
Rows = Literal["all", "target", "words", "voiced", "pauses", "events", "labelled", "silence"]


@dataclass(frozen=True)
class Metric:
    """One number of a report.

    Attributes:
        key: its column in `clips.csv` (unless it is pooled) and its name in `summary.json`.
        title: how a page calls it.
        unit: of the number ("" for a share, a correlation or another bare number).
        better: which way is good; `zero`: the nearer to 0, `none`: neither.
        judge: the kind of judge that makes it (`pair`: no judge, the files themselves).
        how: one sentence on how it is made.
        weight: the column that weights a clip in the mean (so that the mean is the pooled rate), or None.
        rows: the clips that it is of: all; those with a `target` recording; with `words` in them; `voiced` in source
            and converted; with `pauses`; with vocal `events`; with a `labelled` emotion; with `silence` in the source.
        pool: for what is no mean over clips: a function of whole columns; `columns` are those that it takes.
    """

    key: str
    title: str
    unit: str
    better: Better
    judge: str
    how: str
    weight: str | None = None
    rows: Rows = "all"
    pool: Callable[..., float] | None = field(default=None, compare=False)
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.columns:
            object.__setattr__(self, "columns", (self.key, *([self.weight] if self.weight else [])))

    def card(self) -> dict[str, Any]:
        """JSON data for a summary."""
        return {"title": self.title, "unit": self.unit, "better": self.better, "judge": self.judge, "how": self.how,
                "rows": self.rows}  # fmt: skip


def _uar_kept(label: np.ndarray, source: np.ndarray, converted: np.ndarray) -> float:
    own = uar(label, source)
    return uar(label, converted) / own if own > 0 else NAN


def _event(kind: str, title: str) -> Metric:
    return Metric(f"{kind}_f1", f"{title} F1", "", "higher", "events",
                  f"F1 of {title} events at an IoU of 0.5 or more in time, source against converted.",
                  weight=f"{kind}_events", rows="events")  # fmt: skip


CATALOGUE: tuple[Metric, ...] = (
    Metric("emotion_same", "emotion agreement", "", "higher", "emotion",
           "Share of clips to which the emotion classifier gives the same label in source and converted clip."),
    Metric("emotion_shared", "emotion overlap", "", "higher", "emotion",
           "Overlap of the classifier's distributions in source and converted clip: the sum of min(p, q)."),
    Metric("emotion_uar_kept", "emotion UAR kept", "", "higher", "emotion",
           "UAR of the classifier on converted clips over its UAR on the sources, against the emotion asked for.",
           rows="labelled", pool=_uar_kept, columns=("emotion_label", "emotion_source", "emotion_converted")),
    Metric("emotion_uar", "emotion UAR, converted", "", "higher", "emotion",
           "Mean recall over emotions of the classifier on converted clips, against the emotion asked for.",
           rows="labelled", pool=uar, columns=("emotion_label", "emotion_converted")),
    Metric("emotion_uar_source", "emotion UAR, source", "", "none", "emotion",
           "The same on the sources: what the classifier can do at all.",
           rows="labelled", pool=uar, columns=("emotion_label", "emotion_source")),
    Metric("event_f1", "vocal event F1", "", "higher", "events",
           "F1 of vocal events, same kind and IoU of 0.5 or more in time, source against converted.",
           weight="events", rows="events"),
    _event("laugh", "laugh"),
    _event("cry", "cry and sob"),
    _event("sigh", "sigh and breath"),
    _event("scream", "scream"),
    Metric("event_kept", "vocal event kept", "", "higher", "events",
           "Share of clips whose surest vocal event is heard in the converted clip as well.", rows="events"),
    Metric("onset_ms", "event onset error", "ms", "lower", "events",
           "Mean absolute difference of the beginnings of matched events.", weight="onsets", rows="events"),
    Metric("f0_corr", "F0 correlation", "", "higher", "pitch",
           "Pearson's r of log F0 over frames voiced in both; moving the whole melody up or down costs nothing.",
           rows="voiced"),
    Metric("f0_range", "F0 range change", "log2", "zero", "pitch",
           "log2 of the converted clip's F0 range (5th to 95th percentile, in octaves) over the source's.",
           rows="voiced"),
    Metric("f0_shift", "register shift", "semitones", "none", "pitch",
           "Median difference of F0, converted minus source, over frames voiced in both.", rows="voiced"),
    Metric("voicing_f1", "voicing F1", "", "higher", "pitch",
           "F1 of the converted clip's voiced frames against the source's."),
    Metric("energy_corr", "energy correlation", "", "higher", "signal",
           "Pearson's r of frame levels in dB, over frames within 50 dB of the source's loudest."),
    Metric("level_shift", "level shift", "dB", "zero", "signal",
           "Mean power of the converted clip minus the source's."),
    Metric("pause_f1", "pause F1", "", "higher", "signal",
           "F1 of frames in pauses: 200 ms or more, 30 dB below the clip's loudest frame, between sounds.",
           weight="pause_frames", rows="pauses"),
    Metric("rate_change", "rate change", "log2", "zero", "signal",
           "log2 of syllable-like peaks of the level a second, converted over source."),
    Metric("per", "phonemes wrong", "", "lower", "phonemes",
           "Edit distance of the phonemes heard in source and converted clip, a phoneme of the source.",
           weight="phonemes", rows="words"),
    Metric("wer", "words wrong", "", "lower", "words",
           "Edit distance of the words heard in source and converted clip, a word of the source.",
           weight="words", rows="words"),
    Metric("sim_target", "similarity to target", "", "higher", "speaker",
           "Cosine of the speaker embeddings of the converted clip and a recording of the target.", rows="target"),
    Metric("sim_source", "similarity to source", "", "lower", "speaker",
           "Cosine of the speaker embeddings of the converted clip and its source."),
    Metric("margin", "target minus source", "", "higher", "speaker",
           "Similarity to the target minus similarity to the source: doing nothing loses.", rows="target"),
    Metric("dnsmos", "DNSMOS overall", "MOS", "higher", "quality",
           "Predicted opinion (1 to 5) of the converted clip."),
    Metric("dnsmos_change", "DNSMOS change", "MOS", "higher", "quality",
           "Predicted opinion of the converted clip minus the source's."),
    Metric("silence_rise", "noise in silence", "dB", "lower", "signal",
           "How much louder the converted clip is where the source is silent, each against its own loudest frame.",
           rows="silence"),
    Metric("silence_voiced", "voice in silence", "", "lower", "pitch",
           "Share of the source's silent frames in which the converted clip is voiced.",
           weight="silence_frames", rows="silence"),
    Metric("clicks", "clicks", "1/s", "lower", "signal",
           "Milliseconds a second that bend 16 times more sharply than their surroundings, where the source does not."),
    Metric("seam_db", "seams of chunks", "dB", "lower", "signal",
           "How much rougher the roughest phase of the chunk period is than the median phase, above the source's."),
    Metric("level_jumps", "level jumps", "1/s", "lower", "signal",
           "Steps of level a second that are 15 dB larger, frame to frame, than the source's nearby."),
    Metric("length_equal", "length kept", "", "higher", "pair",
           "Share of clips whose length is that of the source, to the sample."),
    Metric("length_off", "length change", "s", "zero", "pair", "Length of the converted clip minus the source's."),
    Metric("peak", "peak", "full scale", "none", "pair", "Largest absolute sample of the converted clip."),
)  # fmt: skip
METRICS: Mapping[str, Metric] = {m.key: m for m in CATALOGUE}


def cards(keys: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Key -> card of each metric, in the catalogue's order."""
    wanted = set(keys)
    return {m.key: m.card() for m in CATALOGUE if m.key in wanted}
