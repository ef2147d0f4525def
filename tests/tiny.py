"""A whole model folder in miniature: random weights, the real classes, two enrolled voices.

What it says is babble; that it says it bit for bit the same in any chunking is what tests ask of it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from vivavoce.changer import Changer, fingerprint
from vivavoce.codec import Codec, CodecConfig
from vivavoce.core.checkpoint import write_json
from vivavoce.lm import LMConfig, VoiceLM
from vivavoce.units import UnitEncoder, UnitsConfig

CODEC = CodecConfig(n_mels=20, n_codebooks=4, codebook_size=32, code_dim=8, encoder_dim=16, encoder_depth=1,
                    decoder_dim=16, decoder_depth=1)  # fmt: skip
UNITS = UnitsConfig(n_mels=20, dim=16, depth=1, content_units=50, pitch_dim=16, pitch_depth=1)
LM = LMConfig(content_units=50, n_codebooks=3, codebook_size=32, dim=32, layers=2, heads=2, hidden=32, depth_hidden=16,
              context=10)  # fmt: skip
WEIGHED = replace(LM, autoregressive=False)  # as the embedded one: frames that need not wait for one another
HEAD = {"model_type": "vivavoce", "format_version": 1, "sample_rate": 16000, "hop": 320,
        "parts": ["codec", "units", "lm"]}  # fmt: skip


def voiced(seconds: float, rate: int = 16000, f0: float = 120.0, seed: int = 0) -> Tensor:
    """Something like speech: gliding harmonics in bursts, a little noise; [samples], peak below 0.6."""
    g = torch.Generator().manual_seed(seed)
    t = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    phase = 2 * math.pi * (f0 * t + 0.05 * f0 / 4 * torch.sin(4 * t))
    burst = (0.55 + 0.45 * torch.sin(2 * math.pi * 2.3 * t)).clamp_min(0.1)
    tone = torch.stack([torch.sin(k * phase) / k for k in range(1, 9) if k * f0 < 0.4 * rate]).sum(0)
    return (0.2 * burst * tone + 0.01 * torch.randn(len(t), generator=g, dtype=torch.float64)).float()


def build(folder: Path, seed: int = 0, lm_config: LMConfig = LM) -> Path:
    """Write a tiny model with the voices `ada` (low) and `bela` (high) into `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        codec, units, lm = Codec(CODEC), UnitEncoder(UNITS), VoiceLM(lm_config)
        for table in (lm.prosody, lm.expression, *(head.out for head in lm.depth)):
            table.weight.data.mul_(4.0)  # opinions strong enough that inputs and sampling show
    for name, part in (("codec", codec), ("units", units), ("lm", lm)):
        part.save_pretrained(folder / name)
    write_json(folder / "config.json", HEAD)
    changer = Changer(codec, units, lm, fingerprint(folder))
    (folder / "voices").mkdir()
    for name, f0 in (("ada", 110.0), ("bela", 220.0)):
        voice = changer.enroll(voiced(3.0, f0=f0), 16000, name, licence="CC0-1.0", note=f"{f0:.0f} Hz of test")
        voice.save(folder / "voices" / f"{name}.voice")
    return folder


def whisper() -> nn.Module:
    """A random Whisper of transformers: two layers, one head of 64."""
    import transformers

    torch.manual_seed(5)
    shape = {f"{part}_{k}": n for part in ("encoder", "decoder")
             for k, n in (("layers", 2), ("attention_heads", 1), ("ffn_dim", 32))}  # fmt: skip
    tokens = {f"{k}_token_id": n for n, k in enumerate(("pad", "bos", "eos", "decoder_start"))}
    config = transformers.WhisperConfig(d_model=64, num_mel_bins=20, vocab_size=10, **shape, **tokens)
    return transformers.WhisperModel(config).eval()
