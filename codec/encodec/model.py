"""EnCodec: SEANet encoder, residual VQ, SEANet decoder; offline in one line, and as a stream both ways.

    codec = Encodec.from_pretrained("encodec_24khz")        # the folder that `vivavoce import encodec` wrote
    codes = codec.encode(wave, bandwidth=6.0)               # [B, samples] -> [B, T, 8]
    wave = codec.decode(codes)                              # [B, T * 320]

Waveforms are [B, samples] for mono models and [B, channels, samples] for others; codes are [B, T, codebooks] (the
reference has [B, codebooks, T]). The 48 kHz model works in segments with a loudness each: `encode_segments`.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from vivavoce.codec.encodec.config import KERNEL, EncodecConfig
from vivavoce.codec.encodec.layers import LSTM, Conv, Residual, TransposedConv, chain
from vivavoce.codec.encodec.rvq import ResidualVQ
from vivavoce.core.checkpoint import PretrainedModule
from vivavoce.core.errors import AudioError, ConfigError
from vivavoce.core.layers import State


class Segment(NamedTuple):
    """A stretch of encoded audio: codes [B, T, K] and, from models that normalise, the loudness [B, 1] taken out."""

    codes: Tensor
    scale: Tensor | None


class SEANet(nn.Module):
    """Encoder or decoder: [B, C_in, T] -> [B, C_out, T'], with `last` as in `layers`."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, state: State = None, last: bool = False) -> tuple[Tensor, State]:
        return chain(self.layers, x, state, last)


def encoder(c: EncodecConfig) -> SEANet:
    """Waveform [B, channels, n] -> latents [B, dimension, ceil(n / hop)]."""
    width = c.n_filters
    layers: list[nn.Module] = [Conv(c.channels, width, KERNEL, causal=c.causal)]
    for ratio in reversed(c.ratios):
        layers += [Residual(width, j, c.causal) for j in range(c.residual_layers)]
        layers += [nn.ELU(), Conv(width, 2 * width, 2 * ratio, ratio, causal=c.causal)]
        width *= 2
    layers += [LSTM(width, c.lstm_layers)] if c.lstm_layers else []
    return SEANet([*layers, nn.ELU(), Conv(width, c.dimension, KERNEL, causal=c.causal)])


def decoder(c: EncodecConfig) -> SEANet:
    """Latents [B, dimension, T] -> waveform [B, channels, T * hop]."""
    width = c.n_filters * 2 ** len(c.ratios)
    layers: list[nn.Module] = [Conv(c.dimension, width, KERNEL, causal=c.causal)]
    layers += [LSTM(width, c.lstm_layers)] if c.lstm_layers else []
    for ratio in c.ratios:
        layers += [nn.ELU(), TransposedConv(width, width // 2, ratio, c.causal)]
        width //= 2
        layers += [Residual(width, j, c.causal) for j in range(c.residual_layers)]
    return SEANet([*layers, nn.ELU(), Conv(width, c.channels, KERNEL, causal=c.causal)])


class Encodec(PretrainedModule):
    """EnCodec's architecture with weight norm folded into the weights. For inference; it has no training pass."""

    model_type: ClassVar[str] = "vivavoce-encodec"
    Config: ClassVar[type] = EncodecConfig

    def __init__(self, config: EncodecConfig) -> None:
        super().__init__()
        self.config = c = config
        self.encoder, self.decoder = encoder(c), decoder(c)
        self.quantiser = ResidualVQ(c.n_codebooks, c.codebook_size, c.dimension)

    # ---- offline ------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, x: Tensor, bandwidth: float | None = None) -> Tensor:
        """Waveform [B, n] -> codes [B, ceil(n / hop), K].

        Args:
            bandwidth: kbit/s, one of `config.bandwidths`; None takes all codebooks.

        Raises:
            AudioError: another shape.
            ConfigError: a bandwidth that the model does not have, or a model that works in segments.
        """
        if self.config.segment is not None or self.config.normalise:
            raise ConfigError("this EnCodec model works in normalised segments: use encode_segments, decode_segments")
        return self._encode(self._shaped(x), bandwidth)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, T, K] -> waveform [B, T * hop] (a few samples more than were encoded: the last frame is whole)."""
        z = self.quantiser.decode(codes).transpose(1, 2)
        return self._unshaped(self.decoder(z, None, True)[0])

    @torch.no_grad()
    def encode_segments(self, x: Tensor, bandwidth: float | None = None) -> list[Segment]:
        """Waveform -> segments, each encoded by itself; models without segments give one.

        Raises:
            AudioError: another shape.
            ConfigError: a bandwidth that the model does not have.
        """
        x, c = self._shaped(x), self.config
        length, stride = c.segment or x.shape[-1], c.stride or x.shape[-1]
        out = []
        for start in range(0, x.shape[-1], stride):
            part, scale = x[..., start : start + length], None
            if c.normalise:
                loudness = 1e-8 + part.mean(dim=1, keepdim=True).pow(2).mean(dim=2, keepdim=True).sqrt()
                part, scale = part / loudness, loudness.view(-1, 1)
            out.append(Segment(self._encode(part, bandwidth), scale))
        return out

    @torch.no_grad()
    def decode_segments(self, segments: list[Segment]) -> Tensor:
        """Segments -> waveform, joined by overlap-add with triangular weights."""
        parts = []
        for codes, scale in segments:
            z = self.quantiser.decode(codes).transpose(1, 2)
            y = self.decoder(z, None, True)[0]
            parts.append(y if scale is None else y * scale.view(-1, 1, 1))
        return self._unshaped(overlap_add(parts, self.config.stride) if self.config.stride else parts[0])

    def forward(self, x: Tensor, bandwidth: float | None = None) -> Tensor:
        """There and back: a waveform as it sounds at a bandwidth, as long as it was."""
        return self.decode_segments(self.encode_segments(x, bandwidth))[..., : x.shape[-1]]

    # ---- streams ------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_stream(self, x: Tensor, state: State = None, last: bool = False,
                      bandwidth: float | None = None) -> tuple[Tensor, State]:  # fmt: skip
        """Any number of samples [B, n] -> codes [B, T, K] of the frames that are ready, state.

        A frame is ready when its 320 samples are in; only the first seven come together. `last=True` ends the stream:
        the last frame is filled up. Raises ConfigError for a model that cannot stream.
        """
        self._check_causal()
        z, state = self.encoder(self._shaped(x), state, last)
        return self.quantiser.encode(z.transpose(1, 2), self.config.codebooks(bandwidth)), state

    @torch.no_grad()
    def decode_stream(self, codes: Tensor, state: State = None, last: bool = False) -> tuple[Tensor, State]:
        """Codes [B, T, K] of any number of frames -> the samples that are ready, state. See `encode_stream`."""
        self._check_causal()
        z = self.quantiser.decode(codes).transpose(1, 2)
        y, state = self.decoder(z, state, last)
        return self._unshaped(y), state

    @property
    def warm_up(self) -> int:
        """Frames that a stream waits for before the first is given out, in either direction."""
        return KERNEL

    def keep(self, codebooks: int) -> Encodec:
        """Drop all but the first codebooks, in place. Raises ConfigError when there are not as many."""
        c = self.config
        if not 1 <= codebooks <= c.n_codebooks:
            raise ConfigError(f"{codebooks} codebooks: this EnCodec model has {c.n_codebooks}")
        left = [b for b in c.bandwidths if c.codebooks(b) <= codebooks]
        self.config = dataclasses.replace(c, n_codebooks=codebooks, bandwidths=left)
        self.quantiser.books = self.quantiser.books[:codebooks]
        return self

    # ---- shared -------------------------------------------------------------------------------------

    def _encode(self, x: Tensor, bandwidth: float | None) -> Tensor:
        n = self.config.codebooks(bandwidth)
        return self.quantiser.encode(self.encoder(x, None, True)[0].transpose(1, 2), n)

    def _check_causal(self) -> None:
        if not self.config.causal:
            raise ConfigError("this EnCodec model hears the future: it works offline only; the 24 kHz model streams")

    def _shaped(self, x: Tensor) -> Tensor:
        c = self.config.channels
        if (x.ndim, c) == (2, 1):
            return x[:, None]
        if c > 1 and x.ndim == 3 and x.shape[1] == c:
            return x
        want = "[batch, samples]" if c == 1 else f"[batch, {c}, samples]"
        raise AudioError(f"this EnCodec model takes {self.config.sample_rate} Hz of shape {want}, got {tuple(x.shape)}")

    def _unshaped(self, y: Tensor) -> Tensor:
        return y[:, 0] if self.config.channels == 1 else y


def overlap_add(parts: list[Tensor], stride: int) -> Tensor:
    """Join [..., n_i], each `stride` after the one before, weighted by the triangle of the first's length."""
    n = parts[0].shape[-1]
    ramp = torch.linspace(0, 1, n + 2, device=parts[0].device, dtype=parts[0].dtype)[1:-1]
    triangle = 0.5 - (ramp - 0.5).abs()
    total = stride * (len(parts) - 1) + parts[-1].shape[-1]
    weight, out = parts[0].new_zeros(total), parts[0].new_zeros(*parts[0].shape[:-1], total)
    for i, part in enumerate(parts):
        at = slice(i * stride, i * stride + part.shape[-1])
        out[..., at] += triangle[: part.shape[-1]] * part
        weight[at] += triangle[: part.shape[-1]]
    return out / weight
