"""Fit units to a layer of a HuBERT-like model: a weighted sample of a corpus, a projection, k-means -> a unit folder.

    checkpoint, layer -> features of every clip -> reservoir of `frames` frames (laughs and cries can be favoured)
                      -> LDA against phonemes where spans are given -> MiniBatchKMeans -> centroids

    OUT/config.json, model.safetensors    what `units=OUT` of `vivavoce tokenize` takes
    OUT/fit.json                          what was measured on clips outside the train split
    OUT/kmeans.json, reservoir.safetensors    settings, and how far the sampling has come

Whatever the teacher, project before clustering when phoneme spans can be had: for the last layer of Whisper-base,
k-means alone gave phone-normalised mutual information of 0.30 (k = 1000), after LDA 0.72 (k = 500). Both numbers of
a fit are published in fit.json: `phone_nmi` and `phone_nmi_unprojected`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vivavoce.changer import model_folder
from vivavoce.core.checkpoint import load_tensors, read_json, save_tensors, write_json
from vivavoce.core.config import to_dict
from vivavoce.core.errors import ConfigError, CorpusError
from vivavoce.recipes import label
from vivavoce.recipes.corpus import HOP, RATE, Pack, licence_parts, read_clip, scan
from vivavoce.units import UnitEncoder
from vivavoce.units.hubert import Checkpoint, HubertConfig, HubertUnits, SpeechEncoder, collapse

SAVE_SECONDS = 120.0


@dataclass
class KmeansConfig:
    """`vivavoce train kmeans` reads this."""

    corpus: str  # a corpus or a pack
    out: str
    checkpoint: str  # folder or hub id of a HuBERT, ContentVec, wav2vec 2.0 / XLS-R or WavLM
    layer: int
    units: int = 500
    final_proj: bool = False  # cluster behind the checkpoint's own final projection
    backend: str = "transformers"  # or fairseq2
    phonemes: str | None = None  # JSONL (.gz) of {"id", "phonemes", "spans"}; spans in seconds
    spans_earlier: int = 0  # frames by which the spans lie late
    projection: str = "auto"  # lda, pca (whitened), none; auto: lda with phonemes, none without
    dims: int = 40  # of the projection, at most
    frames: int = 200_000  # in the reservoir
    boost: dict = field(default_factory=dict)  # weight of a clip's frames by vocalisation, emotion or source
    exclude_licences: list[str] = field(default_factory=lambda: ["NC", "ND", "GFDL"])  # from fitting
    judge_clips: int = 200  # outside the train split, to measure on
    native: str | None = None  # native unit encoder for pitch (and expression); default: the embedded one
    expression: bool = False  # keep the native encoder's expression units beside the content
    window: int = 0  # of streams; these three go into the unit folder, see HubertConfig
    stride: int = 1
    lookahead: int = 2
    device: str = "cpu"
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.projection not in ("auto", "lda", "pca", "none"):
            raise ConfigError(f"projection {self.projection!r}: use auto, lda, pca or none")
        if self.projection == "lda" and not self.phonemes:
            raise ConfigError("projection lda needs phonemes=")
        if not 2 <= self.units <= 65535:
            raise ConfigError(f"units {self.units}: give 2 to 65535")


class Reservoir:
    """A weighted sample without replacement of at most `size` frames: those with the largest keys log(u) / weight
    (Efraimidis & Spirakis 2006). What it holds does not depend on the order in which frames come."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.parts: dict[str, list[Tensor]] = {"features": [], "phones": [], "keys": []}

    def add(self, features: Tensor, phones: np.ndarray, keys: np.ndarray) -> None:
        """Frames [n, dim], their phonemes and keys [n]."""
        for name, x in (("features", features.half().cpu()), ("phones", torch.from_numpy(phones)),
                        ("keys", torch.from_numpy(keys))):  # fmt: skip
            self.parts[name].append(x)
        if sum(map(len, self.parts["keys"])) > 2 * self.size:
            self.pruned()

    def pruned(self) -> dict[str, Tensor]:
        """The sample so far."""
        joined = {k: torch.cat(v) if v else torch.zeros(0) for k, v in self.parts.items()}
        best = joined["keys"].topk(min(self.size, len(joined["keys"]))).indices.sort().values
        joined = {k: v[best] for k, v in joined.items()}
        self.parts = {k: [v] for k, v in joined.items()}
        return joined


def clips_of(corpus: str) -> tuple[list[dict[str, Any]], Pack | None]:
    """The clips of a corpus folder or of a pack, and the pack if it is one."""
    if (Path(corpus) / "pack.json").is_file():
        pack = Pack(corpus)
        return pack.clips, pack
    return scan(corpus), None


