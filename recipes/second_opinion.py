"""A second opinion on weak labels: what a linear probe of a Whisper's middle layers makes of each clip.

Whisper (Radford et al. 2022) hears more than words: a probe of its layers names audio events well, and in noise
(Whisper-AT, Gong et al. 2023). Part of what a tagger is taught of a clip may come from there (distillation, Hinton et
al. 2015): a label that was put on a clip in error is then contradicted, and a clip that is a bit of both may be both.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from vivavoce.core.checkpoint import load_tensors, save_tensors
from vivavoce.core.errors import CorpusError
from vivavoce.recipes.corpus import HOP, Pack
from vivavoce.recipes.whisper import Whisper

LONGEST = 500  # frames (10 s) of a clip that are heard
REST = 25  # frames (0.5 s) of silence after it
STRENGTH = 3e-3  # of the probe: scikit-learn's C, on standardised features
FOLDS = 5
SAVE = 1000  # clips heard, after which they are kept


def opinions(pack: Pack, clips: list[dict[str, Any]], labels: np.ndarray, folder: str, cache: Path) -> np.ndarray:
    """The probe's probability of each label for each clip, as if all labels were equally frequent.

    A clip is judged by a probe that was fitted without its speaker. What was heard is kept in `cache`, so a run that
    was stopped goes on.

    Args:
        clips: [N] of the pack's manifest.
        labels: [N] their labels, from 0 on, each at least once.
        folder: a Whisper (recipes.whisper).

    Returns:
        [N, labels], rows add up to 1.

    Raises:
        CheckpointError: no Whisper there.
        CorpusError: fewer than two speakers, or all others than one have one label.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    layers = features(pack, clips, folder, cache)
    who = np.array([str(c.get("speaker", c["id"])) for c in clips])
    if len(np.unique(who)) < 2:
        raise CorpusError(f"{pack.folder}: clips of one speaker alone; a second opinion is of other speakers' clips")
    share = np.bincount(labels) / len(labels)
    told = np.zeros((len(clips), len(share)))
    for x in layers.transpose(1, 0, 2):
        for known, unknown in GroupKFold(min(FOLDS, len(np.unique(who)))).split(x, groups=who):
            if len(there := np.unique(labels[known])) < 2:
                raise CorpusError(f"{pack.folder}: too few speakers for a second opinion: others have one label only")
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=300))
            probe.fit(x[known], labels[known])
            told[np.ix_(unknown, there)] += probe.predict_proba(x[unknown]) / share[there]
    return (told / told.sum(1, keepdims=True)).astype(np.float32)


@torch.no_grad()
def features(pack: Pack, clips: list[dict[str, Any]], folder: str, cache: Path) -> np.ndarray:
    """Mean and spread over time of the middle layers, float32 [N, layers (at most 2), 2 * dim]."""
    asked = [str(Path(folder).resolve()), *(str(c["id"]) for c in clips)]
    key, rows = hashlib.sha256("\n".join(asked).encode()).hexdigest(), []
    if cache.is_file():
        found, meta = load_tensors(cache)
        rows = list(found["features"]) if meta.get("asked") == key else []
    cache.parent.mkdir(parents=True, exist_ok=True)
    whisper = Whisper(folder).eval()
    for clip in tqdm(clips[len(rows) :], desc="second opinion", unit="clip", disable=None):
        n = min(clip["frames"], LONGEST)
        wave = torch.from_numpy(pack.waveform(clip["offset"], n))
        wave = 0.5 * wave / wave.abs().max().clamp_min(1e-5)
        every = whisper.layers(F.pad(wave, (0, REST * HOP))[None])
        middle = every[max(len(every) // 2 - 1, 0) : len(every) // 2 + 1]
        heard = torch.stack([torch.cat((h[0, :n].mean(0), h[0, :n].std(0, correction=0))) for h in middle])
        rows.append(heard.half())
        if len(rows) % SAVE == 0 or len(rows) == len(clips):
            save_tensors(cache, {"features": torch.stack(rows)}, {"asked": key})
    return torch.stack(rows).float().numpy()
