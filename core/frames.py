"""The frame grid: framing, log-mel spectrogram, overlap-add. Waveforms are [batch, samples].

Frame t is computed from samples [(t - 1) * hop, (t + 1) * hop): it is ready when its second half has
arrived, and its centre is sample t * hop.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vivavoce.core.layers import State


def mel_filterbank(sample_rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float) -> Tensor:
    """Triangular HTK-mel filters of unit peak, [n_fft // 2 + 1, n_mels]."""

    def to_mel(f: float) -> float:
        return 2595.0 * math.log10(1.0 + f / 700.0)

    mels = torch.linspace(to_mel(f_min), to_mel(f_max), n_mels + 2, dtype=torch.float64)
    hz = 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    freqs = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * sample_rate / n_fft
    up = (freqs[:, None] - hz[:-2]) / (hz[1:-1] - hz[:-2])
    down = (hz[2:] - freqs[:, None]) / (hz[2:] - hz[1:-1])
    return torch.minimum(up, down).clamp_min(0.0).float()


class Framing(nn.Module):
    """Cut a waveform into overlapping frames of `window` samples every `hop`, with the past carried.

    Input [B, n * hop]; output [B, n, window], not windowed. State: the last `window - hop` samples.
    """

    def __init__(self, window: int, hop: int) -> None:
        super().__init__()
        self.window, self.hop = window, hop

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if x.shape[1] % self.hop:
            raise ValueError(f"{x.shape[1]} samples are not a whole number of {self.hop}-sample frames")
        if state is None:
            state = x.new_zeros(x.shape[0], self.window - self.hop)
        x = torch.cat((state, x), dim=1)
        state = x[:, x.shape[1] - (self.window - self.hop) :]
        return x.unfold(1, self.window, self.hop), state


class LogMel(nn.Module):
    """Log-mel spectrum and level of frames [B, T, window].

    Returns:
        mel: natural-log mel amplitudes [B, T, n_mels], floored at -80 dB re full scale.
        level: frame level in dB re full scale, [B, T], floored at -100 dB.
    """

    hann: Tensor
    bank: Tensor

    def __init__(self, sample_rate: int, window: int, n_mels: int, f_min: float = 40.0) -> None:
        super().__init__()
        self.register_buffer("hann", torch.hann_window(window), persistent=False)
        bank = mel_filterbank(sample_rate, window, n_mels, f_min, sample_rate / 2)
        self.register_buffer("bank", bank / bank.sum(0, keepdim=True).clamp_min(1e-8), persistent=False)
        self.gain = 2.0 / float(torch.hann_window(window).sum())  # a full-scale sine reads 1.0

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        windowed = frames * self.hann
        power = (torch.fft.rfft(windowed).abs() * self.gain).square()
        mel = 0.5 * torch.log((power @ self.bank).clamp_min(1e-8))
        return mel, self.level(windowed)

    def level(self, windowed: Tensor) -> Tensor:
        """Hann-windowed frames [..., window] -> level in dB re full scale."""
        energy = windowed.square().sum(-1) / self.hann.square().sum()
        return 10.0 * torch.log10(energy.clamp_min(1e-10))


class OverlapAdd(nn.Module):
    """Inverse of windowed framing with window = 2 * hop: frames [B, T, 2 * hop] -> samples [B, T * hop].

    Output block t is the second half of frame t - 1 plus the first half of frame t: one hop of delay,
    so the first block of a stream belongs to the time before it. State: the open second half, [B, hop].
    """

    def __init__(self, hop: int) -> None:
        super().__init__()
        self.hop = hop

    def forward(self, frames: Tensor, state: State = None) -> tuple[Tensor, State]:
        b, t, _ = frames.shape
        if state is None:
            state = frames.new_zeros(b, self.hop)
        first, second = frames[..., : self.hop], frames[..., self.hop :]
        tails = torch.cat((state[:, None], second), dim=1)
        return (first + tails[:, :t]).reshape(b, t * self.hop), tails[:, t]
