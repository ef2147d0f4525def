"""What tells speech from other vocal sounds by the content units of a model (units.speaking), which the pitch register
needs to know: a cry's pitch is no speaker's register.

    python -m vivavoce.recipes.speaking MODEL PACK      writes MODEL/speaking/

Fits a logistic regression on voiced frames of up to 1,500 train clips of speech and as many of anything else that
people do with their voices, and says how many frames of valid clips it takes for what they are. `vivavoce train
default` runs it at the end, where the corpus has both.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from vivavoce.changer import fingerprint
from vivavoce.core.errors import CorpusError
from vivavoce.eval.tagger import CLASS_OF
from vivavoce.recipes.corpus import Pack
from vivavoce.units import HubertUnits, UnitEncoder, load_units
from vivavoce.units.speaking import Speaking, SpeakingConfig

CLIPS = 1500  # of each kind, at most
FRAMES = 12  # voiced ones of each clip
LONGEST = 300  # frames of a clip that are heard
DOUBT = 20.0  # times as bad to miss speech as to take something else for it


def chosen(pack: Pack, split: str, most: int, rng: np.random.Generator) -> list[tuple[dict[str, Any], bool]]:
    """Clips of speech and of other sounds, `most` of each at most, and whether they are speech. What is shouted may be
    either, and is left out."""
    known = [c for c in pack.split(split) if c.get("vocalisation", "none") in set(CLASS_OF) - {"shout"}]
    out = []
    for speech in (True, False):
        some = [c for c in known if (c.get("vocalisation", "none") == "none") == speech]
        out += [(some[i], speech) for i in rng.permutation(len(some))[:most]]
    return out


@torch.inference_mode()
def heard(units: UnitEncoder | HubertUnits, pack: Pack, clip: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Content units and periodicity [1, T] of a clip's beginning."""
    ahead, frames = units.config.lookahead, min(clip["frames"], LONGEST)
    x = torch.from_numpy(pack.waveform(clip["offset"], frames))
    found, _ = units(torch.nn.functional.pad(x, (0, ahead * units.config.hop))[None])
    return found.content[:, ahead:], found.periodicity[:, ahead:]


def described(speaking: Speaking, content: torch.Tensor, periodicity: torch.Tensor) -> np.ndarray:
    """What `speaking` averages, of voiced frames [n, table]: shares of its table's entries."""
    entries = [speaking.entries(unit) for unit in content[0, periodicity[0] > 0.5].tolist()]
    keep, share = 1.0 - 1.0 / speaking.config.memory_frames, np.zeros(len(speaking.table))
    mass, out = 0.0, np.zeros((len(entries), len(share)), np.float32)
    for t, entry in enumerate(entries):
        share, mass = keep * share, keep * mass + 1.0
        share[entry] += 1.0
        out[t] = share / mass
    return out


def make_speaking(model: Path, pack_folder: Path, seed: int = 0) -> Speaking:
    """Fit it to the units of a model folder, write it there, and return it. What was there goes first: of other units
    the model would not load.

    Raises:
        CorpusError: no speech, or nothing else, in the train split; or no voice is heard in them.
    """
    shutil.rmtree(model / "speaking", ignore_errors=True)
    pack, rng, units = Pack(pack_folder), np.random.default_rng(seed), load_units(model / "units").eval()
    clips = chosen(pack, "train", CLIPS, rng)
    if len({speech for _, speech in clips}) < 2:
        raise CorpusError(f"{pack_folder}: telling speech from other vocal sounds takes train clips of both")
    c = units.config
    speaking = Speaking(SpeakingConfig(fingerprint(model, ("units",)), c.content_units, c.content_levels))
    rows, labels = [], []
    for clip, speech in tqdm(clips, desc="speech or not", unit="clip"):
        found = described(speaking, *heard(units, pack, clip))
        some = rng.permutation(len(found))[:FRAMES]
        rows.append(found[some])
        labels += [speech] * len(some)
    y = np.array(labels, bool)
    if len(set(labels)) < 2:
        raise CorpusError(f"{pack_folder}: {model / 'units'} hears no voice in one of the two kinds")
    even = len(y) / (2.0 * np.bincount(y, minlength=2).clip(1))
    fit = LogisticRegression(C=0.3, max_iter=1000, class_weight={False: even[0], True: DOUBT * even[1]})
    fit.fit(np.concatenate(rows), y)
    with torch.no_grad():
        speaking.table.copy_(torch.from_numpy(fit.coef_[0]))
        speaking.bias.fill_(float(fit.intercept_[0]))
    speaking.save_pretrained(model / "speaking")
    right: dict[bool, list[float]] = {True: [], False: []}
    for clip, speech in chosen(pack, "valid", 200, rng):
        content, periodicity = heard(units, pack, clip)
        voiced = periodicity[0] > 0.5
        if voiced.any():
            took = speaking(content, periodicity)[0][0, voiced] > 0
            right[speech].append(float((took == speech).float().mean()))
    print("; ".join(f"{name}: {np.mean(right[k]):.0%} of voiced frames taken for it ({len(right[k])} valid clips)"
                    for k, name in ((True, "speech"), (False, "other sounds")) if right[k]))  # fmt: skip
    return speaking


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_speaking(Path(sys.argv[1]), Path(sys.argv[2]))
