"""Probe: how well a small classifier reads speaker, emotion, vocal event and teacher label from the units alone.

Content should tell what is said and not who says it; expression and prosody may tell the emotion. The map of both,
per stream, per layer of the trunk and per size, is the design space. The answer for audio itself (mean and deviation
of its log-mel) stands beside them, and so does chance.

    speaker   closed set: speakers with enough clips of speech, clips apart (stratified folds)
    emotion   unseen speakers (grouped folds), clips of sources with three emotions or more
    event     unseen speakers, all clips whose kind of sound is known
    teacher   the teacher's label of each frame, read from that frame alone, unseen speakers

Clips are described by the square roots of their histograms of units (trunk and log-mel: by mean and deviation over
time) and classified by logistic regression; scores are unweighted average recalls of the held-out folds, and for the
teacher the share of frames that are right; intervals are 95 % bootstrap intervals over clips.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vivavoce.core import radix
from vivavoce.core.checkpoint import write_json
from vivavoce.core.errors import ConfigError, CorpusError
from vivavoce.eval.metrics import bootstrap, pooled, uar
from vivavoce.eval.tagger import CLASS_OF
from vivavoce.recipes.corpus import NO_LABEL, Pack
from vivavoce.recipes.probe_plot import draw
from vivavoce.recipes.tokenise import Tokens, TokenSplit
from vivavoce.recipes.train_emotion import EMOTION_OF, domain
from vivavoce.units import UnitEncoder
from vivavoce.units.prosody import PITCH_STEPS

SEMITONE = PITCH_STEPS // 12
BINS = 128  # of one histogram of prosody


@dataclass
class ProbeConfig:
    """`vivavoce train probe` reads this."""

    tokens: list[str]  # token folders, one for each size or model that is compared
    out: str  # folder for probe.json and probe.png
    pack: str | None = None  # with teacher labels and audio: adds the teacher task, and is needed for `units`
    units: str | None = None  # unit encoder whose trunk is probed, layer by layer
    splits: list[str] = field(default_factory=lambda: ["valid", "test"])
    tasks: list[str] = field(default_factory=lambda: ["speaker", "emotion", "event", "teacher"])
    min_clips: int = 8  # of speech, for a speaker to take part
    max_clips: int = 3000
    folds: int = 4
    strength: float = 10.0  # inverse of the classifier's L2 penalty
    teacher_steps: int = 600  # of 512 frames
    threads: int = 1
    seed: int = 0


@dataclass
class Clips:
    """Clips of all splits and their frames' units; every stream is a list of arrays, a clip each."""

    meta: list[dict[str, Any]]
    streams: dict[str, list[np.ndarray]]  # int [frames, slots], values below `sizes`
    sizes: dict[str, list[int]]  # vocabulary of each slot


def read(folder: str, config: ProbeConfig) -> Clips:
    """The tokens of a folder as named streams of integers. Raises CorpusError."""
    tokens = Tokens(folder)
    meta: list[dict[str, Any]] = []
    streams: dict[str, list[np.ndarray]] = {}
    for split in (tokens.split(s) for s in config.splits):
        for i, clip in enumerate(split.clips):
            meta.append(clip)
            a, b = int(split.offsets[i]), int(split.offsets[i + 1])
            for name, x in frame_streams(split, a, b, tokens.head.get("content_levels") or []).items():
                streams.setdefault(name, []).append(x)
    if len(meta) > config.max_clips:
        pick = np.sort(np.random.default_rng(config.seed).choice(len(meta), config.max_clips, replace=False))
        meta, streams = [meta[i] for i in pick], {k: [v[i] for i in pick] for k, v in streams.items()}
    tops = {k: np.stack([x.max(0, initial=0) for x in v]).max(0) for k, v in streams.items()}
    sizes = {k: [int(x) + 1 for x in top] for k, top in tops.items()}
    return Clips(meta, streams, sizes)