def wave_of(corpus: str, pack: Pack | None, clip: dict[str, Any]) -> Tensor:
    """A clip padded to whole frames, [1, T * hop]. Raises CorpusError."""
    if pack is not None:
        return torch.from_numpy(pack.waveform(clip["offset"], clip["frames"]))[None]
    x = read_clip(corpus, clip)
    return torch.from_numpy(np.pad(x, (0, -len(x) % HOP)))[None]


def run(config: KmeansConfig) -> dict[str, float]:
    """Sample, fit, measure, write. A finished folder is left as it is; a stopped run goes on.

    Raises:
        ConfigError, CheckpointError: see the config and `SpeechEncoder`; `out` holds a run of other settings.
        CorpusError: nothing to fit on.
    """
    out = Path(config.out)
    if config.threads:
        torch.set_num_threads(config.threads)
    spans = label.read_phonemes(config.phonemes) if config.phonemes else {}
    native = UnitEncoder.from_pretrained(config.native or model_folder() / "units")
    checkpoint = Checkpoint.open(config.checkpoint, RATE, HOP)
    encoder = SpeechEncoder(checkpoint, config.layer, config.final_proj, config.backend).to(config.device)
    settings = {**to_dict(config), "checkpoint_sha256": checkpoint.sha256}
    out.mkdir(parents=True, exist_ok=True)
    _check_same(out, settings)
    if (out / "fit.json").is_file():
        return read_json(out / "fit.json")
    clips, pack = clips_of(config.corpus)
    sample = _sample(config, encoder, clips, pack, spans)
    units = HubertUnits(HubertConfig(
        str(Path(config.checkpoint).resolve()) if Path(config.checkpoint).is_dir() else config.checkpoint,
        checkpoint.sha256, config.layer, encoder.dim, encoder.dim, config.units, config.final_proj, config.backend,
        window=config.window, stride=config.stride, lookahead=config.lookahead, expression=config.expression,
        native=native.config,
    ))  # fmt: skip
    units.native.load_state_dict(native.state_dict())
    x, phones = sample["features"].float().numpy(), sample["phones"].numpy()
    plain = config.projection == "none" or (config.projection == "auto" and not config.phonemes)
    fitted = units.centroids, units.config.dims = _fit(config, x, phones, project=not plain)
    rivals = {"": fitted[0]}
    if spans and not plain:
        rivals["_unprojected"] = _fit(config, x, phones, project=False)[0]
    measured = _measure(config, encoder, rivals, clips, pack, spans)
    units.save_pretrained(out)
    write_json(out / "fit.json", measured)
    (out / "reservoir.safetensors").unlink(missing_ok=True)
    return measured


def _check_same(out: Path, settings: dict[str, Any]) -> None:
    path = out / "kmeans.json"
    free = ("device", "threads", "out")
    found = read_json(path) if path.is_file() else settings
    differ = [k for k in settings if k not in free and found.get(k) != settings[k]]
    if differ:
        raise ConfigError(f"{out}: holds a fit with other settings ({', '.join(differ)}); choose another out= "
                          "or remove it")
    write_json(path, settings)


def _sample(config: KmeansConfig, encoder: SpeechEncoder, clips: list[dict[str, Any]], pack: Pack | None,
            spans: dict[str, Any]) -> dict[str, Tensor]:  # fmt: skip
    """Features, phonemes and keys of a weighted sample of the train split's frames."""
    banned = {x.upper() for x in config.exclude_licences}
    train = [c for c in clips if c.get("split", "train") == "train" and not licence_parts(c.get("licence")) & banned]
    if not train:
        raise CorpusError(f"{config.corpus}: no clip to fit on in the train split (exclude_licences="
                          f"{config.exclude_licences})")
    path, reservoir, begun = Path(config.out) / "reservoir.safetensors", Reservoir(config.frames), 0
    if path.is_file():
        parts, meta = load_tensors(path)
        reservoir.parts, begun = {k: [parts[k]] for k in reservoir.parts}, int(meta["clips"])
    saved = time.monotonic()
    with tqdm(total=len(train), initial=begun, desc="kmeans: sample", unit="clip") as bar:
        for i in range(begun, len(train)):
            clip = train[i]
            bar.update()
            try:
                features = encoder(wave_of(config.corpus, pack, clip).to(config.device))[0]
            except CorpusError as e:
                tqdm.write(f"skipped: {e}")
                continue
            weight = 1.0
            for key in ("vocalisation", "emotion", "source"):
                weight *= config.boost.get(str(clip.get(key)), 1.0)
            draw = np.random.Generator(np.random.Philox(key=config.seed, counter=[0, 0, 0, i]))
            keys = np.log(draw.random(len(features))) / weight
            phones = label.phones_of(spans.get(clip["id"], []), len(features), config.spans_earlier)
            reservoir.add(features, phones, keys)
            if time.monotonic() - saved > SAVE_SECONDS:
                save_tensors(path, reservoir.pruned(), {"clips": str(i + 1)})
                saved = time.monotonic()
    sample = reservoir.pruned()
    if len(sample["keys"]) < config.units:
        raise CorpusError(f"{config.corpus}: {len(sample['keys'])} frames to fit {config.units} units; lower units=")
    save_tensors(path, sample, {"clips": str(len(train))})
    return sample


