"""The encoder of a Whisper (Radford et al. 2022) as a module that gradients pass through.

From a folder as transformers saves it, or as CTranslate2 does: the one that faster-whisper, and with it
`recipes.label`, takes. Only weights are read, nothing of the folder is run.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.core.checkpoint import load_tensors
from vivavoce.core.errors import CheckpointError, ConfigError
from vivavoce.recipes.corpus import HOP, RATE

LAYER = {  # CTranslate2's names in a layer -> transformers'
    "self_attention/layer_norm": "self_attn_layer_norm", "self_attention/linear_1": "self_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm", "ffn/linear_0": "fc1", "ffn/linear_1": "fc2",
}  # fmt: skip
KIND = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias", "encodings": "weight"}
TYPES = {0: np.float32, 4: np.float16}  # CTranslate2's, of those that are read


class Whisper(nn.Module):
    """The encoder: waveforms of up to 30 s -> features of the last layer at 50 Hz.

    Raises:
        CheckpointError: no weights of a Whisper in the folder.
        ConfigError: transformers is not installed.
    """

    window: Tensor
    bank: Tensor

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        try:
            from transformers import WhisperConfig, WhisperFeatureExtractor
            from transformers.models.whisper.modeling_whisper import WhisperEncoder
        except ImportError as e:
            raise ConfigError(f'{folder}: a Whisper needs transformers: pip install "vivavoce[hubert]" ({e})') from None
        weights = _weights(Path(folder))
        try:
            wide, mels, _ = weights["conv1.weight"].shape
            depth = 1 + max(int(k.split(".")[1]) for k in weights if k.startswith("layers."))
            config = WhisperConfig(
                d_model=wide, num_mel_bins=mels, encoder_layers=depth, encoder_attention_heads=max(1, wide // 64),
                encoder_ffn_dim=len(weights["layers.0.fc1.weight"]), dropout=0.0, attention_dropout=0.0,
                activation_dropout=0.0, max_source_positions=len(weights["embed_positions.weight"]),
            )  # fmt: skip
            self.encoder = WhisperEncoder(config)
            self.encoder.load_state_dict(weights)
        except (KeyError, ValueError, RuntimeError) as e:
            raise CheckpointError(f"{folder}: not the encoder of a Whisper ({e!r})") from None
        bank = WhisperFeatureExtractor(feature_size=mels, sampling_rate=RATE).mel_filters
        self.register_buffer("window", torch.hann_window(400), persistent=False)
        self.register_buffer("bank", torch.from_numpy(bank).float(), persistent=False)

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def spectra(self, wave: Tensor) -> Tensor:
        """Waveform [B, T * 320] at 16 kHz -> log-mel as a Whisper is given it [B, n_mels, 2 T]."""
        found = torch.stft(wave.float(), 400, HOP // 2, window=self.window, return_complex=True)
        mel = torch.log10((self.bank.T @ found[..., :-1].abs().square()).clamp_min(1e-10))
        return (torch.maximum(mel, mel.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0

    def forward(self, wave: Tensor) -> Tensor:
        """Waveform [B, T * 320] at 16 kHz -> [B, T, dim]. It need not be padded to 30 s."""
        return self.encoder.layer_norm(self.layers(wave)[-1]).float()

    def layers(self, wave: Tensor) -> list[Tensor]:
        """Waveform [B, T * 320] at 16 kHz -> what each layer makes of it, [B, T, dim] a layer."""
        e, found = self.encoder, []
        h = F.gelu(e.conv2(F.gelu(e.conv1(self.spectra(wave))))).transpose(1, 2)
        h = h + e.embed_positions.weight[: h.shape[1]]
        for layer in e.layers:
            out: Any = layer(h, None)
            found.append(h := out[0] if isinstance(out, tuple) else out)
        return found


def _weights(folder: Path) -> dict[str, Tensor]:
    """Weights of the encoder by transformers' names. Raises CheckpointError."""
    if (folder / "model.bin").is_file():
        return _renamed(_converted(folder / "model.bin"))
    named = {k.removeprefix("model."): v.float() for k, v in load_tensors(folder / "model.safetensors")[0].items()}
    return {k.removeprefix("encoder."): v for k, v in named.items() if k.startswith("encoder.")}


def _converted(path: Path) -> dict[str, Tensor]:
    """The encoder's tensors in a file of CTranslate2 (format 6: a header; name, shape, type and bytes of each)."""

    def number(f: BinaryIO, kind: str) -> int:
        return struct.unpack("<" + kind, f.read(struct.calcsize("<" + kind)))[0]

    def name(f: BinaryIO) -> str:
        return f.read(number(f, "H"))[:-1].decode()

    out = {}
    try:
        with open(path, "rb") as f:
            number(f, "I"), name(f), number(f, "I")
            for _ in range(number(f, "I")):
                what, rank = name(f), number(f, "B")
                shape, kind, size = [number(f, "I") for _ in range(rank)], number(f, "B"), number(f, "I")
                data = f.read(size)
                if what.startswith("encoder/") and kind in TYPES:
                    values = np.frombuffer(data, TYPES[kind]).reshape(shape).astype(np.float32)
                    out[what.removeprefix("encoder/")] = torch.from_numpy(values)
    except (OSError, ValueError, struct.error) as e:
        raise CheckpointError(f"{path}: not a model of CTranslate2 that is read here: 16 or 32 bits ({e!r})") from None
    return out


def _renamed(found: dict[str, Tensor]) -> dict[str, Tensor]:
    out = {}
    for name, value in found.items():
        where, _, kind = name.rpartition("/")
        if kind not in KIND:
            continue
        if where.startswith("layer_") and where != "layer_norm":
            layer, _, part = where.partition("/")
            at = f"layers.{layer.removeprefix('layer_')}."
            if part == "self_attention/linear_0":  # queries, keys and values in one; keys have no bias
                for k, x in zip("qkv", value.chunk(3)):
                    if (k, kind) != ("k", "bias"):
                        out[f"{at}self_attn.{k}_proj.{kind}"] = x
            elif part in LAYER:
                out[f"{at}{LAYER[part]}.{KIND[kind]}"] = value
        else:
            out[f"{where.replace('position_encodings', 'embed_positions')}.{KIND[kind]}"] = value
    return out