def frame_streams(split: TokenSplit, a: int, b: int, levels: list[int]) -> dict[str, np.ndarray]:
    """Integers [frames, slots] of each stream of one clip; units that pack several `levels` have a slot a level."""

    def unpacked(units: np.ndarray) -> np.ndarray:
        wide = units.astype(np.int64)
        return radix.unpack(torch.from_numpy(wide), levels).numpy() if levels else wide[:, None]

    content, expression = unpacked(split.content[a:b]), split.expression[a:b].astype(np.int64)
    pitch, voiced, level = split.prosody[a:b].astype(np.int64).T
    on = voiced > 7
    register = np.median(pitch[on]) if on.any() else 0

    def shape(x: np.ndarray) -> np.ndarray:
        """Its value and its step from the last frame, in BINS bins around the middle."""
        steps = np.diff(x, prepend=x[:1])
        return np.clip(np.stack((x, steps), 1) + BINS // 2, 0, BINS - 1)

    semitones = np.where(on, pitch // SEMITONE - BINS // 2, -BINS // 2)
    melody = np.where(on, (pitch - register) // SEMITONE, -BINS // 2).astype(np.int64)
    rest = np.concatenate((voiced[:, None], shape(level - level.max(initial=0) + BINS // 2)), 1)
    out = {
        "content": content,
        "expression": expression,
        "content + expression": np.concatenate((content, expression), 1),
        "prosody": np.concatenate((shape(semitones), rest), 1),
        "prosody, register removed": np.concatenate((shape(melody), rest), 1),
        "codes": split.codes[a:b].astype(np.int64),
    }
    if split.views:
        out["content, perturbed voice"] = unpacked(split.views[0][0][a:b])
    return out


def histograms(clips: list[np.ndarray], sizes: list[int]) -> Any:
    """Square roots of each slot's relative frequencies, sparse [clips, sum of sizes]."""
    from scipy.sparse import csr_matrix

    starts = np.cumsum([0, *sizes])
    rows, columns, values = [], [], []
    for i, x in enumerate(clips):
        found, counts = np.unique(x + starts[:-1], return_counts=True)
        rows.append(np.full(len(found), i))
        columns.append(found)
        values.append(np.sqrt(counts / max(len(x), 1)))
    cells = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    return csr_matrix(cells, (len(clips), int(starts[-1])))


def trunk(config: ProbeConfig, meta: list[dict[str, Any]]) -> Iterator[tuple[str, list[np.ndarray]]]:
    """(layer, [frames, channels] of each clip), one at a time: the log-mel, the trunk's blocks, its output."""
    assert config.units is not None and config.pack is not None
    model, pack = UnitEncoder.from_pretrained(config.units).eval(), Pack(config.pack)
    ahead = model.config.lookahead
    taps = {"log-mel": model.trunk.inp, **{f"trunk {i + 1}": b for i, b in enumerate(model.trunk.blocks)},
            "trunk, out": model.trunk.norm}  # fmt: skip
    for name, module in taps.items():
        caught: list[torch.Tensor] = []

        def catch(_: Any, inputs: Any, output: Any, first: bool = name == "log-mel") -> None:
            x = inputs[0] if first else output[0] if isinstance(output, tuple) else output
            caught.append(x[0])  # noqa: B023

        hook, out = module.register_forward_hook(catch), []
        with torch.inference_mode():
            for clip in tqdm(meta, desc=name, unit="clip", leave=False):
                wave = torch.from_numpy(pack.waveform(clip["offset"], clip["frames"]))
                mel, _ = model.spectra(torch.nn.functional.pad(wave, (0, ahead * model.config.hop))[None])
                caught.clear()
                model.features(mel)
                late = 0 if name == "log-mel" else ahead
                out.append(caught[0][late : late + clip["frames"]].half().numpy())
        hook.remove()
        yield name, out


def moments(clips: list[np.ndarray]) -> np.ndarray:
    """Mean and deviation over time, standardised over clips, [clips, 2 channels]."""
    x = np.stack([np.concatenate((c.astype(np.float32).mean(0), c.astype(np.float32).std(0))) for c in clips])
    return (x - x.mean(0)) / np.maximum(x.std(0), 1e-6)


def tasks_of(meta: list[dict[str, Any]], config: ProbeConfig) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Task -> (indices of its clips, their labels, their groups; equal groups are never in train and test)."""
    speaker = np.array([str(c.get("speaker")) for c in meta])
    spoken = np.array([c.get("vocalisation", "none") == "none" for c in meta])
    out = {}
    names, counts = np.unique(speaker[spoken], return_counts=True)
    use = np.flatnonzero(spoken & np.isin(speaker, names[counts >= config.min_clips]))
    out["speaker"] = (use, speaker[use], use)
    feel = np.array([EMOTION_OF.get(str(c.get("emotion")), "") for c in meta])
    where = np.array([domain(c) for c in meta])
    rich = [d for d in np.unique(where) if len(set(feel[where == d]) - {""}) >= 3]
    use = np.flatnonzero(np.isin(where, rich) & (feel != ""))
    out["emotion"] = (use, feel[use], speaker[use])
    kind = np.array([CLASS_OF.get(str(c.get("vocalisation", "none")), "") for c in meta])
    use = np.flatnonzero(kind != "")
    out["event"] = (use, kind[use], speaker[use])
    return {k: v for k, v in out.items() if k in config.tasks and len(set(v[1])) > 1}


def classify(x: Any, labels: np.ndarray, groups: np.ndarray, config: ProbeConfig) -> dict[str, Any]:
    """UAR of held-out folds, its interval, n and chance."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold

    _, y = np.unique(labels, return_inverse=True)
    said = np.full(len(y), -1)
    folds = StratifiedGroupKFold(config.folds, shuffle=True, random_state=config.seed)
    for train, test in folds.split(y, y, groups):
        model = LogisticRegression(C=config.strength, class_weight="balanced", max_iter=200, tol=1e-3)
        said[test] = model.fit(x[train], y[train]).predict(x[test])
    return {**pooled(uar, y, said), "chance": 1 / len(set(y)), "classes": len(set(y))}


class FrameProbe(torch.nn.Module):
    """Linear classifier of one frame: of its integers (a weight vector for each value of each slot) or its channels."""

    starts: torch.Tensor

    def __init__(self, sizes: list[int] | int, classes: int) -> None:
        super().__init__()
        self.discrete = not isinstance(sizes, int)
        if isinstance(sizes, int):
            self.read: torch.nn.Module = torch.nn.Linear(sizes, classes)
        else:
            self.read = torch.nn.EmbeddingBag(sum(sizes), classes, mode="sum")
            self.register_buffer("starts", torch.from_numpy(np.cumsum([0, *sizes])[:-1]))
            torch.nn.init.zeros_(self.read.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.read(x + self.starts if self.discrete else x.float())


def frames(clips: list[np.ndarray], labels: list[np.ndarray], speakers: np.ndarray, sizes: list[int] | None,
           config: ProbeConfig) -> dict[str, Any]:  # fmt: skip
    """Share of frames whose teacher label is read right: trained on half of the speakers, tested on the others."""
    names = np.unique(speakers)
    half = set(np.random.default_rng(config.seed).permutation(names)[: len(names) // 2])
    sides: tuple[list[int], list[int]] = ([], [])
    for i, s in enumerate(speakers):
        sides[s not in half].append(i)

    def gather(index: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        known = [labels[i] != NO_LABEL for i in index]
        x = np.concatenate([clips[i][: len(k)][k] for i, k in zip(index, known)])
        y = np.concatenate([labels[i][k] for i, k in zip(index, known)]).astype(np.int64)
        return torch.from_numpy(x), torch.from_numpy(y)

    x, y = gather(sides[0])
    if len(y) == 0:
        raise CorpusError("the pack has no teacher labels; prepare it with teacher=LABELS.npz, or leave out the task")
    classes = int(max(int(v[v != NO_LABEL].max(initial=0)) for v in labels)) + 1
    torch.manual_seed(config.seed)
    probe = FrameProbe(sizes if sizes is not None else x.shape[1], classes)
    if sizes is None:
        middle, spread = x.float().mean(0), x.float().std(0).clamp_min(1e-4)
        x = (x.float() - middle) / spread
    optimiser = torch.optim.Adam(probe.parameters(), 0.05 if sizes is not None else 3e-3)
    for _ in range(config.teacher_steps):
        part = torch.randint(len(y), (512,))
        loss = torch.nn.functional.cross_entropy(probe(x[part]), y[part])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    hits, counts = [], []
    with torch.inference_mode():
        for i in sides[1]:
            xi, yi = gather([i])
            if sizes is None:
                xi = (xi.float() - middle) / spread
            hits.append(float((probe(xi).argmax(1) == yi).float().mean()) if len(yi) else np.nan)
            counts.append(len(yi))
    common = np.bincount(y.numpy()).max() / len(y)
    return {**bootstrap(np.array(hits), np.array(counts)), "chance": float(common), "classes": classes}


def run(config: ProbeConfig) -> dict[str, float]:
    """Probe every stream of every token folder; writes probe.json and probe.png; returns the scores, flat."""
    if not config.tokens:
        raise ConfigError("tokens: name one folder of tokens or more")
    if config.units is not None and config.pack is None:
        raise ConfigError("units: the trunk is probed on audio; name the pack too")
    torch.set_num_threads(config.threads)
    results: dict[str, dict[str, Any]] = {}
    for folder in config.tokens:
        clips = read(folder, config)
        tasks, speakers = tasks_of(clips.meta, config), np.array([str(c.get("speaker")) for c in clips.meta])
        labels = teacher_labels(config, clips.meta)
        here = results.setdefault(Path(folder).name, {})
        for name, x in tqdm(clips.streams.items(), desc=Path(folder).name, unit="stream"):
            table = histograms(x, clips.sizes[name])
            here[name] = {k: classify(table[i], y, g, config) for k, (i, y, g) in tasks.items()}
            if labels is not None:
                here[name]["teacher"] = frames(x, labels, speakers, clips.sizes[name], config)
    if config.units is not None:
        here = results.setdefault("encoder", {})
        for name, x in trunk(config, clips.meta):
            table = moments(x)
            here[name] = {k: classify(table[i], y, g, config) for k, (i, y, g) in tasks.items()}
            if labels is not None:
                here[name]["teacher"] = frames(x, labels, speakers, None, config)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    head = {"clips": len(clips.meta), "splits": config.splits, "seed": config.seed, "tokens": config.tokens}
    write_json(out / "probe.json", {**head, "results": results})
    draw(results, out / "probe.png")
    return {f"{t} {s} {k}": float(v["mean"]) for t, r in results.items() for s, d in r.items() for k, v in d.items()}


def teacher_labels(config: ProbeConfig, meta: list[dict[str, Any]]) -> list[np.ndarray] | None:
    """[frames] of each clip, or None where the task is not asked for or there is no pack."""
    if "teacher" not in config.tasks or config.pack is None:
        return None
    pack = Pack(config.pack)
    return [np.asarray(pack.teacher[c["offset"] : c["offset"] + c["frames"]]) for c in meta]
