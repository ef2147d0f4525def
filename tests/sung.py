"""A miniature corpus of sung vowels and hisses: recordings, a pack, toy models and tokens, as fixtures."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from vivavoce.codec import Codec, CodecConfig
from vivavoce.core.config import load_config
from vivavoce.recipes import corpus, default, tokenise
from vivavoce.recipes.corpus import HOP, RATE, Pack, PrepareConfig
from vivavoce.recipes.tokenise import TokeniseConfig
from vivavoce.units import UnitEncoder, UnitsConfig

TOY = Path(corpus.__file__).with_name("toy.yaml")
PHONES = ["a", "i", "u", "s"]
FORMANTS = {"a": (750, 1200, 2500), "i": (300, 2300, 3000), "u": (330, 800, 2300)}
SPEAKERS = {"ann": (210.0, 1.1), "bob": (115.0, 0.9), "cy": (150.0, 1.0)}  # F0 in Hz, formant scale
PHONE_FRAMES = 10


def sing(rng: np.random.Generator, speaker: str, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples [frames * hop] of vowels and hisses, and the phone of each frame."""
    f0, scale = SPEAKERS[speaker]
    phones = np.repeat(rng.integers(0, len(PHONES), -(-frames // PHONE_FRAMES)), PHONE_FRAMES)[:frames]
    n = np.arange(frames * HOP)
    hz = f0 * 2 ** (0.2 * np.sin(2 * np.pi * 0.7 * n / RATE + rng.uniform(0, 6)))
    phase = 2 * np.pi * np.cumsum(hz) / RATE
    wave = np.zeros(len(n))
    for k, name in enumerate(PHONES):
        on = np.convolve(np.repeat(phones == k, HOP), np.hanning(200) / 100, "same")
        if name == "s":
            wave += on * np.diff(rng.normal(0, 0.1, len(n) + 1))
            continue
        for h in range(1, 25):
            gain = sum(np.exp(-0.5 * ((h * f0 - scale * f) / 120) ** 2) for f in FORMANTS[name]) + 0.01
            wave += on * gain * np.cos(h * phase)
    return (0.3 * wave / np.abs(wave).max()).astype(np.float32), phones


@pytest.fixture(scope="session")
def corpora(tmp_path_factory) -> SimpleNamespace:
    """The same 12 recordings as a plain folder and as a manifest with a tar shard, labels and phonemes."""
    root = tmp_path_factory.mktemp("corpora")
    plain, listed = root / "plain", root / "listed"
    (listed / "loose").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines, labels, spans, waves = [], [], [], {}
    with tarfile.open(listed / "shard-000.tar", "w") as tar:
        for i in range(12):
            speaker = list(SPEAKERS)[i % 3]
            frames = int(rng.integers(50, 100))
            x, phones = sing(rng, speaker, frames)
            name, suffix = f"{speaker}-{i}", ".ogg" if i % 4 == 3 else ".wav"
            (plain / speaker).mkdir(parents=True, exist_ok=True)
            soundfile.write(plain / speaker / f"{i}{suffix}", x, RATE)
            split = ["train", "train", "valid"][i % 3] if i != 11 else "test"
            clip = {"id": name, "speaker": speaker, "licence": "CC-BY-4.0", "split": split,
                    "emotion": ["calm", "glad"][i % 2]}  # fmt: skip
            if i % 2:
                data = (plain / speaker / f"{i}{suffix}").read_bytes()
                info = tarfile.TarInfo(f"in-tar/{name}{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
                clip |= {"path": info.name, "shard": "shard-000.tar"}
            else:
                shutil.copy(plain / speaker / f"{i}{suffix}", listed / "loose" / f"{name}{suffix}")
                clip |= {"path": f"loose/{name}{suffix}", "strength": i / 10}
            lines.append(clip)
            labels.append(phones)
            waves[name] = x
            edges = [*range(0, frames, PHONE_FRAMES), frames]
            spans.append({"id": name, "phonemes": [PHONES[phones[e]] for e in edges[:-1]],
                          "spans": [[a * 0.02, b * 0.02] for a, b in pairwise(edges)]})  # fmt: skip
    lines[0]["licence"] = lines[2]["licence"] = "CC-BY-NC-SA-4.0"  # ann-0 in train, cy-2 in valid
    (listed / "loose" / "broken.wav").write_text("this is no sound")
    lines.append({"id": "broken", "path": "loose/broken.wav", "speaker": "bob", "split": "train"})
    (listed / "manifest.jsonl").write_text("".join(json.dumps(c) + "\n" for c in lines))
    (root / "phonemes.jsonl").write_text("".join(json.dumps(s) + "\n" for s in spans))
    lengths = np.array([len(p) for p in labels])
    np.savez(root / "teacher.npz", clip_ids=np.array([c["id"] for c in lines[:12]]), lengths=lengths,
             offsets=np.concatenate(([0], np.cumsum(lengths[:-1]))),
             units_20=np.concatenate(labels).astype(np.uint8))  # fmt: skip
    return SimpleNamespace(plain=plain, listed=listed, waves=waves, root=root, labels=labels,
                           teacher=str(root / "teacher.npz"), phonemes=str(root / "phonemes.jsonl"))


def prepare_config(corpora: SimpleNamespace, out: Path) -> PrepareConfig:
    return PrepareConfig(str(corpora.listed), str(out), teacher=corpora.teacher, teacher_array="units_20",
                         workers=1)  # fmt: skip


@pytest.fixture(scope="session")
def pack(corpora, tmp_path_factory) -> Pack:
    out = tmp_path_factory.mktemp("pack")
    corpus.prepare(prepare_config(corpora, out))
    return Pack(out)


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> SimpleNamespace:
    """Untrained toy models: their tokens are arbitrary, but as deterministic as any."""
    root = tmp_path_factory.mktemp("models")
    recipe = load_config(default.DefaultRecipe, TOY)
    torch.manual_seed(1)
    Codec(CodecConfig(**recipe.codec["model"])).save_pretrained(root / "codec")
    UnitEncoder(UnitsConfig(**recipe.units["model"])).save_pretrained(root / "units")
    return SimpleNamespace(codec=str(root / "codec"), units=str(root / "units"))


def token_config(pack: Pack, models: SimpleNamespace, out: Path, **more) -> TokeniseConfig:
    return TokeniseConfig(str(pack.folder), models.codec, models.units, str(out), shard_clips=3, **more)


@pytest.fixture(scope="session")
def tokens(pack, models, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("tokens") / "t"
    tokenise.run(token_config(pack, models, out))
    return out
