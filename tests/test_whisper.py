"""The encoder of a Whisper as recipes.whisper reads and runs it, beside transformers' own."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from vivavoce.core.errors import CheckpointError
from vivavoce.recipes.whisper import LAYER, Whisper

pytest.importorskip("transformers")


def as_ctranslate2(model: torch.nn.Module, path: Path) -> None:
    """The encoder in CTranslate2's format 6, at 16 bits; and what is not of the encoder, to be passed over."""
    def text(x: str) -> bytes:
        return struct.pack("<H", len(x) + 1) + x.encode() + b"\0"

    named = {k: v.detach().numpy() for k, v in model.encoder.named_parameters()}
    out = {"encoder/position_encodings/encodings": named["embed_positions.weight"],
           "decoder/embeddings/weight": np.zeros((3, 4), np.float32)}  # fmt: skip
    for k in ("conv1", "conv2"):
        out |= {f"encoder/{k}/{x}": named[f"{k}.{x}"] for x in ("weight", "bias")}
    out |= {"encoder/layer_norm/gamma": named["layer_norm.weight"], "encoder/layer_norm/beta": named["layer_norm.bias"]}
    for i in range(model.config.encoder_layers):
        p, q = f"encoder/layer_{i}/", f"layers.{i}."
        bias = {"k": np.zeros_like(named[q + "self_attn.q_proj.bias"])}
        bias |= {k: named[f"{q}self_attn.{k}_proj.bias"] for k in "qv"}
        weights = [named[f"{q}self_attn.{k}_proj.weight"] for k in "qkv"]
        out[p + "self_attention/linear_0/weight"] = np.concatenate(weights)
        out[p + "self_attention/linear_0/bias"] = np.concatenate([bias[k] for k in "qkv"])
        for ours, theirs in LAYER.items():
            kinds = ("gamma", "beta") if ours.endswith("norm") else ("weight", "bias")
            out |= {f"{p}{ours}/{a}": named[f"{q}{theirs}.{b}"] for a, b in zip(kinds, ("weight", "bias"))}
    with open(path, "wb") as f:
        f.write(struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(out)))
        for name, x in out.items():
            data, shape = x.astype(np.float16).tobytes(), struct.pack(f"<B{x.ndim}I", x.ndim, *x.shape)
            f.write(text(name) + shape + struct.pack("<BI", 4, len(data)) + data)


@torch.no_grad()
def test_it_hears_what_transformers_does(tmp_path: Path) -> None:
    from transformers import WhisperFeatureExtractor

    model = tiny.whisper()
    model.save_pretrained(tmp_path / "saved")
    wave = torch.nn.functional.pad(0.3 * tiny.voiced(1.0, 16000), (0, 29 * 16000))[None]
    given = WhisperFeatureExtractor(feature_size=20)(wave[0].numpy(), sampling_rate=16000, return_tensors="pt")
    whisper = Whisper(tmp_path / "saved").eval()
    torch.testing.assert_close(whisper.spectra(wave), given.input_features, atol=2e-4, rtol=0)
    torch.testing.assert_close(whisper(wave), model.encoder(given.input_features)[0], atol=2e-3, rtol=0)
    assert whisper(wave[:, : 7 * 320]).shape == (1, 7, 64)
    (tmp_path / "converted").mkdir()
    as_ctranslate2(model, tmp_path / "converted/model.bin")
    torch.testing.assert_close(Whisper(tmp_path / "converted").eval()(wave), whisper(wave), atol=2e-2, rtol=0)


def test_what_is_no_whisper_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        Whisper(tmp_path)
    (tmp_path / "model.bin").write_bytes(struct.pack("<I", 6) + b"\xff")
    with pytest.raises(CheckpointError, match="not a model of CTranslate2"):
        Whisper(tmp_path)
