"""Teacher labels: what the content units are to learn from, one unit for each 20 ms frame of a corpus.

    teacher features -> projection (LDA against phonemes where spans are given, else PCA) -> k-means

    python -c "from vivavoce.recipes.label import *; run(LabelConfig('CORPUS', 'labels.npz', 'WHISPER'))"

A recogniser's own features cluster phones badly (mutual information 0.30 of the phones' entropy for the last
layer of Whisper-base at k = 1000); after LDA they cluster well (0.72 at k = 500, unseen speakers).
Output: .npz with clip_ids, offsets, lengths and units_{k}, which `prepare` reads.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vivavoce.core.checkpoint import atomic_path
from vivavoce.core.errors import ConfigError, CorpusError
from vivavoce.recipes.corpus import HOP, RATE, licence_parts, read_clip, scan

Teacher = Callable[[np.ndarray], np.ndarray]  # samples [n] at 16 kHz -> features [ceil(n / 320), dim]
GAP = 40  # frames (0.8 s) of silence between the clips that share a window
UNKNOWN = -1  # phoneme of a frame outside all spans


@dataclass
class LabelConfig:
    """Which teacher labels which corpus, and how."""

    corpus: str
    out: str  # .npz
    teacher: str  # folder of a Whisper model in CTranslate2 format
    phonemes: str | None = None  # JSONL (.gz) of {"id", "phonemes", "spans"}; spans in seconds
    spans_earlier: int = 0  # frames by which the spans lie late against the teacher
    units: int = 500
    dims: int = 40  # of the projection, at most
    fit_frames: int = 400_000  # drawn from the train split to fit projection and k-means
    exclude_licences: list[str] = field(default_factory=lambda: ["NC", "ND", "GFDL"])  # from fitting
    window_seconds: float = 30.0  # what the teacher sees at once; short clips share a window
    device: str = "cpu"
    threads: int = 1
    seed: int = 0


class WhisperEncoder:
    """Final encoder layer of a Whisper model through CTranslate2, 30 s at a time. Raises ConfigError."""

    def __init__(self, folder: str, device: str = "cpu", threads: int = 1) -> None:
        try:
            from faster_whisper import WhisperModel
        except ImportError:
            raise ConfigError("the Whisper teacher needs CTranslate2: pip install faster-whisper") from None
        if not (Path(folder) / "model.bin").is_file():
            raise ConfigError(f"{folder}: no Whisper model in CTranslate2 format here (model.bin is missing)")
        self.model = WhisperModel(folder, device=device, cpu_threads=threads, compute_type="float32")

    def __call__(self, wave: np.ndarray) -> np.ndarray:
        """Samples [n <= 30 s] -> [ceil(n / 320), dim]."""
        padded = np.pad(wave, (0, 30 * RATE - len(wave))).astype(np.float32)
        output = self.model.encode(self.model.feature_extractor(padded, padding=0)[:, :3000])
        if output.device == "cuda":
            import ctranslate2

            output = output.to_device(ctranslate2.Device.cpu)
        return np.asarray(output)[0, : -(-len(wave) // HOP)]


def run(config: LabelConfig, teacher: Teacher | None = None) -> dict[str, float]:
    """Label every readable clip; `teacher` replaces the Whisper encoder where given.

    Returns clips and frames labelled and, with phonemes, `phone_nmi` (see phone_information) on what lies
    outside the train split, or on everything where nothing does. Raises CorpusError, ConfigError.
    """
    if find_spec("sklearn") is None:  # said before the teacher's hours, not after
        raise ConfigError("labels need scikit-learn: pip install scikit-learn")
    spans = read_phonemes(config.phonemes) if config.phonemes else {}
    teacher = teacher or WhisperEncoder(config.teacher, config.device, config.threads)
    banned, rng = {x.upper() for x in config.exclude_licences}, np.random.default_rng(config.seed)
    out = Path(config.out)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".features-") as folder:
        path, lengths, kept = Path(folder) / "features.f16", [], []
        with open(path, "wb") as f:
            for clip, features in _features(config, scan(config.corpus), teacher):
                f.write(features.astype(np.float16).tobytes())
                kept.append(clip)
                lengths.append(len(features))
        if not kept:
            raise CorpusError(f"{config.corpus}: no clip could be read")
        x = np.memmap(path, np.float16, "r").reshape(sum(lengths), -1)
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        phones = np.concatenate([phones_of(spans.get(c["id"], []), n, config.spans_earlier)
                                 for c, n in zip(kept, lengths)])  # fmt: skip
        train = [c.get("split", "train") == "train" for c in kept]
        used = [t and not licence_parts(c.get("licence")) & banned for t, c in zip(train, kept)]
        rows = np.sort(rng.permutation(np.flatnonzero(np.repeat(used, lengths)))[: config.fit_frames])
        projection, kmeans = fit(config, x[rows].astype(np.float32), phones[rows])
        labels = np.empty(len(x), np.uint16)
        for i in range(0, len(x), 65536):
            block = projection.transform(x[i : i + 65536].astype(np.float32))
            labels[i : i + 65536] = kmeans.predict(block.astype(np.float32))
    arrays: dict[str, Any] = {"clip_ids": np.array([c["id"] for c in kept]), "offsets": offsets[:-1],
                              "lengths": np.array(lengths, np.int32), f"units_{config.units}": labels}
    with atomic_path(out) as temp, open(temp, "wb") as f:
        np.savez_compressed(f, **arrays)
    result = {"clips": float(len(kept)), "frames": float(len(labels))}
    unseen = (phones != UNKNOWN) & ~np.repeat(train, lengths)
    judged = unseen if unseen.any() else phones != UNKNOWN  # some are known, or fit() had refused
    return {**result, "phone_nmi": phone_information(labels[judged], phones[judged])} if spans else result


def fit(config: LabelConfig, x: np.ndarray, phones: np.ndarray) -> tuple[Any, Any]:
    """Features [N, dim] and their phonemes [N] -> projection and k-means of scikit-learn."""
    from sklearn.cluster import MiniBatchKMeans

    if len(x) < config.units:
        raise CorpusError(f"{config.corpus}: {len(x)} frames to fit {config.units} units; lower units=")
    projection = (discriminant(config.phonemes, config.dims, x, phones) if config.phonemes
                  else whitening(config.dims, config.seed, x))  # fmt: skip
    kmeans = MiniBatchKMeans(config.units, batch_size=4096, n_init=3, random_state=config.seed)
    return projection, kmeans.fit(projection.transform(x).astype(np.float32))


def discriminant(name: str, dims: int, x: np.ndarray, phones: np.ndarray) -> Any:
    """scikit-learn's LDA of features [N, dim] against phonemes [N], to at most `dims` dimensions.

    Raises:
        CorpusError: the phoneme file `name` says too little of these frames.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    known = phones != UNKNOWN
    if (n := len(np.unique(phones[known]))) < 2:
        raise CorpusError(f"{name}: its spans name fewer than two phonemes in the training clips")
    return LinearDiscriminantAnalysis(n_components=min(dims, x.shape[1], n - 1)).fit(x[known], phones[known])


