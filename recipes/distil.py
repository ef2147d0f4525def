"""Label a corpus with the units of a unit folder (HuBERT, ContentVec, wav2vec 2.0, WavLM): what a causal student,
our native `UnitEncoder`, then learns from.

    vivavoce train distil ...    unit folder + corpus -> labels.npz
    vivavoce prepare corpus/ -o runs/pack teacher=labels.npz teacher_array=units_500
    vivavoce train units recipes/units.yaml pack=runs/pack model.content_units=500

The teacher hears whole clips, and so the future; the student hears its look-ahead. Output: .npz with clip_ids, offsets,
lengths and units_{k}, frame t centred on sample t * hop, as everywhere here. Labels so far lie in OUT.parts/.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vivavoce.core.checkpoint import atomic_path, read_json, resolve_folder, write_json
from vivavoce.core.errors import ConfigError, CorpusError
from vivavoce.recipes.kmeans import clips_of, wave_of
from vivavoce.recipes.label import phone_information, phones_of, read_phonemes
from vivavoce.units import HubertUnits


@dataclass
class DistilConfig:
    """`vivavoce train distil` reads this."""

    corpus: str  # a corpus or a pack
    units: str  # unit folder, see recipes.kmeans
    out: str  # .npz
    phonemes: str | None = None  # JSONL (.gz) of {"id", "phonemes", "spans"}: to publish what the labels tell of them
    spans_earlier: int = 0
    device: str = "cpu"
    threads: int | None = None


def run(config: DistilConfig) -> dict[str, float]:
    """Label every readable clip. A stopped run goes on.

    Returns clips and frames labelled and, with phonemes, `phone_nmi` outside the train split. Raises CheckpointError,
    ConfigError, CorpusError.
    """
    if not config.out.endswith(".npz"):
        raise ConfigError(f"out {config.out!r}: give a name that ends in .npz")
    if config.threads:
        torch.set_num_threads(config.threads)
    units = HubertUnits.from_pretrained(config.units).to(config.device)
    spans = read_phonemes(config.phonemes) if config.phonemes else {}
    clips, pack = clips_of(config.corpus)
    parts = Path(f"{config.out}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    _check_same(parts, config)
    done = _resume(parts)
    with (
        open(parts / "labels.u16", "ab") as labels,
        open(parts / "clips.jsonl", "a", encoding="utf-8") as index,
        tqdm(total=len(clips), initial=len(done), desc="distil", unit="clip") as bar,
    ):
        for clip in clips:
            if clip["id"] in done:
                continue
            bar.update()
            try:
                wave = wave_of(config.corpus, pack, clip).to(config.device)
            except CorpusError as e:
                tqdm.write(f"skipped: {e}")
                continue
            row = units.content(wave)[0].cpu().numpy().astype(np.uint16)
            labels.write(row.tobytes())
            labels.flush()
            index.write(json.dumps([clip["id"], len(row), clip.get("split", "train")]) + "\n")
            index.flush()
    return _finish(config, parts, units.config.content_units, spans)


def _check_same(parts: Path, config: DistilConfig) -> None:
    """Refuse to go on with labels of other units or another corpus."""
    folder = resolve_folder(config.units)
    own = {"corpus": config.corpus, "units": read_json(folder / "config.json")}
    path = parts / "distil.json"
    if path.is_file() and read_json(path) != own:
        raise ConfigError(f"{parts}: labels of other units or of another corpus; choose another out= or remove it")
    write_json(path, own)


def _resume(parts: Path) -> set[str]:
    """Drop whatever a killed run left half-written; the ids of the clips that are whole."""
    rows, good = [], b""
    path = parts / "clips.jsonl"
    for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
        if not line.endswith(b"\n"):
            break
        rows.append(json.loads(line))
        good += line
    if path.is_file():
        path.write_bytes(good)
        os.truncate(parts / "labels.u16", 2 * sum(n for _, n, _ in rows))
    return {name for name, *_ in rows}


def _finish(config: DistilConfig, parts: Path, k: int, spans: dict) -> dict[str, float]:
    rows = [json.loads(line) for line in (parts / "clips.jsonl").read_text(encoding="utf-8").splitlines()]
    if not rows:
        raise CorpusError(f"{config.corpus}: no clip could be read")
    labels = np.fromfile(parts / "labels.u16", np.uint16)
    lengths = np.array([n for _, n, _ in rows], np.int32)
    with atomic_path(config.out) as temp, open(temp, "wb") as f:
        offsets = np.concatenate(([0], np.cumsum(lengths[:-1])))
        ids = np.array([name for name, *_ in rows])
        arrays: dict[str, Any] = {"clip_ids": ids, "lengths": lengths, "offsets": offsets, f"units_{k}": labels}
        np.savez_compressed(f, **arrays)
    shutil.rmtree(parts)
    result = {"clips": float(len(rows)), "frames": float(len(labels))}
    if not spans:
        return result
    phones = np.concatenate([phones_of(spans.get(name, []), n, config.spans_earlier) for name, n, _ in rows])
    unseen = (phones >= 0) & ~np.repeat([split == "train" for *_, split in rows], lengths)
    judged = unseen if unseen.any() else phones >= 0
    return {**result, "phone_nmi": phone_information(labels[judged], phones[judged])} if judged.any() else result