def _fit(config: KmeansConfig, x: np.ndarray, phones: np.ndarray, project: bool) -> tuple[Any, int]:
    """Features [N, dim] and phonemes [N] -> Centroids, and the dimensions they lie in."""
    from sklearn.cluster import MiniBatchKMeans

    from vivavoce.units.hubert import Centroids

    mean, matrix = np.zeros(x.shape[1], np.float32), np.eye(x.shape[1], dtype=np.float32)
    if project:
        mean, matrix = (a.astype(np.float32) for a in _projection(config, x, phones))
    y = (x - mean) @ matrix
    kmeans = MiniBatchKMeans(config.units, batch_size=4096, n_init=3, random_state=config.seed).fit(y)
    out = Centroids(x.shape[1], y.shape[1], config.units)
    for buffer, value in ((out.mean, mean), (out.projection, matrix), (out.vectors, kmeans.cluster_centers_)):
        buffer.copy_(torch.from_numpy(np.asarray(value, np.float32)))
    return out, y.shape[1]


def _projection(config: KmeansConfig, x: np.ndarray, phones: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [dim] and matrix [dim, dims] of the projection that the config asks for."""
    if config.projection == "pca":
        pca = label.whitening(config.dims, config.seed, x)
        return pca.mean_, pca.components_.T / np.sqrt(pca.explained_variance_)
    lda = label.discriminant(str(config.phonemes), config.dims, x, phones)
    return lda.xbar_, lda.scalings_[:, : lda._max_components]


def _measure(config: KmeansConfig, encoder: SpeechEncoder, rivals: dict[str, Any], clips: list[dict[str, Any]],
             pack: Pack | None, spans: dict[str, Any]) -> dict[str, float]:  # fmt: skip
    """What the units are like on clips outside the train split (on all where there are none)."""
    unseen = [c for c in clips if c.get("split", "train") != "train"] or clips
    if spans:
        unseen = [c for c in unseen if c["id"] in spans] or unseen
    unseen = unseen[:: max(1, len(unseen) // config.judge_clips)][: config.judge_clips]
    units: dict[str, list[np.ndarray]] = {name: [] for name in rivals}
    phones, runs, frames = [], 0, 0
    for clip, features in _features(config, encoder, unseen, pack):
        for name, centroids in rivals.items():
            units[name].append(centroids.to(features.device)(features).cpu().numpy())
        runs, frames = runs + len(collapse(torch.from_numpy(units[""][-1]))[0]), frames + len(features)
        phones.append(label.phones_of(spans.get(clip["id"], []), len(features), config.spans_earlier))
    if not frames:
        raise CorpusError(f"{config.corpus}: no clip to measure on could be read")
    share = np.bincount(np.concatenate(units[""]), minlength=config.units) / frames
    out = {
        "judged_clips": float(len(phones)),
        "frames": float(frames),
        "units_used": float((share > 0).mean()),
        "perplexity": float(np.exp(-(share[share > 0] * np.log(share[share > 0])).sum())),
        "frames_a_run": frames / runs,
    }
    known = (told := np.concatenate(phones)) != label.UNKNOWN
    if known.any():
        for name in rivals:
            out[f"phone_nmi{name}"] = label.phone_information(np.concatenate(units[name])[known], told[known])
    return out


def _features(config: KmeansConfig, encoder: SpeechEncoder, clips: list[dict[str, Any]],
              pack: Pack | None) -> Iterator[tuple[dict[str, Any], Tensor]]:  # fmt: skip
    for clip in tqdm(clips, desc="kmeans: measure", unit="clip"):
        try:
            yield clip, encoder(wave_of(config.corpus, pack, clip).to(config.device))[0]
        except CorpusError as e:
            tqdm.write(f"skipped: {e}")