def whitening(dims: int, seed: int, x: np.ndarray) -> Any:
    """scikit-learn's PCA of features [N, dim] to at most `dims` dimensions of unit variance."""
    from sklearn.decomposition import PCA

    return PCA(min(dims, x.shape[1]), whiten=True, random_state=seed).fit(x)


def _features(config: LabelConfig, clips: list[dict], teacher: Teacher) -> Iterator[tuple[dict, np.ndarray]]:
    """Clips with their teacher features [T, dim]; short clips share a window, long ones take several."""
    room, used = int(config.window_seconds * RATE / HOP), 0
    size = room * HOP
    window: list[tuple[dict, np.ndarray]] = []

    def flush() -> Iterator[tuple[dict, np.ndarray]]:
        y, at = teacher(np.concatenate([np.pad(w, (0, GAP * HOP)) for _, w in window])[:size]), 0
        for clip, wave in window:
            yield clip, y[at : at + len(wave) // HOP]
            at += len(wave) // HOP + GAP

    for clip in tqdm(clips, desc="label", unit="clip"):
        try:
            wave = read_clip(config.corpus, clip)
        except CorpusError as e:
            tqdm.write(f"skipped: {e}")
            continue
        frames = -(-len(wave) // HOP)
        wave = np.pad(wave, (0, frames * HOP - len(wave)))
        if window and used + frames > room:
            yield from flush()
            window, used = [], 0
        if frames > room:
            yield clip, np.concatenate([teacher(part) for part in np.split(wave, range(size, len(wave), size))])
            continue
        window.append((clip, wave))
        used += frames + GAP
    if window:
        yield from flush()


def read_phonemes(path: str) -> dict[str, list[tuple[int, float, float]]]:
    """Clip id -> phoneme index, start and end in seconds of each span. Raises CorpusError."""
    index: dict[str, int] = {}
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as f:
            rows = [json.loads(line) for line in f if line.strip()]
        return {r["id"]: [(index.setdefault(p, len(index)), float(a), float(b))
                          for p, (a, b) in zip(r["phonemes"], r["spans"])] for r in rows}  # fmt: skip
    except (OSError, EOFError, ValueError, KeyError, TypeError) as e:
        raise CorpusError(f"{path}: not a phoneme file ({e!r}); a line is {{id, phonemes, spans}}") from None


def phones_of(spans: list[tuple[int, float, float]], frames: int, earlier: int = 0) -> np.ndarray:
    """Phoneme index of each frame, UNKNOWN between spans; `earlier`: frames by which the spans lie late."""
    out = np.full(frames, UNKNOWN)
    for phone, *ends in spans:
        a, b = (max(0, round(t * RATE / HOP) - earlier) for t in ends)
        out[a:b] = phone
    return out


def phone_information(units: np.ndarray, phones: np.ndarray) -> float:
    """Mutual information of units and phones over the phones' entropy: 1 when the unit names the phone."""
    joint = np.zeros((int(units.max()) + 1, int(phones.max()) + 1))
    np.add.at(joint, (units, phones), 1.0)
    joint /= joint.sum()
    apart, q = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True), joint.sum(0)
    mutual = (joint[joint > 0] * np.log(joint[joint > 0] / apart[joint > 0])).sum()
    entropy = -(q[q > 0] * np.log(q[q > 0])).sum()
    return float(mutual / entropy) if entropy > 0 else 0.0
